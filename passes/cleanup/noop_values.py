"""Rules for nodes that compute element by element, where every element stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import Const, Match, Op, Rewriter, Rule, Var, ir, rule
from graphopt.passes.cleanup.sameness import is_positive_zero, keeps_shape, same_shape, uniform

__all__ = ["VALUE_RULES"]

x, y, c = Var(), Var(), Const()

_DT = ir.DataType
_FLOATS = {_DT.FLOAT, _DT.DOUBLE}
# Types that hold every element of the first type, so that casting there and back changes nothing.
_WIDER: dict[ir.DataType, set[ir.DataType]] = {
    _DT.FLOAT16: _FLOATS,
    _DT.BFLOAT16: _FLOATS,
    _DT.FLOAT: {_DT.DOUBLE},
    _DT.INT8: {_DT.INT16, _DT.INT32, _DT.INT64, _DT.FLOAT16, *_FLOATS},
    _DT.UINT8: {
        _DT.INT16, _DT.UINT16, _DT.INT32, _DT.UINT32, _DT.INT64, _DT.UINT64, _DT.FLOAT16, *_FLOATS,
    },
    _DT.INT16: {_DT.INT32, _DT.INT64, *_FLOATS},
    _DT.UINT16: {_DT.INT32, _DT.UINT32, _DT.INT64, _DT.UINT64, *_FLOATS},
    _DT.INT32: {_DT.INT64, _DT.DOUBLE},
    _DT.UINT32: {_DT.INT64, _DT.UINT64, _DT.DOUBLE},
    _DT.BOOL: {
        _DT.INT8, _DT.UINT8, _DT.INT16, _DT.UINT16, _DT.INT32, _DT.UINT32, _DT.INT64, _DT.UINT64,
        _DT.FLOAT16, *_FLOATS,
    },
}  # fmt: skip


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


@rule(Op("Cast", x))
def noop_cast(m: Match, rw: Rewriter) -> ir.Value | None:
    """To the type it has."""
    if m[x].dtype is None or m[x].dtype != ir.attr(m.root, "to"):
        return m.fail("the type may change")
    return m[x]


@rule(Op("CastLike", x, y))
def noop_cast_like(m: Match, rw: Rewriter) -> ir.Value | None:
    """To the type it has."""
    if m[x].dtype is None or m[x].dtype != m[y].dtype:
        return m.fail("the type may change")
    return m[x]


wider = Op("Cast", x, shared=True)


@rule(Op("Cast", wider))
def noop_cast_back(m: Match, rw: Rewriter) -> ir.Value | None:
    """To a type that holds every element, and back."""
    dtype = m[x].dtype
    if dtype is None or dtype != ir.attr(m.root, "to"):
        return m.fail("it is not the type it started from")
    if ir.attr(m[wider], "to") not in _WIDER.get(dtype, ()):
        return m.fail("the type in between does not hold every element")
    return m[x]


def _keeps(m: Match) -> bool:
    constant = ir.const(m.value(c))
    return constant is not None and keeps_shape(m[x], tuple(constant.shape.numpy()))


@rule(Op(("Mul", "Div", "Pow"), x, c))
def noop_one(m: Match, rw: Rewriter) -> ir.Value | None:
    """Times one, divided by one, to the power of one."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    if m.root.op_type == "Pow" and _is_integer(m[x]):
        return m.fail("ONNX Runtime rounds powers of large integers to double")
    return m[x] if uniform(m[c], 1) else m.fail("the constant is not 1")


@rule(Op("Add", x, c))
def noop_add(m: Match, rw: Rewriter) -> ir.Value | None:
    """Plus zero; of floating-point numbers -0.0, since -0.0 + 0.0 is 0.0."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    zero = m[c] if _is_integer(m.value(c)) else -m[c]
    return m[x] if is_positive_zero(zero) else m.fail("the constant is not the neutral zero")


@rule(Op("Sub", x, c))
def noop_sub(m: Match, rw: Rewriter) -> ir.Value | None:
    """Minus 0.0, which keeps -0.0."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    return m[x] if is_positive_zero(m[c]) else m.fail("the constant is not the neutral zero")


_NEUTRAL = {"And": True, "Or": False, "Xor": False}


@rule(Op(tuple(_NEUTRAL), x, c))
def noop_logical(m: Match, rw: Rewriter) -> ir.Value | None:
    """And true, or false, xor false."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    return m[x] if uniform(m[c], _NEUTRAL[m.root.op_type]) else m.fail("the constant decides")


@rule(Op(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), x, c))
def noop_bitwise(m: Match, rw: Rewriter) -> ir.Value | None:
    """And all ones, or zero, xor zero."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    bits = ~m[c] if m.root.op_type == "BitwiseAnd" else m[c]
    return m[x] if uniform(bits, 0) else m.fail("the constant decides")


@rule(Op("BitShift", x, c))
def noop_shift(m: Match, rw: Rewriter) -> ir.Value | None:
    """By no bit."""
    if not _keeps(m):
        return m.fail("it may broadcast")
    return m[x] if uniform(m[c], 0) else m.fail("it shifts")


@rule(Op(("And", "Or"), x, x))
def noop_same_operand(m: Match, rw: Rewriter) -> ir.Value:
    """With itself."""
    return m[x]


def _twice(op: str) -> Rule:
    def build(m: Match, rw: Rewriter) -> ir.Value:
        return m[x]

    return rule(Op(op, Op(op, x, shared=True)), name=f"noop-{op.lower()}-twice")(build)


def _again(outer: tuple[str, ...], inner: tuple[str, ...]) -> Rule:
    first = Op(inner, x, shared=True)

    def build(m: Match, rw: Rewriter) -> ir.Value:
        return m[first].outputs[0]

    return rule(Op(outer, first), name=f"noop-{outer[0].lower()}-again")(build)


_ROUNDINGS = ("Ceil", "Floor", "Round")
a, b = Var(), Var()


@rule(Op("Where", c, a, b))
def noop_where(m: Match, rw: Rewriter) -> ir.Value | None:
    """Always the same branch."""
    condition = m[c]
    if not (uniform(condition, True) or uniform(condition, False)):
        return m.fail("both branches are taken")
    chosen = m[a] if condition.flat[0] else m[b]
    return _chosen(m, chosen)


@rule(Op("Where", x, a, a))
def noop_where_same(m: Match, rw: Rewriter) -> ir.Value | None:
    """Both branches are one value."""
    return _chosen(m, m[a])


def _chosen(m: Match, value: ir.Value) -> ir.Value | None:
    return value if same_shape(value, m.root.outputs[0]) else m.fail("it may broadcast")


@rule(Op("Clip", x, variadic=True))
def noop_clip(m: Match, rw: Rewriter) -> ir.Value | None:
    """Integers without bounds. Those of floating-point numbers are finite, and cut infinity."""
    if not _is_integer(m[x]):
        return m.fail("infinity may be cut off")
    low, high = _bound(m, 1), _bound(m, 2)
    if low is None or high is None:
        return m.fail("the bounds are computed")
    limits = np.iinfo(m[x].dtype.numpy())  # type: ignore[union-attr]
    if (low > limits.min).any() or (high < limits.max).any():
        return m.fail("it may cut off")
    return m[x]


def _bound(m: Match, index: int) -> np.ndarray[Any, Any] | None:
    """A bound of Clip: empty where it is absent, None where it is computed."""
    value = m.root.inputs[index] if index < len(m.root.inputs) else None
    return np.empty(0) if value is None else ir.array(value)


@rule(Op(("Max", "Mean", "Min", "Sum"), x))
def noop_of_one(m: Match, rw: Rewriter) -> ir.Value:
    """Of one tensor."""
    return m[x]


VALUE_RULES = (
    noop_cast,
    noop_cast_like,
    noop_cast_back,
    noop_one,
    noop_add,
    noop_sub,
    noop_logical,
    noop_bitwise,
    noop_shift,
    noop_same_operand,
    _twice("Not"),
    _twice("Neg"),
    _twice("BitwiseNot"),
    _again(("Relu",), ("Relu",)),
    _again(("Abs",), ("Abs",)),
    _again(("Sign",), ("Sign",)),
    _again(_ROUNDINGS, _ROUNDINGS),
    noop_where,
    noop_where_same,
    noop_clip,
    noop_of_one,
)

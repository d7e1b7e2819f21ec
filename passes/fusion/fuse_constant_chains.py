"""Additions and multiplications of constants one behind the other into one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from graphopt import Const, Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.kernels import end_of_kernel
from graphopt.passes.fusion.linear import Array, Unfit, is_float, only_use, round_to

__all__ = ["FuseConstantChains"]

_const = Const()
_added = Op(("Add", "Sub"), Var(), Var())
_multiplied = Op(("Mul", "Div"), Var(), Var())

# What the record of a node takes in a file, estimated low.
_NODE_BYTES = 64

# (x + big) - big rounds x to a multiple of some power of two. Who writes that means it.
_CANCELLED = 2.0**-10


@dataclasses.dataclass(frozen=True)
class _Step:
    """A node that combines something with a constant.

    Attributes:
        x: The something.
        sign: -1 where it is subtracted from the constant, or is what the constant is divided by.
        number: The constant, float64: what is added, or multiplied by.
        given: The constant as it is in the model.
    """

    x: ir.Value
    sign: int
    number: Array
    given: ir.Value


@rule(Op(("Add", "Sub"), _added, _const))
def fuse_sums(m: Match, rw: Rewriter) -> Replacement:
    """A summand behind another."""
    return _fuse(m, rw, m[_added])


@rule(Op("Sub", _const, _added))
def fuse_differences(m: Match, rw: Rewriter) -> Replacement:
    """A constant minus a sum with another."""
    return _fuse(m, rw, m[_added])


@rule(Op(("Mul", "Div"), _multiplied, _const))
def fuse_products(m: Match, rw: Rewriter) -> Replacement:
    """A factor behind another."""
    return _fuse(m, rw, m[_multiplied])


def _fuse(m: Match, rw: Rewriter, node: ir.Node) -> Replacement:
    inner, outer = _step(node), _step(m.root)
    if inner is None or outer is None:
        return None
    kernel = end_of_kernel(inner.x)
    if kernel is not None:
        return m.fail(f"the first is part of a {kernel}, which runtimes have a kernel for")
    if not is_float(inner.given):
        return m.fail("integers overflow in ways of their own")
    try:
        _check_size(inner, outer)
        if node.op_type in ("Add", "Sub"):
            exact = inner.number * outer.sign + outer.number
            sign = inner.sign * outer.sign
            largest = np.maximum(np.abs(inner.number), np.abs(outer.number))
            if (np.abs(exact) < _CANCELLED * largest).any():
                raise Unfit("the constants cancel, which may be meant to round")
            op = "Add" if sign > 0 else "Sub"
        else:
            if inner.sign < 0:
                raise Unfit("it divides by a variable")
            divides = node.op_type == m.root.op_type == "Div"
            with np.errstate(all="ignore"):
                exact = inner.number * outer.number
                exact = 1 / exact if divides else exact
            sign, op = 1, "Div" if divides else "Mul"
        number = _rounded(exact, inner, outer)
    except Unfit as e:
        return m.fail(str(e))
    value = rw.const(number, inner.given.name or "constant")
    return rw.op(op, inner.x, value) if sign > 0 else rw.op(op, value, inner.x)


def _step(node: ir.Node) -> _Step | None:
    left, right = node.inputs
    if left is None or right is None:
        return None
    data, x, given, sign = ir.array(right), left, right, 1
    if data is None:
        data, x, given = ir.array(left), right, left
        sign = -1 if node.op_type in ("Sub", "Div") else 1
    if data is None:
        return None
    number = data.astype(np.float64)
    if node.op_type == "Sub" and sign > 0:
        number = -number
    if node.op_type == "Div" and sign > 0:
        with np.errstate(divide="ignore"):
            number = 1 / number
    return _Step(x, sign, number, given)


def _check_size(inner: _Step, outer: _Step) -> None:
    """Decline constants that do not fit together, or take more bytes together than apart."""
    try:
        shape = np.broadcast_shapes(inner.number.shape, outer.number.shape)
    except ValueError:
        raise Unfit("the constants do not fit together") from None
    tensors = {value: ir.const(value) for value in (inner.given, outer.given)}
    gone = sum(t.nbytes for value, t in tensors.items() if t is not None and only_use(value))
    given = tensors[inner.given]
    if given is not None and math.prod(shape) * given.dtype.itemsize > gone + _NODE_BYTES:
        raise Unfit("the new constant would be larger than what it replaces")


def _rounded(exact: Array, inner: _Step, outer: _Step) -> Array:
    """The new constant in the type of the two that it replaces."""
    old = ir.array(inner.given)
    assert old is not None
    number = round_to(exact, old.dtype, "the constant")
    error = np.abs(number.astype(np.float64) - exact)
    # Half a unit in the last place of a normal number of 8 significant bits, 11 bits, 24 bits ...
    precision = 2.0**-8 if number.dtype.itemsize == 2 else float(np.finfo(number.dtype).eps)
    if number.dtype == np.float16:
        precision = 2.0**-11
    if (error > precision * np.abs(exact)).any():
        raise Unfit("the constant would lose its precision")
    return number


class FuseConstantChains(RewritePass):
    """Merge additions, and multiplications, of constants one behind the other.

    What it does: Add and Sub of two constants become one of their sum; Mul and Div by two constants
    become one by their product. The constant is computed in float64 and rounded once.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Mul(Mul(x, a), b) -> Mul(x, a * b)

    Declines when: the numbers are integers; a division is by the variable; the two summands cancel
    to less than a thousandth, which programs do on purpose to round; the product overflows or loses
    precision; the new constant would be larger than the two; the first operation is the last of a
    Gelu or LayerNormalization made of simpler operators; something else uses the inner result.

    References: ONNX operators Add, Sub, Mul, Div (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-constant-chains"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (fuse_sums, fuse_differences, fuse_products)

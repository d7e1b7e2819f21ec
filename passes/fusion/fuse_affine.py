"""Multiplications and additions of constants into the linear operator before them."""

from __future__ import annotations

import numpy as np

from graphopt import Const, Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.linear import LINEAR, Array, Linear, Unfit, describe

__all__ = ["FuseAffine"]

_const = Const()
_linear = Op(LINEAR, variadic=True)
_biased = Op(tuple(op for op in LINEAR if op != "MatMul"), variadic=True)
_matmul = Op("MatMul", Var(), Var())
_add = Op("Add", _matmul, Var())


@rule(Op(("Mul", "Div"), _linear, _const))
def fuse_scale(m: Match, rw: Rewriter) -> Replacement:
    """A factor behind Conv, ConvTranspose, Gemm or MatMul."""
    return _fuse(m, rw, m[_linear])


@rule(Op(("Add", "Sub"), _biased, _const))
def fuse_shift(m: Match, rw: Rewriter) -> Replacement:
    """A summand behind Conv, ConvTranspose or Gemm."""
    return _fuse(m, rw, m[_biased])


@rule(Op("Sub", _const, _biased))
def fuse_reverse_sub(m: Match, rw: Rewriter) -> Replacement:
    """A constant minus the result of Conv, ConvTranspose or Gemm."""
    return _fuse(m, rw, m[_biased], negate=True)


@rule(Op(("Mul", "Div", "Add", "Sub"), _add, _const))
def fuse_affine_behind_add(m: Match, rw: Rewriter) -> Replacement:
    """A constant behind MatMul and Add."""
    return _fuse(m, rw, m[_matmul], m[_add])


@rule(Op("Sub", _const, _add))
def fuse_reverse_sub_behind_add(m: Match, rw: Rewriter) -> Replacement:
    """A constant minus the result of MatMul and Add."""
    return _fuse(m, rw, m[_matmul], m[_add], negate=True)


def _fuse(
    m: Match, rw: Rewriter, node: ir.Node, add: ir.Node | None = None, *, negate: bool = False
) -> Replacement:
    try:
        linear = describe(node, add)
        data = linear.per_channel(m[_const])
        scale, shift = affine(m.root.op_type, data, negate=negate)
        weight, bias = _folded(linear, scale, shift, m.value(_const))
    except Unfit as e:
        return m.fail(str(e))
    linear.update(rw, weight, bias)
    return (linear.holder or linear.node).outputs[0]


def _folded(
    linear: Linear, scale: Array | None, shift: Array | None, freed: ir.Value
) -> tuple[Array | None, Array | None]:
    """New weight and new bias, None where they stay as they are."""
    bias = None
    if linear.bias is not None or shift is not None:
        added = linear.added()
        if scale is not None:
            added = added * scale
        if shift is not None:
            added = added + shift
        bias = linear.rebias(added, (freed,))
    return None if scale is None else linear.scaled(scale), bias


def affine(op: str, data: Array, *, negate: bool = False) -> tuple[Array | None, Array | None]:
    """What Mul, Div, Add or Sub with a constant multiplies by, and what it then adds.

    Args:
        op: The operator.
        data: The constant, float64.
        negate: For Sub, whether the constant is what is subtracted from.

    Returns:
        Factor and summand; None for 1 and 0.

    Raises:
        Unfit: It divides by zero.
    """
    if op == "Mul":
        return data, None
    if op == "Div":
        if not data.all():
            raise Unfit("it divides by zero")
        return 1.0 / data, None
    if op == "Add":
        return None, data
    return (-np.ones(1), data) if negate else (None, -data)


class FuseAffine(RewritePass):
    """Fold multiplications and additions of constants into the linear operator before them.

    What it does: Mul, Div, Add and Sub of the result of Conv, ConvTranspose, Gemm, MatMul, or
    MatMul and Add with a constant per channel become part of the weight and the bias. New weights
    are computed in float64 and rounded once.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Mul(Conv(x, w, b), k) -> Conv(x, w', b')

    Declines when: the constant varies over positions or samples, or gives the result another shape
    or rank; something else uses the result of the operator or its weight; weight or bias are not
    constant; the file would grow, as when a scalar becomes a bias of many channels; folded weights
    overflow, lose precision in float16, or are integers; a division is by zero; an addition follows
    a MatMul (see fuse-gemm).

    References: ONNX operators Conv, ConvTranspose, Gemm, MatMul
    (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-affine"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (
        fuse_scale,
        fuse_shift,
        fuse_reverse_sub,
        fuse_affine_behind_add,
        fuse_reverse_sub_behind_add,
    )

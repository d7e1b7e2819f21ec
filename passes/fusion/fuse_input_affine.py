"""Multiplications and additions of constants into the linear operator behind them."""

from __future__ import annotations

import numpy as np

from graphopt import Const, Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.fuse_affine import affine
from graphopt.passes.fusion.kernels import end_of_kernel
from graphopt.passes.fusion.linear import (
    LINEAR,
    Array,
    Linear,
    Unfit,
    describe,
    flat,
    multiply,
    only_use,
)

__all__ = ["FuseInputAffine"]

# Inputs of order one behind a shift keep their precision up to this: 1,024 in float32.
_CANCELLED = 2.0**-13

_x, _const = Var(), Const()
_scale = Op(("Mul", "Div"), _x, _const)
_shift = Op(("Add", "Sub"), _x, _const)


@rule(Op(LINEAR, _scale, variadic=True))
def fuse_input_scale(m: Match, rw: Rewriter) -> Replacement:
    """A factor before Conv, ConvTranspose, Gemm or MatMul."""
    try:
        linear = describe(m.root)
        if not only_use(linear.weight):
            raise Unfit("others use the weight too: it would be stored twice")
        data = _per_input(linear, m[_x], m[_const])
        scale, _ = affine(m[_scale].op_type, data)
        assert scale is not None
        weight = multiply(linear.data, _along_inputs(linear, scale))
    except Unfit as e:
        return m.fail(str(e))
    linear.update(rw, weight, None)
    rw.set_input(m.root, 0, m[_x])
    return m.root.outputs[0]


@rule(Op(("Conv", "Gemm"), _shift, variadic=True))
def fuse_input_shift(m: Match, rw: Rewriter) -> Replacement:
    """A summand before a Gemm or a Conv that does not pad."""
    try:
        linear = describe(m.root)
        data = _per_input(linear, m[_x], m[_const])
        _, shift = affine(m[_shift].op_type, data)
        assert shift is not None
        bias = linear.rebias(linear.added() + _through(linear, shift), (m.value(_const),))
    except Unfit as e:
        return m.fail(str(e))
    linear.update(rw, None, bias)
    rw.set_input(m.root, 0, m[_x])
    return m.root.outputs[0]


def _per_input(linear: Linear, x: ir.Value, data: Array) -> Array:
    """The constant as float64 of shape [1] or [input channels]."""
    kernel = end_of_kernel(x)
    if kernel is not None:
        raise Unfit(f"it is part of a {kernel}, which runtimes have a kernel for")
    node, weight = linear.node, linear.data
    if node.op_type in ("Conv", "ConvTranspose"):
        rank, trailing = weight.ndim, weight.ndim - 2
        channels = weight.shape[1] * linear.groups if node.op_type == "Conv" else weight.shape[0]
    else:
        transposed = node.op_type == "Gemm" and bool(ir.attr(node, "transB", 0))
        channels = weight.shape[1] if transposed else weight.shape[0]
        trailing = 1 if node.op_type == "Gemm" and ir.attr(node, "transA", 0) else 0
        rank = 2
    known = ir.dims(x)
    if known is None:
        raise Unfit("the shape of the input is not known")
    if node.op_type == "MatMul":
        rank = len(known)
    if len(known) != rank:
        raise Unfit("the constant gives the input a higher rank")
    values = flat(data, rank, trailing, channels)
    if values.size > 1 and known[rank - 1 - trailing] != channels:
        raise Unfit("the constant may broadcast the input to more channels")
    return values


def _along_inputs(linear: Linear, factor: Array) -> Array:
    """``factor``, of shape [1] or [input channels], in a shape that multiplies the weight."""
    shape, op = linear.data.shape, linear.node.op_type
    if factor.size == 1:
        return factor.reshape(())
    if op == "Conv":
        # [outputs, inputs of the group, ...]: the outputs of a group are neighbours.
        rows = np.repeat(factor.reshape(linear.groups, -1), shape[0] // linear.groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))
    if op == "Gemm" and ir.attr(linear.node, "transB", 0):
        return factor.reshape(1, -1)
    return factor.reshape(-1, *[1] * (len(shape) - 1))


def _through(linear: Linear, shift: Array) -> Array:
    """What a linear operator makes of a constant input, as float64 of shape [output channels]."""
    node, data = linear.node, linear.data
    if data.dtype.itemsize == 2:
        raise Unfit("the sum over the weight would lose precision in 16 bits")
    if np.abs(shift).max(initial=0.0) * np.finfo(data.dtype).eps > _CANCELLED:
        raise Unfit("next to so large a shift rounding would hide small differences of the input")
    pads = any(ir.attr(node, "pads", ()))
    if pads or ir.attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unfit("the operator pads its input with zeros, which are not shifted")
    terms = data.astype(np.float64) * _along_inputs(linear, shift)
    if node.op_type == "Conv":
        return np.asarray(terms.reshape(data.shape[0], -1).sum(axis=1))
    axis = 1 if ir.attr(node, "transB", 0) else 0
    return np.asarray(terms.sum(axis=axis)) * float(ir.attr(node, "alpha", 1.0))


class FuseInputAffine(RewritePass):
    """Fold multiplications and additions of constants into the linear operator behind them.

    What it does: Mul and Div of the input of Conv, ConvTranspose, Gemm or MatMul by a constant per
    input channel become part of the weight; Add and Sub become part of the bias of a Gemm or of a
    Conv that does not pad. This takes the normalization of images into the first convolution. New
    weights are computed in float64 and rounded once.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Conv(Mul(x, k), w, b) -> Conv(x, w', b)

    Declines when: the constant varies over positions or samples; the shape of the input is not
    known or the constant changes it; the operation is the last of a Gelu or LayerNormalization made
    of simpler operators, which ONNX Runtime computes by one kernel; something else uses the scaled
    input or the weight; weight or bias are not constant; a shift meets padding or 16-bit floats, or
    is beyond 1,024 in float32, next to which small differences of the input would be lost in
    rounding; the file would grow; folded weights overflow or lose precision in float16; a division
    is by zero.

    References: ONNX operators Conv, ConvTranspose, Gemm, MatMul
    (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-input-affine"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (fuse_input_scale, fuse_input_shift)

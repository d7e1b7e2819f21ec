"""Batch normalization into the linear operator before it."""

from __future__ import annotations

import numpy as np

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.linear import (
    LINEAR,
    Array,
    Linear,
    Unfit,
    constant,
    describe,
    round_to,
)

__all__ = ["FuseBatchNorm"]

_gamma, _beta, _mean, _var = Var(), Var(), Var(), Var()
_linear = Op(LINEAR, variadic=True)
_matmul = Op("MatMul", Var(), Var())
_add = Op("Add", _matmul, Var())
_behind_linear = Op("BatchNormalization", _linear, _gamma, _beta, _mean, _var)
_behind_add = Op("BatchNormalization", _add, _gamma, _beta, _mean, _var)


@rule(_behind_linear)
def fuse_batch_norm(m: Match, rw: Rewriter) -> Replacement:
    """Scale and shift the weights of Conv, ConvTranspose, Gemm or MatMul."""
    try:
        return _fuse(m, rw, describe(m[_linear]))
    except Unfit as e:
        return m.fail(str(e))


@rule(_behind_add)
def fuse_batch_norm_behind_add(m: Match, rw: Rewriter) -> Replacement:
    """Scale and shift the weights of MatMul and Add."""
    try:
        linear = describe(m[_matmul], m[_add])
        linear.added()
        return _fuse(m, rw, linear)
    except Unfit as e:
        return m.fail(str(e))


def _fuse(m: Match, rw: Rewriter, linear: Linear) -> Replacement:
    if trains(m.root):
        raise Unfit("it is in training mode: it normalizes with the statistics of the batch")
    if not ir.attr(m.root, "spatial", 1):
        raise Unfit("it has statistics per position (spatial=0)")
    if linear.rank is None or linear.rank - 1 - linear.trailing != 1:
        raise Unfit("what it normalizes are not the output channels")
    scale, shift = _affine(m, linear.channels)
    weight = linear.scaled(scale)
    freed = tuple(m.value(v) for v in (_gamma, _beta, _mean, _var))
    if linear.holder is not None:
        bias = linear.rebias(linear.added() * scale + shift, freed)
        linear.update(rw, weight, bias)
        return linear.holder.outputs[0]
    if not shift.any():
        linear.update(rw, weight, None)
        return linear.node.outputs[0]
    name = linear.weight.name or "weight"
    return rw.op(
        "Gemm",
        linear.node.inputs[0],
        rw.const(weight, name),
        rw.const(round_to(shift, weight.dtype, "the bias"), f"{name}.bias"),
    )


def trains(node: ir.Node) -> bool:
    """Whether a BatchNormalization normalizes with the statistics of the batch at hand.

    Before opset 14 the number of outputs says so, whether something uses them or not.
    """
    return bool(ir.attr(node, "training_mode", 0)) or any(
        v.name or v.uses() for v in node.outputs[1:]
    )


def _affine(m: Match, channels: int) -> tuple[Array, Array]:
    """What the normalization multiplies by and what it then adds, per channel."""
    found = []
    for value, what in ((_gamma, "scale"), (_beta, "B"), (_mean, "mean"), (_var, "var")):
        data = constant(m.value(value), f"its {what}")
        if data.shape != (channels,):
            raise Unfit(f"its {what} does not have one element per channel")
        found.append(data.astype(np.float64))
    gamma, beta, mean, var = found
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(var + float(ir.attr(m.root, "epsilon", 1e-5)))
    if not np.isfinite(scale).all():
        raise Unfit("its variance is not positive")
    return scale, beta - mean * scale


class FuseBatchNorm(RewritePass):
    """Fold a batch normalization into the linear operator before it.

    What it does: a BatchNormalization in inference mode multiplies every channel by a constant and
    adds another, so Conv, ConvTranspose, Gemm, MatMul, or MatMul and Add with constant weights can
    do its work. New weights are computed in float64 and rounded once. A MatMul becomes a Gemm where
    it needs a bias.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: BatchNormalization(Conv(x, w), scale, b, mean, var) -> Conv(x, w', b')

    Declines when: the normalization is in training mode (training_mode=1, or before opset 14 more
    than one output), has statistics per position (spatial=0), or parameters that are not constant;
    something else uses the result of the operator or its weight; the bias is not constant; there is
    no linear operator before it; folded weights overflow or lose precision in float16.

    References: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3.2.
    """

    name = "fuse-batch-norm"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (fuse_batch_norm, fuse_batch_norm_behind_add)

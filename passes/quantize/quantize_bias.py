"""Biases in the integers that accumulators count in."""

from __future__ import annotations

import numpy as np

from graphopt import (
    Context,
    Exactness,
    Match,
    NotApplicable,
    Op,
    Replacement,
    RewritePass,
    Rewriter,
    Rule,
    ir,
)
from graphopt.passes.quantize._grids import (
    Grid,
    dequantize,
    is_dequantize,
    known,
    limits,
    make,
    read,
    same,
)
from graphopt.passes.quantize._scheme import static_scheme

__all__ = ["QuantizeBias"]

_linear = Op(("Conv", "ConvTranspose", "Gemm"), variadic=True)


def quantize_bias(m: Match, rw: Rewriter) -> Replacement:
    """Store a constant bias as int32 in units of the product of the scales."""
    node = m.root
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    numbers = known(bias)
    grids = [_grid(v) for v in node.inputs[:2]]
    x, w = grids
    if bias is None or numbers is None or x is None or w is None:
        return None
    if x.axis is not None or numbers.ndim != 1 or numbers.dtype != np.float32:
        return m.fail("its bias is not a float32 vector, or its input has a scale per channel")
    scale = np.asarray(x.scale * w.scale, np.float32)
    if w.axis is not None and scale.shape != numbers.shape:
        return m.fail("the scales of its weight do not go with its bias")
    axis = None if w.axis is None else 0
    grid = make(scale, np.zeros(scale.shape), axis, ir.DataType.INT32)
    have = _grid(bias)
    if have is not None and same(have, grid):
        return None
    if not (scale > 0).all():
        return m.fail("the product of its scales is zero")
    codes = np.rint(numbers.astype(np.float64) / scale)
    low, high = limits(ir.DataType.INT32)
    if not ((codes >= low) & (codes <= high)).all():
        return m.fail("its bias is too large for int32")
    name = bias.name or "bias"
    new = dequantize(rw, rw.const(codes.astype(np.int32), f"{name}.int32"), grid)
    rw.set_input(node, 2, new)
    return node.outputs[0]


def _grid(value: ir.Value | None) -> Grid | None:
    node = None if value is None else value.producer()
    if node is None or not is_dequantize(node):
        return None
    grid = read(node)
    return None if isinstance(grid, str) else grid


class QuantizeBias(RewritePass):
    """Store biases as int32 in units of the product of the scales of input and weight.

    What it does: integer kernels add the bias to sums of products of integers. ONNX Runtime's CPU
    kernels quantize a bias in floating point when they load a model; other consumers, as NNAPI,
    want to be given int32.

    Exactness: LOSSY. A bias moves by at most half of the smallest step of the sums that it is added
    to, thousands of which are one step of the result; but where that decides how a result is
    rounded, it is off by a step.

    Needs: nothing

    Options: none

    Example: Conv(DQ(x, s), DQ(w, t), b) -> Conv(DQ(x, s), DQ(w, t), DQ(int32(b / (s * t)), s * t))

    Declines when: the target wants biases in floating point; the bias is no vector; it does not fit
    int32; the input has a scale per channel.

    References: ONNX operator QLinearConv, input B
    (https://onnx.ai/onnx/operators/onnx__QLinearConv.html).
    """

    name = "quantize-bias"
    exactness = Exactness.LOSSY
    min_opset = 10

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        """The rule, where the target wants integers."""
        if static_scheme(ctx).bias != "int32":
            raise NotApplicable(f"target {ctx.target.name} does not want integer biases")
        return (Rule("quantize-bias", _linear, quantize_bias),)

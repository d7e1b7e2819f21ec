"""Rules that store constant weights as the integers that the target's kernels take."""

from __future__ import annotations

import numpy as np

from graphopt import Const, Match, Op, Replacement, Rewriter, Rule, ir, rule
from graphopt.passes.quantize._grids import (
    integers,
    is_dequantize,
    known,
    limits,
    make,
    read,
    zero_point,
)
from graphopt.targets import Scheme

__all__ = ["weight_rules"]

_data = Const()
_quantize = Op("QuantizeLinear", _data, variadic=True)
_dequantize = Op("DequantizeLinear", _data, variadic=True, shared=True)
_transpose = Op("Transpose", _dequantize)


@rule(_quantize)
def fold_quantized_constant(m: Match, rw: Rewriter) -> Replacement:
    """Quantize a constant now."""
    grid = read(m.root)
    if isinstance(grid, str):
        return m.fail(grid)
    tensor = ir.const(m.value(_data))
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT:
        return m.fail("the constant is not float32")
    data = m[_data]
    if not np.isfinite(data).all():
        return m.fail("the constant holds numbers that are not finite")
    name = f"{m.value(_data).name}.quantized"
    return rw.const(grid.quantize(data), name)


@rule(_transpose)
def fold_transposed_weight(m: Match, rw: Rewriter) -> Replacement:
    """Transpose the integers of a constant, so that its dequantizer is next to who uses it."""
    node = m[_dequantize]
    grid = read(node)
    if isinstance(grid, str):
        return m.fail(grid)
    codes = m[_data]
    order = ir.attr(m.root, "perm") or tuple(reversed(range(codes.ndim)))
    turned = rw.const(np.transpose(codes, order), m.value(_data).name or "weight")
    axis = None if grid.axis is None else order.index(grid.axis)
    return rw.op("DequantizeLinear", turned, *node.inputs[1:], like=node, axis=axis)


def weight_rules(scheme: Scheme) -> tuple[Rule, ...]:
    """Rules towards the weights of a scheme."""
    wanted = ir.DataType[scheme.weight.dtype.upper()]
    low, high = limits(wanted)
    centre = (low + high + 1) // 2

    @rule(_dequantize)
    def store_weight(m: Match, rw: Rewriter) -> Replacement:
        """Store a weight of another integer type, or off centre, as the target wants it."""
        tensor = ir.const(m.value(_data))
        uses = tuple(m.root.outputs[0].uses())
        if tensor is None or not uses or tensor.dtype == ir.DataType.INT32:
            return None
        for use in uses:
            kernel = scheme.kernel(use.node)
            if isinstance(kernel, str) or kernel.weight != use.idx:
                return None
        grid = read(m.root)
        if isinstance(grid, str):
            return m.fail(grid)
        if integers(grid) == wanted and (
            not scheme.weight.symmetric or (grid.zero_point == centre).all()
        ):
            least, most = scheme.weight.limits
            if scheme.weight.levels and not ((m[_data] >= least) & (m[_data] <= most)).all():
                return m.fail(f"sums of products may saturate: {scheme.name} has fewer levels")
            return None
        codes = m[_data].astype(np.int64)
        zero = grid.zero_point.astype(np.int64)
        if grid.axis is not None:
            zero = zero.reshape([-1 if i == grid.axis else 1 for i in range(codes.ndim)])
        moved = codes - zero + centre
        if moved.size and (moved.min() < low or moved.max() > high):
            kind = wanted.name.lower()
            return m.fail(f"it does not fit {kind} with zero point {centre}")
        new = rw.const(moved.astype(wanted.numpy()), m.value(_data).name or "weight")
        to = make(grid.scale, np.full_like(grid.scale, centre), grid.axis, wanted)
        rw.set_input(m.root, 0, new)
        rw.set_input(m.root, 2, zero_point(rw, to, new.name or "weight"))
        return m.root.outputs[0]

    @rule(Op(("Conv", "ConvTranspose", "Gemm"), variadic=True))
    def store_bias(m: Match, rw: Rewriter) -> Replacement:
        """Store a dequantized bias in floating point, where the target wants it so."""
        bias = m.root.inputs[2] if len(m.root.inputs) > 2 else None
        numbers = None if bias is None or not is_dequantize(bias.producer()) else known(bias)
        if numbers is None or bias is None:
            return None
        rw.set_input(m.root, 2, rw.const(numbers, bias.name or "bias"))
        return m.root.outputs[0]

    rules = (fold_quantized_constant, fold_transposed_weight, store_weight)
    return (*rules, store_bias) if scheme.bias == "float" else rules

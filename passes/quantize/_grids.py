"""Grids: which real numbers the integers between a quantizer and its dequantizers stand for."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from graphopt import Rewriter, ir
from graphopt.quant import QParams
from graphopt.targets import Format

__all__ = [
    "Array",
    "Grid",
    "dequantize",
    "integers",
    "is_dequantize",
    "is_quantize",
    "known",
    "limits",
    "make",
    "pair",
    "quantize",
    "read",
    "same",
    "shifted",
    "zero_point",
]

Array: TypeAlias = "np.ndarray[Any, Any]"
Grid: TypeAlias = QParams

_INTEGERS = frozenset({
    ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32,
})  # fmt: skip


def make(scale: Array, zero: Array, axis: int | None, dtype: ir.DataType) -> Grid:
    """A grid of integers of some type.

    Args:
        scale: float32, a scalar or one per channel.
        zero: Integers of any type, of the shape of the scale.
        axis: Axis of the channels, not negative; None for a scalar scale.
        dtype: Type of the integers.
    """
    return QParams(scale, zero.astype(dtype.numpy()), Format(dtype.name.lower()), axis)


def integers(grid: Grid) -> ir.DataType:
    """Type of the integers of a grid."""
    return ir.DataType[grid.format.dtype.upper()]


def limits(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest number of an integer type."""
    return Format(dtype.name.lower()).limits


def same(a: Grid, b: Grid) -> bool:
    """Whether integers are of one type and equal ones stand for equal numbers."""
    return (
        (a.axis, a.format.dtype) == (b.axis, b.format.dtype)
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(a.zero_point, b.zero_point)
    )


def shifted(grid: Grid, dtype: ir.DataType, by: int | Array) -> Grid:
    """The same numbers, of integers of a type that are larger by some number."""
    return make(grid.scale, grid.zero_point.astype(np.int64) + by, grid.axis, dtype)


def is_quantize(node: ir.Node | None) -> bool:
    """Whether a node is a QuantizeLinear of the default domain."""
    return node is not None and node.op_type == "QuantizeLinear" and not node.domain


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether a node is a DequantizeLinear of the default domain."""
    return node is not None and node.op_type == "DequantizeLinear" and not node.domain


def read(node: ir.Node) -> Grid | str:
    """The grid of a QuantizeLinear or DequantizeLinear, or why it is not known."""
    if ir.attr(node, "block_size", 0):
        return "it has a scale per block"
    number = ir.DataType(ir.attr(node, "output_dtype", 0) or ir.DataType.FLOAT)
    if is_quantize(node):
        source = node.inputs[0]
        number = (source.dtype if source is not None else None) or ir.DataType.FLOAT
    if number != ir.DataType.FLOAT or ir.attr(node, "precision", 0):
        return "it does not stand for float32 numbers"
    scale = ir.array(node.inputs[1])
    if scale is None:
        return "its scale is computed"
    if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
        return "its scale is not a positive float32"
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        tensor = ir.const(given)
        if tensor is None:
            return "its zero point is computed"
        dtype, zero = tensor.dtype, tensor.numpy()
    else:
        wanted = ir.attr(node, "output_dtype", 0) if is_quantize(node) else 0
        source = node.inputs[0]
        found = source.dtype if not is_quantize(node) and source is not None else None
        dtype = ir.DataType(wanted) if wanted else found or ir.DataType.UINT8
        zero = np.zeros(scale.shape, np.int64)
    if dtype not in _INTEGERS:
        return f"it quantizes to {dtype.name.lower()}"
    if scale.size == 1 and zero.size == 1:
        return make(scale.reshape(()), zero.reshape(()), None, dtype)
    rank, axis = ir.rank(node.inputs[0]), int(ir.attr(node, "axis", 1))
    if scale.ndim != 1 or zero.shape != scale.shape:
        return "it has a scale per block"
    if axis < 0 and rank is None:
        return "its axis is not known"
    return make(scale, zero, axis if axis >= 0 else axis + (rank or 0), dtype)


def known(value: ir.Value | None) -> Array | None:
    """The numbers of a constant, be it dequantized, or None for other values."""
    node = None if value is None else value.producer()
    if node is None or not is_dequantize(node):
        return ir.array(value)
    codes, grid = ir.array(node.inputs[0]), read(node)
    return None if codes is None or isinstance(grid, str) else grid.dequantize(codes)


def _constants(rw: Rewriter, grid: Grid, name: str) -> tuple[ir.Value, ir.Value]:
    return rw.const(grid.scale, f"{name}.scale"), zero_point(rw, grid, name)


def zero_point(rw: Rewriter, grid: Grid, name: str) -> ir.Value:
    """A new constant with the zero point of a grid."""
    return rw.const(grid.zero_point, f"{name}.zero")


def quantize(rw: Rewriter, x: ir.Value, grid: Grid) -> ir.Value:
    """A new QuantizeLinear of a value."""
    made = rw.op("QuantizeLinear", x, *_constants(rw, grid, x.name or "value"), axis=grid.axis)
    return _described(made, x, integers(grid))


def dequantize(rw: Rewriter, codes: ir.Value, grid: Grid) -> ir.Value:
    """A new DequantizeLinear of a value."""
    made = rw.op(
        "DequantizeLinear", codes, *_constants(rw, grid, codes.name or "value"), axis=grid.axis
    )
    return _described(made, codes, ir.DataType.FLOAT)


def pair(rw: Rewriter, x: ir.Value, grid: Grid) -> ir.Value:
    """A new QuantizeLinear of a value and the DequantizeLinear of that."""
    codes = quantize(rw, x, grid)
    node = codes.producer()
    assert node is not None
    made = rw.op("DequantizeLinear", codes, *node.inputs[1:], axis=grid.axis)
    return _described(made, x, ir.DataType.FLOAT)


def _described(made: ir.Value, like: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = made.producer()
    assert node is not None
    node.name = made.name  # ONNX Runtime refuses two nodes of the same name
    made.type = ir.TensorType(dtype)
    made.shape = None if like.shape is None else like.shape.copy()
    return made

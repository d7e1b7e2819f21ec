"""Operators on integers with the channels last: what they read, and how to spell them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.quantize._grids import Array, read
from graphopt.passes.quantize._qlinear import CONTRIB

__all__ = ["Form", "form"]

Inputs = list["ir.Value | None"]
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """How an operator is spelled with the channels last.

    Attributes:
        reads: Positions of the inputs that have channels.
        build: Makes the node, given its inputs, those with channels being channels-last already.
        wants: Whether ONNX Runtime computes it so, whatever the model says.
        rank: Number of dimensions of what it reads and computes.
    """

    reads: tuple[int, ...]
    build: Callable[[Rewriter, ir.Node, Inputs, int], ir.Value]
    wants: bool = False
    rank: int = 0


def form(node: ir.Node, rank: int) -> Form | None:
    """The channels-last form of an operator on tensors of some rank, or None."""
    found = _contributed(node) if node.domain == CONTRIB else _standard(node, rank)
    return None if found is None else dataclasses.replace(found, rank=rank)


def _standard(node: ir.Node, rank: int) -> Form | None:
    if node.domain:
        return None
    match node.op_type:
        case "QLinearConv":
            return Form((0,), _flagged, wants=True)
        case "QuantizeLinear" | "DequantizeLinear":
            grid = read(node)
            return Form((0,), _alike) if not isinstance(grid, str) and grid.axis is None else None
        case "Clip" | "Identity":
            return Form((0,), _alike)
        case "Concat":
            return Form(tuple(range(len(node.inputs))), _along_axis)
        case "MaxPool":
            takes = rank == 4 and len([v for v in node.outputs if v.name]) == 1
            bytes_ = node.inputs[0] is not None and node.inputs[0].dtype in _BYTES
            return Form((0,), _max_pool) if takes and bytes_ else None
        case "Slice":
            return Form((0,), _slice) if _constant(node, 3) and _constant(node, 1) else None
        case "Pad":
            sized = len(node.inputs) > 1 and _constant(node, 1) and _constant(node, 3)
            return Form((0,), _pad) if sized else None
        case "Resize" if ir.opset(node) > 10:
            plain = ir.attr(node, "axes") is None and ir.attr(node, "mode") == "nearest"
            sized = all(_constant(node, i) for i in (1, 2, 3))
            return Form((0,), _resize) if plain and sized else None
    return None


def _contributed(node: ir.Node) -> Form | None:
    match node.op_type:
        case "QLinearConv" | "QLinearAveragePool" | "QLinearGlobalAveragePool":
            if ir.attr(node, "channels_last", 0):
                return None
            return Form((0,), _flagged, wants=node.op_type == "QLinearConv")
        case "QLinearAdd" | "QLinearMul":
            reads = tuple(i for i in (0, 3) if ir.const(node.inputs[i]) is None)
            return Form(reads, _binary) if reads else None
        case "QLinearLeakyRelu" | "QLinearSigmoid":
            return Form((0,), _alike)
        case "QLinearConcat":
            return Form(tuple(range(2, len(node.inputs), 3)), _along_axis)
    return None


def _constant(node: ir.Node, position: int) -> bool:
    value = node.inputs[position] if position < len(node.inputs) else None
    return value is None or ir.const(value) is not None


def _moved_axis(axis: int, rank: int) -> int:
    """Where an axis is when the channels are last."""
    axis %= rank
    return axis if axis == 0 else rank - 1 if axis == 1 else axis - 1


def _moved_axes(axes: Array, rank: int) -> Array:
    return np.array([_moved_axis(int(a), rank) for a in axes], np.int64)


def _order(numbers: Array) -> Array:
    """Numbers per axis, in the order of the axes when the channels are last."""
    return np.concatenate([numbers[:1], numbers[2:], numbers[1:2]])


def _alike(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    return rw.op(node.op_type, *inputs, like=node, domain=node.domain)


def _flagged(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    return rw.op(node.op_type, *inputs, like=node, domain=CONTRIB, channels_last=1)


def _max_pool(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    return rw.op("NhwcMaxPool", *inputs, like=node, domain=CONTRIB, storage_order=None)


def _along_axis(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    axis = _moved_axis(int(ir.attr(node, "axis")), rank)
    return rw.op(node.op_type, *inputs, like=node, domain=node.domain, axis=axis)


def _binary(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    for i in (0, 3):
        data = ir.array(inputs[i])
        if data is not None and data.size > 1:
            wide = data.reshape((1,) * (rank - data.ndim) + data.shape)
            inputs[i] = rw.const(np.moveaxis(wide, 1, -1), "constant")
    return _alike(rw, node, inputs, rank)


def _slice(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    axes = ir.array(inputs[3]) if len(inputs) > 3 else None
    if axes is None:
        starts = ir.array(inputs[1])
        assert starts is not None
        axes = np.arange(starts.size)
    inputs += [None] * (4 - len(inputs))
    inputs[3] = rw.const(_moved_axes(axes, rank), "axes")
    return _alike(rw, node, inputs, rank)


def _pad(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    axes = ir.array(inputs[3]) if len(inputs) > 3 else None
    if axes is not None:
        inputs[3] = rw.const(_moved_axes(axes, rank), "axes")
        return _alike(rw, node, inputs, rank)
    pads = ir.array(inputs[1])
    assert pads is not None
    inputs[1] = rw.const(np.concatenate([_order(half) for half in np.split(pads, 2)]), "pads")
    return _alike(rw, node, inputs, rank)


def _resize(rw: Rewriter, node: ir.Node, inputs: Inputs, rank: int) -> ir.Value:
    for i in range(1, len(inputs)):
        data = ir.array(inputs[i])
        if data is None or not data.size:
            continue
        halves = np.split(data, 2) if i == 1 else [data]
        new = np.concatenate([_order(half) for half in halves])
        inputs[i] = rw.const(new, "scales")
    return _alike(rw, node, inputs, rank)

"""Codes: integers between quantizers and dequantizers, and the nodes that only move them."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.quantize._grids import (
    Grid,
    is_dequantize,
    is_quantize,
    read,
    shifted,
    zero_point,
)

__all__ = ["MOVERS", "Codes", "moved", "shift", "trace"]

# Operators whose results are elements of their first input (of all of them for Concat), or of a
# constant. Quantizing is monotonic, so it may as well happen before as after them.
MOVERS = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
# Further inputs that hold an element, and so are moved along.
_ELEMENTS = {"Pad": (2,), "Clip": (1, 2)}


def moved(node: ir.Node | None) -> tuple[int, ...]:
    """The inputs that a node takes the elements of its first output from; none for other nodes."""
    if node is None or node.domain or node.op_type not in MOVERS:
        return ()
    if node.op_type == "Resize" and (
        ir.attr(node, "mode") != "nearest"
        or ir.attr(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        return ()
    return tuple(range(len(node.inputs))) if node.op_type == "Concat" else (0,)


def _carries(node: ir.Node) -> tuple[int, ...]:
    """Like ``moved``, for integers: clipping them keeps what they stand for, too."""
    return (0,) if node.op_type == "Clip" and not node.domain else moved(node)


@dataclasses.dataclass(frozen=True)
class Codes:
    """Connected integer values.

    Attributes:
        values: The values, constants aside.
        ends: Quantizers and dequantizers with their grids.
        movers: Nodes between them.
        constants: Constants that dequantizers or movers read.
    """

    values: set[ir.Value] = dataclasses.field(default_factory=set)
    ends: dict[ir.Node, Grid] = dataclasses.field(default_factory=dict)
    movers: set[ir.Node] = dataclasses.field(default_factory=set)
    constants: set[ir.Value] = dataclasses.field(default_factory=set)


def trace(start: ir.Value) -> Codes | str:
    """Everything that the type of an integer value is bound to, or why it cannot change."""
    found = Codes()
    pending = [start]
    graph = start.graph
    while pending:
        value = pending.pop()
        if value in found.values or value in found.constants:
            continue
        if value.is_graph_output() or value.is_graph_input():
            return "its integers are an input or output of the model"
        if ir.const(value) is not None:
            found.constants.add(value)  # who else reads it keeps it as it is
            continue
        found.values.add(value)
        reason = _produced(value, found, pending)
        if reason is not None:
            return reason
        for use in value.uses():
            if use.node.graph is not graph:
                return "its integers are used in a subgraph"
            reason = _used(use.node, use.idx, found, pending)
            if reason is not None:
                return reason
    return found


def _produced(value: ir.Value, found: Codes, pending: list[ir.Value]) -> str | None:
    node = value.producer()
    if node is None:
        return "its integers come from outside of the graph"
    if is_quantize(node):
        return _end(node, found)
    return _moves(node, found, pending)


def _used(node: ir.Node, position: int, found: Codes, pending: list[ir.Value]) -> str | None:
    if is_dequantize(node) and position == 0:
        return _end(node, found)
    if position in _carries(node) or position in _ELEMENTS.get(node.op_type, ()):
        return _moves(node, found, pending)
    return f"its integers are used by {node.op_type}"


def _end(node: ir.Node, found: Codes) -> str | None:
    grid = read(node)
    if isinstance(grid, str):
        return grid
    found.ends[node] = grid
    return None


def _moves(node: ir.Node, found: Codes, pending: list[ir.Value]) -> str | None:
    positions = _carries(node)
    if not positions:
        return f"its integers are computed by {node.op_type}"
    if node in found.movers:
        return None
    found.movers.add(node)
    for position in (*positions, *_ELEMENTS.get(node.op_type, ())):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None:
            pending.append(value)
    outputs = node.outputs if node.op_type == "Split" else node.outputs[:1]
    pending.extend(outputs)
    return None


def shift(rw: Rewriter, codes: Codes, dtype: ir.DataType, by: int) -> None:
    """Store what ``codes`` are as integers of another type that are larger by ``by``."""
    for value in codes.values:
        value.type = ir.TensorType(dtype)
    for value in codes.constants:
        data = np.asarray(ir.array(value)).astype(np.int64) + by
        new = rw.const(data.astype(dtype.numpy()), value.name or "codes")
        for use in tuple(value.uses()):
            if use.node in codes.movers or (use.node in codes.ends and use.idx == 0):
                rw.set_input(use.node, use.idx, new)
    shared: dict[bytes, ir.Value] = {}
    for node, grid in codes.ends.items():
        key = grid.zero_point.tobytes()
        if key not in shared:
            source = node.outputs[0] if is_quantize(node) else node.inputs[0]
            name = source.name if source is not None and source.name else "codes"
            shared[key] = zero_point(rw, shifted(grid, dtype, by), name)
        rw.set_input(node, 2, shared[key])
        if ir.attr(node, "output_dtype", 0) and is_quantize(node):
            rw.set_attr(node, output_dtype=None)
    for node in codes.movers:
        if (
            node.op_type == "Pad"
            and ir.attr(node, "mode") == "constant"
            and (len(node.inputs) < 3 or node.inputs[2] is None)
        ):
            rw.set_input(node, 2, rw.const(np.array(by, dtype.numpy()), "pad"))

"""Rules that spell quantizers and dequantizers the one way that the other rules read."""

from __future__ import annotations

from graphopt import Match, Op, Replacement, Rewriter, Rule, ir, rule
from graphopt.passes.quantize._grids import integers, read

__all__ = ["SPELLING"]

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_any = Op(_PAIR, variadic=True)
_contrib = Op(_PAIR, variadic=True, domain="com.microsoft")
_SINCE = {
    ir.DataType.INT8: 10,
    ir.DataType.UINT8: 10,
    ir.DataType.INT32: 10,
    ir.DataType.INT4: 21,
    ir.DataType.UINT4: 21,
    ir.DataType.INT16: 21,
    ir.DataType.UINT16: 21,
}


@rule(_contrib)
def use_standard_operator(m: Match, rw: Rewriter) -> Replacement:
    """The default domain's operator does what ONNX Runtime's own, older one does."""
    node = m.root
    grid = read(node)
    if isinstance(grid, str):
        return m.fail(grid)
    since = max(_SINCE[integers(grid)], 10 if grid.axis is None else 13)
    if ir.opset(node) < since:
        return m.fail(f"the standard {node.op_type} does it from opset {since} on")
    axis = None if grid.axis is None else ir.attr(node, "axis", 1)
    return rw.op(node.op_type, *node.inputs, like=node, axis=axis, block_size=None)


@rule(_any)
def simplify_grid(m: Match, rw: Rewriter) -> Replacement:
    """One scale for a tensor is a scalar without an axis; an axis counts from the front."""
    node = m.root
    grid = read(node)
    if isinstance(grid, str):
        return None
    if grid.axis is not None:
        if ir.attr(node, "axis") == grid.axis:
            return None
        rw.set_attr(node, axis=grid.axis)
        return node.outputs[0]
    scale = node.inputs[1]
    vector = [v for v in node.inputs[1:3] if v is not None and ir.rank(v) != 0]
    if not vector and "axis" not in node.attributes:
        return None
    for position, value in enumerate(node.inputs[1:3], 1):
        if value in vector:
            data = ir.array(value)
            assert data is not None
            rw.set_input(node, position, rw.const(data.reshape(()), value.name or "scale"))
    assert scale is not None
    rw.set_attr(node, axis=None)
    return node.outputs[0]


SPELLING: tuple[Rule, ...] = (use_standard_operator, simplify_grid)

"""Keeping ONNX Runtime from a fusion that its CPU kernels are slower with.

ONNX Runtime fuses a residual Add and the LayerNormalization behind it into SkipLayerNormalization,
wherever it knows that both inputs have the same shape. Its CPU kernel takes several times as long
as the two did (1.32 on x86-64: 215 against 32 microseconds for 128 x 384), which is much of what
integer products gain. It looks for Add; Sum of two inputs computes the same bits.
"""

from __future__ import annotations

from graphopt import ir
from graphopt.rewrite import Rewriter

__all__ = ["keep_normalizations"]

# Before opset 8 Sum does not broadcast.
_BROADCASTS = 8


def keep_normalizations(rw: Rewriter) -> int:
    """Write a residual Add as Sum where a layer normalization reads it.

    The normalization may be a LayerNormalization or its steps, which ONNX Runtime recognizes. An
    Add of a constant stays: it is a bias, which products take.

    Args:
        rw: Rewriter of the model. The model computes the same bits afterwards.

    Returns:
        How many there were.
    """
    found = [node for node in ir.all_nodes(rw.model) if _is_residual(node)]
    for node in found:
        out = node.outputs[0]
        with rw.at(node):
            new = rw.op("Sum", *node.inputs)
        rw.replace(out, new)
        rw.erase(node)
    return len(found)


def _is_residual(node: ir.Node) -> bool:
    if node.op_type != "Add" or node.domain or ir.opset(node) < _BROADCASTS:
        return False
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    if any(ir.const(v) is not None for v in node.inputs):
        return False
    users = {use.node.op_type for use in node.outputs[0].uses() if not use.node.domain}
    return "LayerNormalization" in users or {"ReduceMean", "Sub"} <= users

"""How many bytes things take in a file, as ``ir.nbytes`` counts them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt import ir

__all__ = ["array_bytes", "constant_bytes", "expected_bytes", "node_bytes"]

_RECORD = 12  # what an initializer takes besides its name and data
_NEW_NAME = 6  # a stored result has the name of what it replaces, and a suffix
_NODE = 32  # a Constant node, where a graph output needs one


def constant_bytes(value: ir.Value) -> int:
    """Bytes of a constant: record, name and data."""
    return _RECORD + len(value.name or "") + _tensor_bytes(value.const_value)


def array_bytes(value: ir.Value, data: np.ndarray[Any, Any]) -> int:
    """Bytes that storing this data instead of computing ``value`` takes."""
    if data.dtype.kind == "O":
        size = sum(len(str(s).encode()) + 2 for s in data.flat)
    elif value.dtype is not None:
        size = math.ceil(data.size * value.dtype.bitwidth / 8)
    else:
        size = data.nbytes
    return _stored(value, size)


def expected_bytes(value: ir.Value) -> int | None:
    """The same before ``value`` has been computed, or None where its size is not known yet."""
    shape = ir.static_shape(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return None
    return _stored(value, math.ceil(math.prod(shape) * value.dtype.bitwidth / 8))


def _stored(value: ir.Value, data: int) -> int:
    node = _NODE if value.is_graph_output() else 0
    return _RECORD + _NEW_NAME + node + len(value.name or "") + data


def node_bytes(node: ir.Node) -> int:
    """Bytes of a node's record, with its subgraphs."""
    total = 8 + len(node.op_type) + len(node.domain) + len(node.name or "")
    for value in (*node.inputs, *node.outputs):
        total += 2 + (len(value.name or "") if value is not None else 0)
    for a in node.attributes.values():
        total += 8 + len(a.name)
        if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        value = None if a.is_ref() else a.value
        if a.type == ir.AttributeType.TENSOR:
            total += _tensor_bytes(value)
        elif isinstance(value, (list, tuple)):
            total += 4 * len(value)
        else:
            total += len(value) if isinstance(value, (str, bytes)) else 2
    for graph in ir.subgraphs(node):
        total += sum(constant_bytes(v) for v in graph.initializers.values())
        total += sum(node_bytes(each) for each in graph)
    return total


def _tensor_bytes(tensor: ir.TensorProtocol | None) -> int:
    if tensor is None:
        return 0
    if isinstance(tensor, ir.StringTensor):
        return sum(len(s) + 2 for s in tensor.string_data())
    return int(tensor.nbytes)

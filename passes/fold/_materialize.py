"""Put a constant in the place of a computed value."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import Rewriter, ir

__all__ = ["materialize"]


def materialize(
    rw: Rewriter, value: ir.Value, data: np.ndarray[Any, Any] | ir.TensorProtocol
) -> ir.Value:
    """Replace a value that a node computes by a constant.

    A graph output needs a node that produces it, so there the constant is a Constant node.

    Args:
        rw: Rewriter of the model.
        value: Output of a node.
        data: What the value is, of the same type.

    Returns:
        The constant.
    """
    node = value.producer()
    assert node is not None
    with rw.at(node):
        if value.is_graph_output():
            name = value.name
            tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
            new = rw.op("Constant", value=tensor)
        else:
            new = rw.const(data, value.name or "constant")
    rw.replace(value, new)
    return new

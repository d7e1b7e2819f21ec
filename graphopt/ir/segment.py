"""A part of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as _ir
from onnx_ir import Model, Value

from graphopt.ir.graph import gc_paused

__all__ = ["segment"]


def segment(model: Model, inputs: Sequence[Value], outputs: Sequence[Value]) -> Model:
    """The nodes between values of the main graph of a model, weights shared with it.

    Args:
        model: The model.
        inputs: Values that are given. Those that a node reads keep type and shape.
        outputs: Values wanted.

    Raises:
        ValueError: An output depends on an input of the model that is not given.
    """
    with gc_paused():
        graph = _ir.convenience.extract(model.graph, list(inputs), list(outputs))
        graph.opset_imports.update(model.graph.opset_imports)
        return _ir.Model(graph, ir_version=model.ir_version, functions=())

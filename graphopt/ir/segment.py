"""A part of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as _ir
from onnx_ir import Model, Value

from graphopt.ir.graph import gc_paused
from graphopt.ir.origin import origin

__all__ = ["segment"]


def segment(model: Model, inputs: Sequence[Value], outputs: Sequence[Value]) -> Model:
    """The nodes between values of the main graph of a model, weights shared with it.

    Args:
        model: The model.
        inputs: Values that are given. They keep type and shape.
        outputs: Values wanted, at least one.

    Raises:
        ValueError: An output depends on an input of the model that is not given.
    """
    with gc_paused():
        try:
            graph = _ir.convenience.extract(model.graph, list(inputs), list(outputs))
        except RuntimeError as e:  # a body reads what is not there
            raise ValueError("an output depends on an input that is not given") from e
        graph.opset_imports.update(model.graph.opset_imports)
        part = _ir.Model(graph, ir_version=model.ir_version, functions=())
        # Bodies of loops are written as they were declared: ONNX Runtime relies on it.
        source, own = origin(model), origin(part)
        own.inner, own.formal = dict(source.inner), dict(source.formal)
        own.value_info, own.annotated = set(source.value_info), source.annotated
        return part

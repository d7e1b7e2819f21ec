"""Make the dims of a model's inputs symbolic, to see what optimizers make of unknown shapes."""

from __future__ import annotations

from typing import Any

import onnx
from _models import fed_inputs


def freed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose fed inputs have a symbol of its own for every dim above 1.

    Dims of 0 and 1 stay, since operators treat them specially (broadcasting, empty tensors). Sizes
    stated elsewhere would contradict and are removed: at outputs, inside, and in subgraphs.

    Args:
        model: Any model; it is not modified.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in fed_inputs(result):
        if value.type.HasField("tensor_type"):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.HasField("dim_value") and dim.dim_value > 1:
                    dim.dim_param = f"{value.name}_{axis}"
    for value in result.graph.output:
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
    del result.graph.value_info[:]
    for node in result.graph.node:
        _clear_subgraphs(node)
    for function in result.functions:
        del function.value_info[:]
        for node in function.node:
            _clear_subgraphs(node)
    return result


def _clear_subgraphs(node: Any) -> None:
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            del graph.value_info[:]
            for value in (*graph.input, *graph.output):
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
            for inner in graph.node:
                _clear_subgraphs(inner)

"""Shape and type inference by onnx, without its quadratic paths and without moving the weights."""

from __future__ import annotations

import onnx
import onnx_ir as _ir
from onnx_ir import Model, Node, Value

from graphopt.ir import schema as _schema
from graphopt.ir.graph import all_graphs, all_nodes, gc_paused, opset
from graphopt.ir.misinferred import (
    forget_after_slices,
    hide_attention,
    slice_to_the_front,
    sort_squeezed_axes,
    tell_apart,
)
from graphopt.ir.origin import opaque
from graphopt.ir.prepare import graphs, has_map
from graphopt.ir.proto import to_proto

__all__ = ["infer_shapes"]

# Data of this many elements can be a shape, axes, pads or repeats; anything larger is a weight.
_SHAPE_DATA = 256
# onnx invents a symbol for every element of a vector that may be a shape.
_MAX_SYMBOLS = 1 << 20


def infer_shapes(model: Model) -> None:
    """Recompute the types and shapes of all values that nodes produce, in place.

    Declared shapes of intermediate values are not trusted, since exporters and hand edits get them
    wrong; they are kept only where the producer has no schema to infer from. Interfaces written to
    files stay as they were declared.
    """
    if opaque(model) is not None:
        return
    with gc_paused():
        foreign = {n for n in all_nodes(model) if not _is_known(n)}
        inferred = _infer(model, {v.name: v for n in foreign for v in n.outputs if v.name})
        for node in all_nodes(model):
            for value in node.outputs:
                if value.name:
                    _apply(value, inferred.get(value.name), trust=node in foreign)
        for graph in all_graphs(model):
            if graph is not model.graph:
                for value in graph.inputs:
                    _apply(value, inferred.get(value.name or ""), trust=False)
        if opset(model) == 10:
            forget_after_slices(model)


def _is_known(node: Node) -> bool:
    return node.domain == "" and _schema.lookup("", node.op_type, opset(node)) is not None


def _infer(model: Model, foreign: dict[str, Value]) -> dict[str, onnx.TypeProto]:
    def weight(value: Value, proto: onnx.TensorProto) -> bool:
        tensor = value.const_value
        # A default that callers may override tells nothing about the shapes that depend on it.
        if tensor is not None and tensor.size <= _SHAPE_DATA and not value.is_graph_input():
            return False
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="location", value="weights")
        return True

    proto = to_proto(model, external=weight, hints=False)
    for info in proto.graph.input:
        _forget_negative(info.type)
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value > _MAX_SYMBOLS:
            dims[0].ClearField("dim_value")
    for info in proto.graph.output:
        _forget_shape(info.type)
    _forget_in_subgraphs(proto.graph)
    tell_apart(proto.graph.input)
    slice_to_the_front(proto.graph)
    if opset(model) < 11:
        sort_squeezed_axes(proto.graph)
    if foreign:
        for graph in graphs(proto.graph):
            _declare(graph, foreign)
    found = _run(proto)
    if opset(model) >= 23 and hide_attention(proto.graph, found):
        found = _run(proto)
    return found


def _run(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    try:
        result = onnx.shape_inference.infer_shapes(proto, check_type=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        # One op that onnx cannot digest: types stay as they were declared.
        return {}
    found: dict[str, onnx.TypeProto] = {}
    _collect(result.graph, found)
    return found


def _declare(graph: onnx.GraphProto, foreign: dict[str, Value]) -> None:
    """Tell onnx what is known of values that it cannot infer, for the sake of what follows them."""
    outputs = {info.name for info in graph.output}
    for node in graph.node:
        for name in node.output:
            value = foreign.get(name)
            if value is not None and value.type is not None and name not in outputs:
                info = graph.value_info.add()
                _ir.serde.serialize_value_into(info, value)
                _forget_negative(info.type)


def _forget_in_subgraphs(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for a in node.attribute:
            inner = [a.g] if a.HasField("g") else []
            for g in (*inner, *a.graphs):
                for info in (*g.input, *g.output):
                    _forget_shape(info.type)
                _forget_in_subgraphs(g)


def _forget_shape(proto: onnx.TypeProto) -> None:
    if proto.HasField("tensor_type"):
        proto.tensor_type.ClearField("shape")


def _forget_negative(proto: onnx.TypeProto) -> None:
    if proto.HasField("tensor_type"):
        for dim in proto.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")


def _collect(graph: onnx.GraphProto, found: dict[str, onnx.TypeProto]) -> None:
    for info in (*graph.input, *graph.value_info, *graph.output):
        found[info.name] = info.type
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("g"):
                _collect(a.g, found)
            for g in a.graphs:
                _collect(g, found)


def _apply(value: Value, proto: onnx.TypeProto | None, *, trust: bool) -> None:
    if proto is None or not proto.WhichOneof("value"):
        if not trust:
            value.shape = None
        return
    if proto.HasField("tensor_type"):
        tensor = proto.tensor_type
        if tensor.elem_type:
            value.type = _ir.TensorType(_ir.DataType(tensor.elem_type))
        if tensor.HasField("shape"):
            value.shape = _shape(tensor.shape)
        elif not trust:
            value.shape = None
    elif value.type is None and not has_map(proto):
        value.type = _ir.serde.deserialize_type_proto_for_type(proto)


def _shape(proto: onnx.TensorShapeProto) -> _ir.Shape:
    out: list[int | str | None] = []
    for dim in proto.dim:
        if dim.HasField("dim_value"):
            out.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            out.append(dim.dim_param or None)
    return _ir.Shape(out)

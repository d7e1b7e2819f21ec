"""IR to protobuf.

onnx_ir serializes nodes, values and tensors; what is ours is what a graph is made of: interfaces
are written back as they were declared, value_info only where it cannot be inferred, and weights can
stay out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as _ir
from onnx_ir import Graph, Model, Node, TensorProtocol, Value
from onnx_ir import serde as _serde

from graphopt.errors import GraphOptError
from graphopt.ir import schema as _schema
from graphopt.ir.graph import all_graphs, gc_paused, opset
from graphopt.ir.origin import Origin, opaque, origin, verbatim
from graphopt.ir.prepare import graphs

__all__ = ["PROTOBUF_LIMIT", "nbytes", "source_bytes", "tensor_nbytes", "to_bytes", "to_proto"]

PROTOBUF_LIMIT = 2**31 - 1
External = Callable[[Value, onnx.TensorProto], bool]


def to_proto(
    model: Model, *, external: External | None = None, hints: bool = True
) -> onnx.ModelProto:
    """Serialize a model.

    A model that nothing changed since it was loaded comes back as the very protobuf it came from.

    Args:
        model: Model in normal form.
        external: Called for every initializer with the value and its empty ``TensorProto`` (name,
            type and dims filled in). Where it returns True it has taken care of the data, as a
            reference to external data or not at all.
        hints: Write value_info where the source had it and it cannot be inferred.
    """
    if external is None:
        source = verbatim(model)
        if source is not None:
            return source
    reason = opaque(model)
    if reason is not None:
        raise GraphOptError(f"the model is carried through as it is: {reason}")
    with gc_paused():
        proto = onnx.ModelProto()
        proto.ir_version = model.ir_version
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            value = getattr(model, field)
            if value:
                setattr(proto, field, value)
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        for key, text in model.metadata_props.items():
            proto.metadata_props.add(key=key, value=text)
        _Writer(model.ir_version, origin(model), external, hints).graph(proto.graph, model.graph)
        for configuration in model.device_configurations:
            proto.configuration.append(_serde.serialize_model_configuration(configuration))
    return proto


def to_bytes(model: Model) -> bytes:
    """Serialize a model with its weights inline.

    Raises:
        GraphOptError: The model is above the 2 GB that a protobuf can hold.
    """
    size = nbytes(model)
    if size > PROTOBUF_LIMIT:
        raise GraphOptError(f"{size} bytes do not fit into one protobuf: save with external data")
    return to_proto(model).SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class _Writer:
    ir_version: int
    source: Origin
    external: External | None
    hints: bool

    def graph(self, proto: onnx.GraphProto, graph: Graph, *, main: bool = True) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        for value in graph.inputs:
            _interface(proto.input.add(), value, self.source.inputs if main else self.source.inner)
        for value in graph.initializers.values():
            self.initializer(proto.initializer.add(), value)
        named: set[str] = set()
        for node in graph:
            self.node(made := proto.node.add(), node)
            # Several nodes may stand for one; ONNX Runtime wants names to differ.
            if made.name in named:
                made.ClearField("name")
            named.add(made.name)
            # Where anyone can infer a shape, writing it down would only steer ONNX Runtime's choice
            # of fusions, not always for the better (docs/adr/0007-normal-form.md).
            if (
                self.hints
                and self.source.value_info
                and _schema.lookup(node.domain, node.op_type, opset(node, node.domain)) is None
            ):
                for value in node.outputs:
                    if (
                        value.name in self.source.value_info
                        and value.type is not None
                        and not value.is_graph_output()
                    ):
                        _serde.serialize_value_into(proto.value_info.add(), value)
        for value in graph.outputs:
            _interface(
                proto.output.add(), value, self.source.outputs if main else self.source.inner
            )
        for key, text in graph.metadata_props.items():
            proto.metadata_props.add(key=key, value=text)
        if self.source.annotated:
            _annotate(proto, graph)

    def initializer(self, proto: onnx.TensorProto, value: Value) -> None:
        tensor = value.const_value
        if tensor is None:
            raise GraphOptError(f"initializer %{value.name} has no data")
        if self.external is not None:
            proto.name = value.name or ""
            proto.data_type = int(tensor.dtype)
            proto.dims.extend(tensor.shape.numpy())
            if self.external(value, proto):
                return
            proto.Clear()
        _serde.serialize_tensor_into(proto, tensor)
        proto.name = value.name or ""

    def node(self, proto: onnx.NodeProto, node: Node) -> None:
        subgraphs = [
            a
            for a in node.attributes.values()
            if a.type in (_ir.AttributeType.GRAPH, _ir.AttributeType.GRAPHS) and not a.is_ref()
        ]
        if not subgraphs:
            _serde.serialize_node_into(proto, node, model_ir_version=self.ir_version)
            return
        # serde would write the subgraphs its own way, so it gets the node without them.
        shell = _ir.Node(
            node.domain,
            node.op_type,
            (),
            [a for a in node.attributes.values() if a not in subgraphs],
            overload=node.overload,
            num_outputs=0,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        _serde.serialize_node_into(proto, shell, model_ir_version=self.ir_version)
        proto.input.extend("" if v is None else v.name or "" for v in node.inputs)
        proto.output.extend(v.name or "" for v in node.outputs)
        while proto.output and not proto.output[-1]:
            proto.output.pop()
        for a in subgraphs:
            out = proto.attribute.add(name=a.name)
            if a.type == _ir.AttributeType.GRAPH:
                out.type = onnx.AttributeProto.GRAPH
                self.graph(out.g, a.as_graph(), main=False)
            else:
                out.type = onnx.AttributeProto.GRAPHS
                for graph in a.as_graphs():
                    self.graph(out.graphs.add(), graph, main=False)
            if node.domain:
                for inner in (out.g, *out.graphs):
                    _restore_formal(inner, self.source.formal)


def _interface(
    proto: onnx.ValueInfoProto, value: Value, declared: dict[str, onnx.ValueInfoProto]
) -> None:
    original = declared.get(value.name or "")
    if original is not None:
        proto.CopyFrom(original)
    else:
        _serde.serialize_value_into(proto, value)


def _restore_formal(graph: onnx.GraphProto, formal: dict[str, str]) -> None:
    """Give inputs and outputs of a subgraph the names they had before names became unique."""
    names = {
        info.name: formal[info.name]
        for info in (*graph.input, *graph.output)
        if info.name in formal
    }
    if not names:
        return
    inside = graphs(graph)
    taken = {name for g in inside for node in g.node for name in (*node.input, *node.output)}
    taken.update(t.name for g in inside for t in g.initializer)
    names = {new: old for new, old in names.items() if old not in taken}
    for g in inside:
        for info in (*g.input, *g.output, *g.value_info):
            info.name = names.get(info.name, info.name)
        for node in g.node:
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]


def _annotate(proto: onnx.GraphProto, graph: Graph) -> None:
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    for value in dict.fromkeys(values):
        names: Any = value.meta.get("quant_parameter_tensor_names")
        if names:
            note = proto.quantization_annotation.add(tensor_name=value.name or "")
            for key, text in names.items():
                note.quant_parameter_tensor_names.add(key=key, value=text)


def source_bytes(model: Model) -> int | None:
    """Exact bytes of the file of an unchanged model, external data included; None otherwise."""
    source = verbatim(model)
    if source is None:
        return None
    external = 0
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            external += getattr(value.const_value, "length", None) or 0
    return source.ByteSize() + external


def nbytes(model: Model) -> int:
    """Bytes the model takes as a file, weights included: exact for weights, estimated for nodes."""
    if opaque(model) is not None:
        return source_bytes(model) or 0
    total = 64
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            total += 12 + len(value.name or "") + _weight_nbytes(value)
        for node in graph:
            total += 8 + len(node.op_type) + len(node.domain) + len(node.name or "")
            for v in (*node.inputs, *node.outputs):
                total += 2 if v is None else 2 + len(v.name or "")
            if node.attributes:
                for a in node.attributes.values():
                    total += 8 + len(a.name) + _attribute_nbytes(a)
    return total


def _weight_nbytes(value: Value) -> int:
    # A tensor of a protobuf computes its size anew each time it is asked; the value knows its
    # shape.
    dtype, shape = value.dtype, value.shape
    if dtype is None or shape is None or dtype == _ir.DataType.STRING:
        return tensor_nbytes(value.const_value)
    size = dtype.bitwidth
    for d in shape.dims:
        if not isinstance(d, int):
            return tensor_nbytes(value.const_value)
        size *= d
    return (size + 7) // 8


def tensor_nbytes(tensor: TensorProtocol | None) -> int:
    """Bytes of a tensor's data; for strings, of the strings."""
    if tensor is None:
        return 0
    if isinstance(tensor, _ir.StringTensor):
        return sum(len(s) + 2 for s in tensor.string_data())
    return tensor.nbytes


def _attribute_nbytes(a: _ir.Attr) -> int:
    if a.is_ref() or a.value is None:
        return 8
    value = a.value
    if a.type == _ir.AttributeType.TENSOR:
        return tensor_nbytes(value)
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return sum(len(v) + 2 if isinstance(v, (str, bytes)) else 4 for v in value)
    return 2

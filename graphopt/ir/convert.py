"""Models at another opset, and what the standard defines operators as, both by onnx."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx
import onnx.version_converter  # onnx itself does not import it
import onnx_ir as _ir
from onnx_ir import Model, Node, TensorProtocol, Value

from graphopt.errors import FrontendError, UnsupportedFeature
from graphopt.ir.graph import all_nodes, gc_paused, opset
from graphopt.ir.io import clone, load
from graphopt.ir.origin import opaque, origin
from graphopt.ir.prepare import signature
from graphopt.ir.proto import to_proto
from graphopt.ir.schema import check_call, lookup

__all__ = ["convert_opset", "function_body"]

# The converter reads small constants (axes, limits of Clip, scales of Upsample); it would copy all
# others a few times over.
_READ = 256
_ASSERTION = re.compile(r"^.*Assertion .*? failed: ")
_BODY = "graphopt.body"


def convert_opset(model: Model, version: int) -> Model:
    """A model in terms of another opset of the default domain.

    Args:
        model: Model in normal form; it is not modified. Weights are shared with the result.
        version: The opset to convert to, lower or higher.

    Returns:
        The converted model, in normal form, with the same interface.

    Raises:
        UnsupportedFeature: An operator has no form at that opset, or onnx does not know it.
    """
    reason = opaque(model)
    if reason is not None:
        raise UnsupportedFeature(f"the model is carried through unchanged: {reason}")
    latest = onnx.defs.onnx_opset_version()
    if not 1 <= version <= latest:
        raise UnsupportedFeature(f"there is no opset {version}: onnx knows 1 to {latest}")
    if opset(model) == version or "" not in model.opset_imports:
        return clone(model)
    kept: dict[str, TensorProtocol] = {}

    def keep(value: Value, _proto: onnx.TensorProto) -> bool:
        tensor = value.const_value
        main = model.graph.initializers.get(value.name or "") is value
        if tensor is None or tensor.size <= _READ or value.is_graph_input() or not main:
            return False
        kept[value.name or ""] = tensor
        return True

    with gc_paused():
        proto = to_proto(model, external=keep)
        converted = _convert(proto, version, set(kept), relabel=_is_same(model, version))
        try:
            result = load(converted)
        except FrontendError as e:
            raise UnsupportedFeature(f"onnx converts it to an invalid model: {e}") from e
        _put_back(result, kept)
        ours, source = origin(result), origin(model)
        ours.inputs, ours.outputs = dict(source.inputs), dict(source.outputs)
        ours.output_names = list(source.output_names)
        ours.proto = ours.seal = None
    _check(model, result, version)
    return result


def _is_same(model: Model, version: int) -> bool:
    """Whether every operator takes the same in both versions.

    onnx's converter refuses to go down where it has no adapter, even if only types were added.
    """
    present = opset(model)
    for op in {node.op_type for node in all_nodes(model) if not node.domain}:
        old, new = lookup("", op, present), lookup("", op, version)
        if old is None or new is None or signature(old) != signature(new):
            return False
    return True


def _convert(
    proto: onnx.ModelProto, version: int, kept: set[str], *, relabel: bool
) -> onnx.ModelProto:
    """Convert, with the large weights as inputs of the graph."""
    graph = proto.graph
    small = [t for t in graph.initializer if t.name not in kept]
    for t in graph.initializer:
        if t.name in kept:
            graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    del graph.initializer[:]
    graph.initializer.extend(small)
    if relabel:
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = version
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            raise UnsupportedFeature(
                f"onnx.checker rejects it at opset {version}: {str(e).splitlines()[0]}"
            ) from e
        return proto
    try:
        return onnx.version_converter.convert_version(proto, version)
    except (RuntimeError, ValueError) as e:
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        why = _ASSERTION.sub("", first).replace("$", "")
        raise UnsupportedFeature(f"onnx cannot convert it to opset {version}: {why}") from e


def _put_back(model: Model, kept: dict[str, TensorProtocol]) -> None:
    graph = model.graph
    values = [v for v in graph.inputs if v.name in kept]
    graph.inputs[:] = [v for v in graph.inputs if v.name not in kept]
    for value in values:
        value.const_value = kept[value.name or ""]
        graph.register_initializer(value)


def _check(before: Model, after: Model, version: int) -> None:
    for kind in ("inputs", "outputs"):
        a, b = ([v.name for v in getattr(m.graph, kind)] for m in (before, after))
        if a != b:
            raise UnsupportedFeature(f"onnx changed the graph {kind} from {a} to {b}")
    if opset(after) != version:
        raise UnsupportedFeature(f"onnx converted it to opset {opset(after)}, not {version}")
    for node in all_nodes(after):
        if node.domain:
            continue
        schema = lookup("", node.op_type, version)
        if schema is None or schema.deprecated:
            raise UnsupportedFeature(f"opset {version} has no operator {node.op_type}")
        problem = check_call(
            "", node.op_type, version, len(node.inputs), frozenset(node.attributes)
        )
        if problem is not None:
            raise UnsupportedFeature(f"onnx left a node as it was: {problem}")
    least = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", version), after.ir_version)
    after.ir_version = max(before.ir_version, after.ir_version, least)


def function_body(node: Node) -> Model | None:
    """What the standard defines an operator as, in terms of other operators.

    Args:
        node: A node of a model in normal form. Some definitions depend on the types of its inputs.

    Returns:
        A model at the node's opset with an input for every input of the node that is present, named
        ``i0``, ``i1``, ... by position, and an output for every named output of it, ``o0``, ``o1``,
        ...; None where the operator is not defined that way, or not at this opset.
    """
    version = opset(node, node.domain)
    schema = lookup(node.domain, node.op_type, version)
    if schema is None or node.domain:
        return None
    proto = _ir.serde.serialize_node(node)
    definition = _body_of(schema, proto, node.inputs, version)
    if definition is None:
        return None
    body, written = definition
    body.domain, body.name = _BODY, node.op_type
    del body.opset_import[:]
    body.opset_import.add(domain="", version=written)
    graph = onnx.GraphProto(name="body")
    call = graph.node.add(domain=_BODY, op_type=node.op_type)
    call.attribute.extend(proto.attribute)
    given = {a.name for a in proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            call.attribute.append(attribute.default_value)
    for i, value in enumerate(node.inputs):
        call.input.append("" if value is None else f"i{i}")
        if value is not None:
            info = _ir.serde.serialize_value(value)
            info.name = f"i{i}"
            graph.input.append(info)
    for i, value in enumerate(node.outputs):
        call.output.append(f"o{i}" if value.name else "")
        if value.name:
            graph.output.add(name=f"o{i}")
    while call.output and not call.output[-1]:
        call.output.pop()
    model = onnx.ModelProto(ir_version=8, graph=graph, functions=[body])
    model.opset_import.add(domain="", version=written)
    model.opset_import.add(domain=_BODY, version=1)
    try:
        found = load(model)
        origin(found).outputs.clear()  # their types are inferred, not declared
        return convert_opset(found, version)
    except FrontendError:  # not at this opset, or in a form that the IR does not take apart
        return None


def _body_of(
    schema: Any, node: onnx.NodeProto, inputs: Sequence[Value | None], version: int
) -> tuple[onnx.FunctionProto, int] | None:
    """The definition nearest to an opset, and the opset that it is written in."""
    plain, typed = (
        sorted(versions, key=lambda v: (v > version, abs(v - version)))
        for versions in (
            schema.function_opset_versions,
            schema.context_dependent_function_opset_versions,
        )
    )
    if plain:
        data = schema.get_function_with_opset_version(plain[0])
        return onnx.FunctionProto.FromString(data), plain[0]
    if not typed:
        return None
    types: list[bytes] = []
    for value in inputs:
        if value is not None and value.type is None:
            return None
        types.append(
            b"" if value is None else _ir.serde.serialize_value(value).type.SerializeToString()
        )
    data = schema.get_context_dependent_function_with_opset_version(
        typed[0], node.SerializeToString(), types
    )
    return (onnx.FunctionProto.FromString(data), typed[0]) if data else None

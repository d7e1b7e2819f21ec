"""What has to happen to a protobuf before onnx_ir may read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import google.protobuf.message
import onnx
import onnx.inliner  # onnx itself does not import it

from graphopt.ir import schema as _schema
from graphopt.ir.functions import with_defaults

__all__ = [
    "graphs",
    "has_map",
    "inline",
    "redefinition",
    "referring",
    "signature",
    "unsupported",
    "without_maps",
]


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and the graphs nested in it, outer ones first."""
    return [graph, *_inside(graph.node)]


def _inside(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    found: list[onnx.GraphProto] = []
    for node in nodes:
        for a in node.attribute:
            if a.HasField("g"):
                found += graphs(a.g)
            for g in a.graphs:
                found += graphs(g)
    return found


def _all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from graphs(proto.graph)
    for function in proto.functions:
        yield from _inside(function.node)


def referring(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model whose data lies in another file."""
    bodies: list[Iterable[onnx.NodeProto]] = [f.node for f in proto.functions]
    for graph in _all_graphs(proto):
        bodies.append(graph.node)
        yield from filter(_is_external, graph.initializer)
        for sparse in graph.sparse_initializer:
            yield from filter(_is_external, (sparse.values, sparse.indices))
    for nodes in bodies:
        for node in nodes:
            for a in node.attribute:
                if a.HasField("t") and _is_external(a.t):
                    yield a.t
                yield from filter(_is_external, a.tensors)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def unsupported(proto: onnx.ModelProto) -> str | None:
    """What the IR would drop or take for something else, without a word; None if nothing."""
    if proto.training_info:
        return "training information has no representation"
    if any(g.sparse_initializer for g in _all_graphs(proto)):
        return "sparse initializers have no representation"
    for info in proto.graph.input:
        if has_map(info.type):
            return f"input {info.name!r} is a map, which has no representation"
    declared: dict[str, onnx.TypeProto] = {}
    for info in proto.graph.output:
        if declared.setdefault(info.name, info.type) != info.type:
            return f"output {info.name!r} is listed twice with different types"
    name = _shadowing(proto.graph, set())
    if name is not None:
        # Against the standard. ONNX Runtime computes with the outer one, contrary to intuition.
        return f"a subgraph redefines the initializer {name!r} of a graph around it"
    return None


def _shadowing(graph: onnx.GraphProto, outer: set[str]) -> str | None:
    own = {t.name for t in graph.initializer}
    for name in own:
        if name in outer:
            return name
    outer |= own
    for node in graph.node:
        for a in node.attribute:
            for inner in (*([a.g] if a.HasField("g") else []), *a.graphs):
                found = _shadowing(inner, outer)
                if found is not None:
                    return found
    outer -= own
    return None


def redefinition(proto: onnx.ModelProto) -> str | None:
    """The name of a value that is defined twice, or None.

    Several initializers and Constant nodes of one name do not count: ONNX Runtime takes the last.
    """
    for graph in graphs(proto.graph):
        nodes = [n for n in graph.node if n.op_type != "Constant"]
        defined = [info.name for info in graph.input]
        defined += [name for node in nodes for name in node.output if name]
        fixed = {t.name for t in graph.initializer} - {info.name for info in graph.input}
        seen: set[str] = set(fixed)
        for name in defined:
            if name in seen:
                return name
            seen.add(name)
    return None


def inline(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """Inline the model-local functions.

    Returns:
        The model without functions, or the same model and why that is impossible.
    """
    if not proto.functions:
        return proto, None
    try:
        inlined = onnx.inliner.inline_local_functions(_aligned(with_defaults(proto)))
    except (RuntimeError, ValueError, google.protobuf.message.EncodeError) as e:
        return proto, f"its functions cannot be inlined: {str(e).strip().splitlines()[0]}"
    if inlined.functions:
        left = inlined.functions[0]
        return proto, f"function {left.domain}::{left.name} needs another opset than the model"
    return inlined, None


def _aligned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the opset versions of its functions raised or lowered to its own.

    onnx does not inline a function of another version. ONNX Runtime does, whatever it calls; here
    every operator has to have the same inputs, outputs and attributes in both versions.
    """
    versions = {o.domain: o.version for o in proto.opset_import}
    local = {(f.domain, f.name) for f in proto.functions}
    wrong = [
        (i, k)
        for i, f in enumerate(proto.functions)
        for k, o in enumerate(f.opset_import)
        if versions.get(o.domain, o.version) != o.version
        and _same_operators(f, o.domain, o.version, versions[o.domain], local)
    ]
    if not wrong:
        return proto
    aligned = onnx.ModelProto()
    aligned.CopyFrom(proto)
    for i, k in wrong:
        entry = aligned.functions[i].opset_import[k]
        entry.version = versions[entry.domain]
    return aligned


def _same_operators(
    function: onnx.FunctionProto, domain: str, old: int, new: int, local: set[tuple[str, str]]
) -> bool:
    bodies = [function.node, *(g.node for g in _inside(function.node))]
    for op in {n.op_type for nodes in bodies for n in nodes if n.domain == domain}:
        if (domain, op) in local:
            continue
        a, b = _schema.lookup(domain, op, old), _schema.lookup(domain, op, new)
        if a is None or b is None or signature(a) != signature(b):
            return False
    return True


def signature(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    """What a version of an operator takes, but for types; equal ones mostly mean the same."""
    # Versions of an operator mostly differ in the types they admit.
    attributes = {
        k: (v.type, v.default_value.SerializeToString()) for k, v in schema.attributes.items()
    }
    formal = [(p.name, p.option) for p in (*schema.inputs, *schema.outputs)]
    return len(schema.inputs), formal, attributes


def without_maps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without declarations of values that are maps, which onnx_ir cannot read."""
    if not any(has_map(info.type) for g in graphs(proto.graph) for info in _declared(g)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in graphs(copy.graph):
        for info in _declared(graph):
            if has_map(info.type):
                info.ClearField("type")
    return copy


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def has_map(proto: onnx.TypeProto) -> bool:
    """Whether a type is a map or a container of maps, which onnx_ir cannot read."""
    kind: str | None = proto.WhichOneof("value")
    if kind == "sequence_type":
        return has_map(proto.sequence_type.elem_type)
    if kind == "optional_type":
        return has_map(proto.optional_type.elem_type)
    return kind == "map_type"

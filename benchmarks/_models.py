"""Facts about a model at protobuf level: its interface, its nodes, its bytes on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

Dims = list["int | str | None"]


def load(path: Path) -> onnx.ModelProto:
    """Read a model without its external data."""
    return onnx.load(str(path), load_external_data=False)


# --- interface -----------------------------------------------------------------------------------


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller has to feed: those without an initializer behind them."""
    initialized = {t.name for t in model.graph.initializer}
    initialized |= {t.values.name for t in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in initialized]


def interface(
    model: onnx.ModelProto, *, fed_only: bool
) -> dict[str, list[tuple[str, str, Dims | None]]]:
    """Names, element types and dims of the graph's inputs and outputs, in order.

    Args:
        model: Any model.
        fed_only: Leave out inputs that an initializer backs.
    """
    inputs = fed_inputs(model) if fed_only else list(model.graph.input)
    return {
        "input": [(v.name, type_text(v.type), dims(v.type)) for v in inputs],
        "output": [(v.name, type_text(v.type), dims(v.type)) for v in model.graph.output],
    }


def type_text(proto: onnx.TypeProto) -> str:
    """Element type of a value, nested for sequences, optionals and maps."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return f"tensor({proto.tensor_type.elem_type})"
    if kind == "sparse_tensor_type":
        return f"sparse({proto.sparse_tensor_type.elem_type})"
    if kind == "sequence_type":
        return f"sequence({type_text(proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({type_text(proto.optional_type.elem_type)})"
    if kind == "map_type":
        return f"map({proto.map_type.key_type}, {type_text(proto.map_type.value_type)})"
    return str(kind)


def dims(proto: onnx.TypeProto) -> Dims | None:
    """Size, symbol, or None (nothing stated, or -1) per axis; None for an unknown rank."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    result: Dims = []
    for dim in proto.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            result.append(dim.dim_value)
        else:
            result.append(dim.dim_param or None)
    return result


def interface_change(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """What of the interface changed, or None.

    A dim or a rank that the original leaves open may become known at an output, but not at an
    input: that would restrict what a caller may feed.
    """
    old_ir = before.ir_version < 4
    old, new = interface(before, fed_only=old_ir), interface(after, fed_only=old_ir)
    for side in ("input", "output"):
        was, now = [v[0] for v in old[side]], [v[0] for v in new[side]]
        if was != now:
            return f"{side} names {was} became {now}"
        for (name, type_was, dims_was), (_, type_now, dims_now) in zip(
            old[side], new[side], strict=True
        ):
            if type_was != type_now:
                return f"{side} {name}: type {type_was} became {type_now}"
            if not _same_dims(dims_was, dims_now, may_refine=side == "output"):
                return f"{side} {name}: dims {dims_was} became {dims_now}"
    return None


def _same_dims(was: Dims | None, now: Dims | None, *, may_refine: bool) -> bool:
    if was is None:
        return now is None or may_refine
    if now is None or len(was) != len(now):
        return False
    return all(a == b or (a is None and may_refine) for a, b in zip(was, now, strict=True))


# --- size ----------------------------------------------------------------------------------------


def nodes(model: onnx.ModelProto) -> Counter[str]:
    """Nodes by operator: subgraphs counted, function calls expanded, no Constants."""
    functions = {(f.domain, f.name): f for f in model.functions}
    counts: Counter[str] = Counter()
    stack: list[Any] = [*model.graph.node]
    while stack:
        node = stack.pop()
        called = functions.get((node.domain, node.op_type))
        if called is not None:
            stack.extend(called.node)
        elif node.op_type != "Constant":
            counts[node.op_type] += 1
        for graph in _subgraphs(node):
            stack.extend(graph.node)
    return counts


def node_count(model: onnx.ModelProto) -> int:
    """Nodes without Constants, subgraphs counted, function calls expanded."""
    return sum(nodes(model).values())


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def file_bytes(path: Path, model: onnx.ModelProto | None = None) -> int:
    """Bytes of the model file and of the data files it refers to."""
    model = load(path) if model is None else model
    return path.stat().st_size + sum(
        f.stat().st_size for f in data_files(path, model) if f.exists()
    )


def data_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """External data files of a model, each once."""
    found: dict[Path, None] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location":
                    found[path.parent / entry.value] = None
    return list(found)

"""Deterministic text of a model: for golden tests, dumps and diffs."""

from __future__ import annotations

import onnx
import onnx_ir as _ir
from onnx_ir import Attr, Graph, Model, Value

from graphopt.ir.origin import opaque

__all__ = ["dump"]

_SHORT = 8


def dump(model: Model) -> str:
    """One line per node, in program order; small integer constants shown, other weights elided.

    ::

        graph(%x: float[N,3]) {
          const %axes: int64[1] = [0]
          %y = Unsqueeze(%x, %axes)
          return %y
        }
    """
    reason = opaque(model)
    if reason is not None:
        return f"opaque model: {reason}\n"
    lines: list[str] = []
    _graph(model.graph, "", lines)
    return "\n".join(lines) + "\n"


def _graph(graph: Graph, indent: str, lines: list[str]) -> None:
    params = ", ".join(f"{_name(v)}: {_type(v)}" for v in graph.inputs)
    lines.append(f"{indent}graph({params}) {{")
    for name in sorted(graph.initializers):
        value = graph.initializers[name]
        kind = "default" if value.is_graph_input() else "const"
        lines.append(f"{indent}  {kind} {_name(value)}: {_constant(value)}")
    for node in graph:
        inner = [(k, a) for k, a in sorted(node.attributes.items()) if _is_graph(a)]
        plain = [f"{k}={_value(a)}" for k, a in sorted(node.attributes.items()) if not _is_graph(a)]
        domain = f"{node.domain}." if node.domain else ""
        outs = ", ".join(_name(v) for v in node.outputs)
        ins = ", ".join(_name(v) for v in node.inputs)
        attrs = f" {{{', '.join(plain)}}}" if plain else ""
        lines.append(f"{indent}  {outs} = {domain}{node.op_type}({ins}){attrs}")
        for key, a in inner:
            graphs = [a.as_graph()] if a.type == _ir.AttributeType.GRAPH else list(a.as_graphs())
            for sub in graphs:
                lines.append(f"{indent}    {key}:")
                _graph(sub, indent + "      ", lines)
    lines.append(f"{indent}  return {', '.join(_name(v) for v in graph.outputs)}")
    lines.append(f"{indent}}}")


def _is_graph(a: Attr) -> bool:
    return not a.is_ref() and a.type in (_ir.AttributeType.GRAPH, _ir.AttributeType.GRAPHS)


def _name(value: Value | None) -> str:
    return "_" if value is None or not value.name else f"%{value.name}"


def _type(value: Value) -> str:
    if value.type is None:
        return "?"
    if not isinstance(value.type, _ir.TensorType):
        return str(value.type).lower()
    if value.shape is None:
        return f"{value.type.dtype.name.lower()}[*]"
    sizes = ",".join("?" if d is None else str(d) for d in _dims(value.shape))
    return f"{value.type.dtype.name.lower()}[{sizes}]"


def _dims(shape: _ir.Shape) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in shape]


def _constant(value: Value) -> str:
    tensor = value.const_value
    if tensor is None:
        return "no data"
    text = f"{tensor.dtype.name.lower()}[{','.join(str(d) for d in tensor.shape)}]"
    if tensor.dtype in (_ir.DataType.INT64, _ir.DataType.INT32) and tensor.size <= _SHORT:
        text += f" = {tensor.numpy().tolist()}"
    return text


def _value(a: Attr) -> str:
    if a.is_ref():
        return f"@{a.ref_attr_name}"
    value = a.value
    if hasattr(value, "numpy"):
        return f"<{value.dtype.name.lower()}{list(value.shape)}>"
    if a.type == _ir.AttributeType.FLOAT:
        return f"{value:g}"
    if a.type == _ir.AttributeType.FLOATS:
        return "[" + ", ".join(f"{v:g}" for v in value) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(repr(v) for v in value) + "]"
    return repr(value)


def parse_proto(text: str) -> onnx.ModelProto:
    """Parse the text syntax of ONNX (https://onnx.ai/onnx/repo-docs/Syntax.html)."""
    return onnx.parser.parse_model(text)

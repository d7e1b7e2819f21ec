"""onnx.checker as a second opinion."""

from __future__ import annotations

import onnx
from onnx_ir import Model

from graphopt.errors import StructureError
from graphopt.ir.origin import origin
from graphopt.ir.proto import to_proto

__all__ = ["check", "interface_difference"]


def check(before: Model, after: Model) -> None:
    """Compare what ``onnx.checker`` says about a model before and after a change.

    Raises:
        StructureError: It accepts ``before`` but not ``after``.
    """
    try:
        onnx.checker.check_model(to_proto(before), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return
    try:
        onnx.checker.check_model(to_proto(after), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise StructureError(f"onnx.checker rejects the model: {str(e).splitlines()[0]}") from e


def interface_difference(before: Model, after: Model) -> str | None:
    """How the inputs and outputs that callers see differ, or None.

    Names, order, types and dimensions count; symbolic dimensions by name.
    """
    for kind in ("input", "output"):
        a, b = _interface(before, kind), _interface(after, kind)
        if list(a) != list(b):
            return f"the {kind}s are {list(a)} in one model and {list(b)} in the other"
        for name, told in a.items():
            if told.type != b[name].type:
                return f"{kind} {name!r} is declared differently"
    return None


def _interface(model: Model, kind: str) -> dict[str, onnx.ValueInfoProto]:
    source = origin(model)
    if source.opaque is not None and source.proto is not None:
        graph = source.proto.graph
        return {info.name: info for info in (graph.input if kind == "input" else graph.output)}
    declared = source.inputs if kind == "input" else source.outputs
    if declared:
        return declared
    graph = to_proto(model, external=lambda _value, _proto: True, hints=False).graph
    return {info.name: info for info in (graph.input if kind == "input" else graph.output)}

"""What a model remembers of the file it came from.

* Its interface, as declared: written back word for word, so that no pass can change it by accident.
* The whole protobuf, as long as nothing has changed: saving then gives back the same model.
* Why it is opaque, if it is: something in it has no representation, so it passes through unchanged.
* What the importer had to say.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import onnx
from onnx_ir import Model, TensorProtocol

from graphopt.ir.graph import all_graphs

__all__ = [
    "Origin",
    "opaque",
    "origin",
    "remarks",
    "seal",
    "verbatim",
]

_ORIGIN = "graphopt.origin"


@dataclasses.dataclass
class Origin:
    """Provenance of a model.

    Attributes:
        proto: The protobuf it was read from, or None where it did not come from one.
        inputs: How each graph input was declared, by name.
        outputs: How each graph output was declared, by name.
        output_names: The graph outputs in order; the same value may be there twice.
        inner: How inputs and outputs of subgraphs were declared, by name. ONNX Runtime needs the
            shapes of some, right or wrong, so they are written back as they were.
        formal: What inputs and outputs of subgraphs were called, by name. Some contrib operators go
            by those names.
        value_info: Names of the values that had value_info; those that nobody can infer keep it.
        annotated: Whether any value has a quantization annotation.
        opaque: Why the model is carried through unchanged, or None.
        remarks: What the importer had to say.
        external: Of an opaque model, the data that ``proto`` keeps in other files: a memory map for
            every tensor that refers to one, in the order of ``prepare.referring``.
        seal: Identity of everything in the model right after import, see :func:`verbatim`.
    """

    proto: onnx.ModelProto | None = None
    inputs: dict[str, onnx.ValueInfoProto] = dataclasses.field(default_factory=dict)
    outputs: dict[str, onnx.ValueInfoProto] = dataclasses.field(default_factory=dict)
    output_names: list[str] = dataclasses.field(default_factory=list)
    inner: dict[str, onnx.ValueInfoProto] = dataclasses.field(default_factory=dict)
    formal: dict[str, str] = dataclasses.field(default_factory=dict)
    value_info: set[str] = dataclasses.field(default_factory=set)
    annotated: bool = False
    opaque: str | None = None
    remarks: list[str] = dataclasses.field(default_factory=list)
    external: list[TensorProtocol] = dataclasses.field(default_factory=list)
    seal: list[Any] | None = None


def origin(model: Model) -> Origin:
    """The provenance of ``model``; an empty one is attached where there is none yet."""
    found = model.meta.get(_ORIGIN)
    if not isinstance(found, Origin):
        found = model.meta[_ORIGIN] = Origin()
    return found


def opaque(model: Model) -> str | None:
    """Why this model is carried through unchanged, or None if passes may work on it."""
    return origin(model).opaque


def remarks(model: Model) -> list[str]:
    """What the importer had to say about the model."""
    return list(origin(model).remarks)


def seal(model: Model) -> None:
    """Declare that ``model``, as it is now, stands for the protobuf it came from."""
    origin(model).seal = _identity(model)


def verbatim(model: Model) -> onnx.ModelProto | None:
    """The protobuf that ``model`` came from if nothing has changed since, else None.

    Changes are found by comparing identities, so that an edit made without a Rewriter counts too.
    """
    source = origin(model)
    if source.proto is None:
        return None
    if source.opaque is not None:
        return source.proto
    sealed = source.seal
    if sealed is None:
        return None
    present = _identity(model)
    same = len(sealed) == len(present) and all(map(operator.is_, sealed, present))
    return source.proto if same else None


def _identity(model: Model) -> list[Any]:
    # Objects, not id()s: holding them keeps a new object from being taken for an old one.
    parts: list[Any] = [model.ir_version]
    for domain, version in model.opset_imports.items():
        parts += (domain, version)
    for graph in all_graphs(model):
        parts += [v.name for v in graph.inputs]
        parts += [v.name for v in graph.outputs]
        for value in graph.initializers.values():
            parts += (value.const_value, value.name)
        for node in graph:
            parts += (node, node.domain, node.op_type, node.inputs)
            parts += [v.name for v in node.outputs]
            if node.attributes:
                parts += node.attributes.values()
    return parts

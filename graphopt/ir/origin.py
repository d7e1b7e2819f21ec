"""What a model remembers of the file it came from.

* Its interface, as declared: written back word for word, so that no pass can change it by accident.
* The whole protobuf, as long as nothing has changed: saving then gives back the same model.
* Why it is opaque, if it is: something in it has no representation, so it passes through unchanged.
* What the importer had to say.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx_ir import Model, Shape, TensorProtocol, Value

from graphopt.errors import StructureError
from graphopt.ir.graph import all_graphs, dims

__all__ = [
    "Origin",
    "opaque",
    "origin",
    "remarks",
    "resize_inner",
    "seal",
    "set_sizes",
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


def set_sizes(model: Model, value: Value, sizes: Sequence[int | str | None]) -> bool:
    """Put sizes where the declaration of an input or output has none.

    Args:
        model: The model.
        value: An input or output of it.
        sizes: A size for each dimension; what is no size leaves the declaration as it is.

    Returns:
        Whether the declaration changed.

    Raises:
        StructureError: It is declared with another size or rank.
    """
    source = origin(model)
    declared = source.inputs if value.is_graph_input() else source.outputs
    told = declared.get(value.name or "")
    changed = False
    if told is not None and told.type.tensor_type.HasField("shape"):
        fixed = onnx.ValueInfoProto()
        fixed.CopyFrom(told)
        shape = fixed.type.tensor_type.shape.dim
        if len(shape) != len(sizes):
            raise StructureError(f"%{value.name} has {len(shape)} dimensions, not {len(sizes)}")
        for axis, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                if isinstance(size, int) and size != dim.dim_value:
                    raise StructureError(
                        f"dimension {axis} of %{value.name} is {dim.dim_value}, not {size}"
                    )
            elif isinstance(size, int):
                dim.dim_value = size
                changed = True
        declared[value.name or ""] = fixed
    own = dims(value)
    if own is not None and len(own) == len(sizes):
        new = [s if isinstance(s, int) else d for d, s in zip(own, sizes, strict=True)]
        changed |= told is None and tuple(new) != own
        value.shape = Shape(new)
    if changed:
        source.seal = None
    return changed


def resize_inner(model: Model, value: Value, sizes: Mapping[int, int]) -> None:
    """Change the declaration of an input or output of a subgraph.

    Args:
        model: The model.
        value: The input or output.
        sizes: New sizes by axis.
    """
    source = origin(model)
    told = source.inner.get(value.name or "")
    if told is not None and told.type.tensor_type.HasField("shape"):
        fixed = onnx.ValueInfoProto()
        fixed.CopyFrom(told)
        for axis, size in sizes.items():
            fixed.type.tensor_type.shape.dim[axis].dim_value = size
        source.inner[value.name or ""] = fixed
        source.seal = None
    own = dims(value)
    if own is not None:
        value.shape = Shape([sizes.get(axis, size) for axis, size in enumerate(own)])


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

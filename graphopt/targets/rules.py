"""Predicates about nodes that targets share: why a node is not of the kind, or None if it is."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt import ir
from graphopt.targets.scheme import Predicate

__all__ = [
    "all_of",
    "attribute",
    "constant",
    "gemm_bias",
    "given",
    "has_rank",
    "is_known",
    "key",
    "no_dilations",
    "quantized_role",
    "since",
]


def key(node: ir.Node) -> str:
    """The operator of a node; with its domain unless that is the default one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def given(node: ir.Node, position: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def is_known(value: ir.Value) -> bool:
    """Whether a value is constant, or the DequantizeLinear of a constant."""
    if ir.const(value) is not None:
        return True
    producer = value.producer()
    return (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and ir.const(producer.inputs[0]) is not None
    )


def all_of(*predicates: Predicate) -> Predicate:
    """The first reason that one of the predicates gives."""

    def why(node: ir.Node) -> str | None:
        return next((reason for p in predicates if (reason := p(node)) is not None), None)

    return why


def constant(what: str, *positions: int) -> Predicate:
    """Inputs are left out, constant, or constant behind a DequantizeLinear."""

    def why(node: ir.Node) -> str | None:
        unknown = [v for i in positions if (v := given(node, i)) is not None and not is_known(v)]
        if not unknown:
            return None
        if any(v.is_initializer() for v in unknown):
            return f"{what} a default that callers may override (freeze-inputs makes it constant)"
        return f"{what} computed, not constant"

    return why


def attribute(name: str, *allowed: object) -> Predicate:
    """An attribute has one of the values; where it is left out, the schema's default counts."""

    def why(node: ir.Node) -> str | None:
        value = ir.attr(node, name)
        if value in allowed:
            return None
        return f"its {name} is {value}, not {' or '.join(map(str, allowed))}"

    return why


def since(opset: int) -> Predicate:
    """The model's opset is this one or a later one."""

    def why(node: ir.Node) -> str | None:
        version = ir.opset(node, node.domain)
        return None if version >= opset else f"it is of opset {version}, before {opset}"

    return why


def has_rank(position: int, allowed: Sequence[int]) -> Predicate:
    """Input ``position`` has one of these ranks. An unknown rank passes: that is another matter."""

    def why(node: ir.Node) -> str | None:
        rank = ir.rank(given(node, position))
        if rank is None or rank in allowed:
            return None
        return f"its input has {rank} dimensions, not {' or '.join(map(str, allowed))}"

    return why


def no_dilations(node: ir.Node) -> str | None:
    """All dilations are 1."""
    dilations = ir.attr(node, "dilations") or ()
    return None if all(d == 1 for d in dilations) else f"its dilations are {list(dilations)}"


def gemm_bias(node: ir.Node) -> str | None:
    """The third input of a Gemm is left out, or a vector with an element for every column."""
    bias, weight = given(node, 2), given(node, 1)
    shape, columns = ir.static_shape(bias), ir.static_shape(weight)
    if bias is None or shape is None or columns is None or len(columns) != 2:
        return None
    size = columns[0 if ir.attr(node, "transB", 0) else 1]
    return None if shape == (size,) else f"its bias has the shape {list(shape)}, not [{size}]"


def quantized_role(node: ir.Node) -> tuple[str, ir.DataType | None] | None:
    """What a QuantizeLinear or DequantizeLinear is about.

    Returns:
        ``weight``, ``bias`` or ``activation``, and its integer type; None for other operators.
    """
    if node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    if node.op_type == "QuantizeLinear":
        return "activation", node.outputs[0].dtype
    stored = node.inputs[0]
    assert stored is not None  # a required input
    if ir.const(stored) is None:
        return "activation", stored.dtype
    return ("bias" if stored.dtype == ir.DataType.INT32 else "weight"), stored.dtype

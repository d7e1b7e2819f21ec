"""Predicates about nodes that several targets share: why a node is not of the kind, or None."""

from __future__ import annotations

from graphopt import ir
from graphopt.targets.scheme import Predicate

__all__ = ["all_of", "attribute", "constant", "given"]


def all_of(*predicates: Predicate) -> Predicate:
    """The first reason that one of the predicates gives."""

    def why(node: ir.Node) -> str | None:
        return next((reason for p in predicates if (reason := p(node)) is not None), None)

    return why


def given(node: ir.Node, position: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def constant(position: int, what: str) -> Predicate:
    """Input ``position`` is absent or a constant."""

    def why(node: ir.Node) -> str | None:
        value = given(node, position)
        if value is None or ir.const(value) is not None:
            return None
        return f"its {what} is computed, not constant"

    return why


def attribute(name: str, *allowed: object) -> Predicate:
    """An attribute, with the schema's default, has one of the values."""

    def why(node: ir.Node) -> str | None:
        value = ir.attr(node, name)
        if value in allowed:
            return None
        return f"its {name} is {value}, not {' or '.join(map(str, allowed))}"

    return why

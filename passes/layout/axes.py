"""Reading axes, permutations and other small integers of operators in any opset."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt import ir

__all__ = ["inner_is_spare", "integers", "normalized", "permutation"]


def integers(node: ir.Node, name: str, index: int, since: int) -> tuple[int, ...] | None:
    """Integers that are an attribute before opset ``since`` and an input from then on.

    Returns:
        The integers; empty where there are none; None where they are not constant.
    """
    if ir.opset(node) < since:
        return tuple(int(v) for v in ir.attr(node, name, ()))
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return ()
    found = ir.array(value)
    return None if found is None else tuple(int(v) for v in found.reshape(-1))


def normalized(axes: Iterable[int], rank: int | None) -> tuple[int, ...] | None:
    """Axes counted from the front; None where that takes a rank that is not known."""
    found = tuple(axes)
    if rank is None:
        return None if any(a < 0 for a in found) else found
    return tuple(a + rank if a < 0 else a for a in found)


def permutation(node: ir.Node, rank: int | None = None) -> tuple[int, ...] | None:
    """What a Transpose does; None where it reverses an unknown number of dimensions."""
    perm = ir.attr(node, "perm")
    if perm is not None:
        return tuple(int(p) for p in perm)
    rank = ir.rank(node.inputs[0]) if rank is None else rank
    return None if rank is None else tuple(range(rank))[::-1]


def inner_is_spare(inner: ir.Node) -> bool:
    """Whether a node goes away once its one user does without it."""
    out = inner.outputs[0]
    return ir.use_count(out) == 1 and not out.is_graph_output()

"""Weights that several nodes read: what one of them loses all lose, so that they stay one weight.

A model would grow if each reader was left with a part of its own. Vectors are cheap, and equal ones
(biases of zeros) are often the same constant by chance, so that readers may lose unlike parts of
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphopt import ir
from graphopt.analyses.channel_classes import Ids
from graphopt.analyses.channel_constants import is_move, sources

__all__ = ["ties"]

Use = tuple[ir.Node, int]
Factors = tuple[Ids, ...]


def ties(
    constants: Mapping[Use, Factors],
) -> tuple[list[tuple[Ids, Ids]], list[tuple[Ids, str]]]:
    """What readers of the same weights add to what is known of channels.

    Args:
        constants: Factors of constants per use, full along one axis each.

    Returns:
        Pairs of classes that become equal, element by element; and classes that have to stay since
        somebody reads all of the weight, with the reason.
    """
    known: dict[ir.Value, dict[Use, Factors]] = {}
    for use, factors in constants.items():
        for value, found in sources(use[0].inputs[use[1]], factors):
            known.setdefault(value, {})[use] = found
    pairs: list[tuple[Ids, Ids]] = []
    frozen: list[tuple[Ids, str]] = []
    for value, uses in known.items():
        shape = ir.static_shape(value) or ()
        readers = list(_readers(value, constants))
        if len(readers) < 2 or sum(n > 1 for n in shape) < 2:
            continue
        for axis in range(len(shape)):
            rows = [_along(uses.get(use, ()), axis) for use in readers]
            if not any(rows):
                continue
            whole = next((use for use, row in zip(readers, rows, strict=True) if not row), None)
            if value.is_graph_output() or whole is not None:
                reader = value if whole is None else whole[0].outputs[0]
                why = f"{value.name!r} is read whole by {reader.name!r}, too"
                frozen += [(factor, why) for row in rows for factor in row]
            elif len({len(row) for row in rows}) == 1:
                pairs += [(a, b) for row in rows[1:] for a, b in zip(rows[0], row, strict=True)]
            else:
                first = rows[0][0]
                pairs += [(first, factor) for row in rows for factor in row if factor is not first]
    return pairs, frozen


def _along(factors: Factors, axis: int) -> list[Ids]:
    return [f.reshape(-1) for f in factors if f.shape[axis] > 1]


def _readers(value: ir.Value, constants: Mapping[Use, Factors]) -> Iterator[Use]:
    """Who computes with a constant, itself or what is made of it without computing."""
    for use in value.uses():
        reader = (use.node, use.idx)
        made = use.node.outputs[0]
        if reader in constants or use.idx or not is_move(use.node) or made.is_graph_output():
            yield reader
        else:
            yield from _readers(made, constants)

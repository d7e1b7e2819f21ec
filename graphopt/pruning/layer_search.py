"""Which layers to leave out: one after the other, the one that is missed least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.measure import Trial
from graphopt.pruning.layers_out import Block, find_blocks, take_out
from graphopt.rewrite import Rewriter

__all__ = ["Removal", "removals", "without"]

# Layers whose loss is made up for before they are compared: those that are missed least without.
_TRIED = 3


@dataclasses.dataclass(frozen=True)
class Removal:
    """A model that lacks one more layer.

    Attributes:
        block: The layer.
        model: The model without it and those before.
        noise: Energy of the difference at the outputs, in units of the original's.
        raw: The same before the loss was made up for.
        others: Noise without each of the layers that could have gone instead, before the loss is
            made up for, by name; this one's among them.
    """

    block: Block
    model: ir.Model
    noise: float
    raw: float
    others: dict[str, float]


def removals(
    model: ir.Model,
    trial: Trial,
    names: Collection[str],
    *,
    recover: Callable[[ir.Model], ir.Model] | None = None,
    fast: bool = False,
) -> Iterator[Removal]:
    """Take out one layer after the other.

    Args:
        model: The original, with shapes inferred.
        trial: Its outputs on samples.
        names: Names of the layers that may go.
        recover: Makes up for what is missing, in a copy.
        fast: Weigh the noise against the time that a layer is estimated to take.

    Yields:
        The model without a first layer, then without a second, and so on until none is left.
    """
    seconds = _seconds(model, names)
    current, before = model, 0.0
    while blocks := [b for b in find_blocks(current) if b.name in names and b.reason is None]:
        noises = trial.noises(lambda block, m=current: without(m, block), blocks)  # type: ignore[misc]
        raw = {b.name: noise for b, noise in zip(blocks, noises, strict=True)}

        def price(block: Block, noise: float, least: float = before) -> float:
            return (noise - least) / seconds[block.name] if fast else noise

        blocks.sort(key=lambda b: price(b, raw[b.name]))
        tried = []
        for block in blocks[: 1 if recover is None else _TRIED]:
            made = without(current, block)
            made = made if recover is None else recover(made)
            noise = raw[block.name] if recover is None else trial.noise(made)
            tried.append(Removal(block, made, noise, raw[block.name], raw))
        best = min(tried, key=lambda r: price(r.block, r.noise))
        yield best
        current, before = best.model, best.noise


def without(model: ir.Model, block: Block) -> ir.Model:
    """A copy of a model without a layer of it, or of a model that it is a copy of."""
    copy = ir.clone(model)
    found = next(b for b in find_blocks(copy) if b.name == block.name)
    take_out(Rewriter(copy), found)
    ir.infer_shapes(copy)
    return copy


def _seconds(model: ir.Model, names: Collection[str]) -> dict[str, float]:
    cost = Cost(model)
    return {
        b.name: sum(cost.nodes[n].seconds for n in (*b.branch, b.add))
        for b in find_blocks(model)
        if b.name in names
    }

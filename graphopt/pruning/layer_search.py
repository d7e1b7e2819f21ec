"""Which layers to leave out: one after the other, the one that is missed least."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.errors import CalibrationError
from graphopt.measure import Trial
from graphopt.pruning.layers_out import Block, bypass, find_blocks, take_out
from graphopt.reconstruct import behind, rebuild
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["Removal", "removals"]

# Layers whose loss is made up for before they are compared: those that are missed least without.
_TRIED = 3
# Layers that are tried before it is asked whether others can be missed less.
_STEP = 4


@dataclasses.dataclass(frozen=True)
class Removal:
    """A model that lacks one more layer.

    Attributes:
        block: The layer.
        model: The model without it and those before.
        noise: Energy of the difference at the outputs, in units of the original's.
        raw: The same before the loss was made up for.
        others: Noise without each of the layers that could have gone instead, as last measured and
            before the loss is made up for, by name; this one's among them.
        unfitted: Why nothing was fitted to make up for the loss, where that was asked for.
    """

    block: Block
    model: ir.Model
    noise: float
    raw: float
    others: dict[str, float]
    unfitted: str | None = None


def removals(
    model: ir.Model,
    trial: Trial,
    names: Collection[str],
    *,
    fit: Sequence[Feeds] = (),
    fast: bool = False,
) -> Iterator[Removal]:
    """Take out one layer after the other.

    Noise of several removals roughly adds up, so that a layer that was missed much before is not
    tried again as long as others are missed less (lazy greedy search: Minoux, 1978). Where there
    are samples to fit on, the layers behind are fitted to what the original computes, for those
    that are missed least, and what is compared is the noise that is left.

    Args:
        model: The original, with shapes inferred.
        trial: Its outputs on samples.
        names: Names of the layers that may go.
        fit: Batches to fit the layers on that stay; without, they stay as they are.
        fast: Weigh the noise against the time that a layer is estimated to take.

    Yields:
        The model without a first layer, then without a second, and so on until none is left.
    """
    search = _Search(model, trial, fit, _seconds(model, names) if fast else {})
    while blocks := [b for b in find_blocks(search.model) if b.name in names and b.reason is None]:
        yield search.next(blocks)


class _Search:
    """The model without the layers that went, as bypasses, and what is known of the others."""

    def __init__(
        self, original: ir.Model, trial: Trial, fit: Sequence[Feeds], worth: dict[str, float]
    ) -> None:
        self.original, self.trial, self.fit, self.worth = original, trial, fit, worth
        self.model = original
        self.gone: list[str] = []
        self.noise = 0.0
        self.raw: dict[str, float] = {}  # without a layer, as last measured
        self.losses: dict[str, float] = {}  # what it was more than before, by what that is worth

    def next(self, blocks: list[Block]) -> Removal:
        """Take out the layer that is missed least."""
        left = sorted(blocks, key=self._loss)
        tried: list[Block] = []
        while left and (not tried or self._loss(left[0]) < min(map(self._loss, tried))):
            some, left = left[:_STEP], left[_STEP:]
            noises = self.trial.noises(self._without, some)
            for block, noise in zip(some, noises, strict=True):
                self.raw[block.name] = noise
                self.losses[block.name] = self._price(block, noise)
            tried += some
        tried.sort(key=self._loss)
        made = [self._made(block) for block in tried[: _TRIED if self.fit else 1]]
        best = min(made, key=lambda each: self._price(each.block, each.noise))
        self.model, self.noise = best.model, best.noise
        self.gone.append(best.block.name)
        closed = ir.clone(best.model)
        take_out(Rewriter(closed), self.gone)
        ir.infer_shapes(closed)
        return dataclasses.replace(best, model=closed)

    def _loss(self, block: Block) -> float:
        return self.losses.get(block.name, -math.inf)

    def _price(self, block: Block, noise: float) -> float:
        return (noise - self.noise) / self.worth.get(block.name, 1.0)

    def _without(self, block: Block) -> ir.Model:
        copy = ir.clone(self.model)
        bypass(Rewriter(copy), next(b for b in find_blocks(copy) if b.name == block.name))
        return copy

    def _made(self, block: Block) -> Removal:
        """The model with a bypass for a layer, its loss made up for where that is possible."""
        model, raw, others = self._without(block), self.raw[block.name], dict(self.raw)
        if not self.fit:
            return Removal(block, model, raw, raw, others)
        fitted = behind(model, {block.name, *self.gone})
        try:
            fits = rebuild(
                self.original, model, self.fit, lambda problem: problem.optimum,
                wanted=lambda layer: layer.name in fitted,
            )  # fmt: skip
        except CalibrationError as e:  # NaN or infinity, which masks of attentions may make
            return Removal(block, self._without(block), raw, raw, others, unfitted=str(e))
        unfitted = None
        if all(fit.reason is not None for fit in fits):
            unfitted = next((f.reason for f in fits), "no layers of 32-bit floats are behind it")
        return Removal(block, model, self.trial.noise(model), raw, others, unfitted)


def _seconds(model: ir.Model, names: Collection[str]) -> dict[str, float]:
    cost = Cost(model)
    return {
        b.name: sum(cost.nodes[n].seconds for n in (*b.branch, b.add))
        for b in find_blocks(model)
        if b.name in names
    }

"""Depth pruning: whole layers beside shortcuts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from graphopt import Context, Exactness, NotApplicable, Pass, ir
from graphopt.analyses import Cost
from graphopt.calibration import fitting
from graphopt.measure import (
    SCATTER,
    Budget,
    Quality,
    Trial,
    decibels,
    race,
    runs_here,
    settings,
)
from graphopt.pruning import Block, Removal, find_blocks, matches, removals
from graphopt.pruning.batches import check_budget, split
from graphopt.runtime import Feeds

__all__ = ["PruneLayers"]

_NAME = "prune-layers"


class PruneLayers(Pass):
    """Leave out the layers beside shortcuts that the outputs miss least.

    What it does: finds additions of a shortcut and of what a branch computes from it, such as the
    residual blocks of convolutional networks and the attentions and feed-forward layers of
    transformers. Where the shortcut has the shape of the sum it can stand for it. The model is run
    without each of these branches. Where least noise is added to the outputs, the layers behind
    are fitted anew, by least squares, to what the original computes, and the branch is taken out
    without which least noise is left. So on, one by one, until enough have gone.

    Exactness: LOSSY

    Needs: calibration data (--data); ONNX Runtime. It finds most after O2, which makes shapes known
    that exporters leave open.

    Options: count (how many go; 1, if nothing else is given), ratio (which share of the layers that
    may go), latency (until the model takes this share of the original's time on the target),
    min-sqnr (stop before the ratio of signal to noise at the outputs, in dB, is lower), max-drop
    (stop before more predictions change, in percent), keep (how many of the layers that may go have
    to stay), skip (patterns of names of values or nodes in layers, or kinds of layers, that stay:
    attention, convolution, recurrent, feed-forward), reconstruct (fit the layers that stay), dry
    (only measure and report), samples (how many to use, at most), threads (of an operator, when
    latency is measured).

    Example: Add(x, Conv(Relu(Conv(x, v)), w)) -> x

    Declines when: a shortcut is computed (a projection) or has another shape than the sum; values
    within a branch are outputs of the model or used elsewhere; there is no data; no removal stays
    within min-sqnr and max-drop; the result is not faster.

    References: Veit et al. (2016), "Residual Networks Behave Like Ensembles of Relatively Shallow
    Networks"; Michel et al. (2019), "Are Sixteen Heads Really Better than One?"; Men et al. (2024),
    "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect".
    """

    name = _NAME
    exactness = Exactness.LOSSY
    count: int | None = None
    ratio: float | None = None
    latency: float | None = None
    min_sqnr: float | None = None
    max_drop: float | None = None
    keep: int = 1
    skip: tuple[str, ...] = ()
    reconstruct: bool = True
    dry: bool = False
    samples: int = 512
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds, or there are several goals.
        """
        goals = [n for n in ("count", "ratio", "latency") if getattr(self, n) is not None]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} are different goals; give one")
        for name, least in (("count", 1), ("keep", 0), ("samples", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} has to be {least} or more, not {value}")
        for name in ("ratio", "latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is a share, in (0, 1], not {value}")
        _ = Budget(self.min_sqnr, self.max_drop)

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Take layers out of a copy, and take it over if it is better."""
        original = ir.clone(model)
        ir.infer_shapes(original)
        blocks = find_blocks(original)
        may_go = self._sort(blocks, ctx)
        most = self._most(len(may_go))
        if not most and not self.dry:
            if may_go:
                ctx.decline(_NAME, f"there are {len(may_go)} layers that may go, {self.keep} stay")
            return False
        ctx.details["layers"] = self.listed(blocks, [])
        if self.dry and (ctx.data is None or not may_go):
            return False
        if ctx.data is None:
            raise NotApplicable(
                "needs calibration data (--data), to see which layers the outputs miss least"
            )
        fit, aside = split(fitting(ctx.data, original), self.samples)
        check_budget(Budget(self.min_sqnr, self.max_drop), aside)
        search = _Search(self, ctx, original, fit, aside)
        taken = search.run({b.name for b in may_go}, most)
        ctx.details["layers"] = self.listed(blocks, taken)
        if self.dry or not taken or not ctx.allow(_NAME):
            return False
        search.tell(taken)
        ctx.rewriter().become(taken[-1].model)
        ctx.stats.applied["take-out-layer"] += len(taken)
        return True

    def _most(self, found: int) -> int:
        """How many layers may go."""
        wanted = found
        if self.ratio is not None:
            wanted = math.floor(self.ratio * found + 0.5)
        elif self.latency is None:
            wanted = self.count or 1
        return max(0, min(wanted, found - self.keep))

    def _sort(self, blocks: list[Block], ctx: Context) -> list[Block]:
        """Layers that may go; the reasons of the others are reported."""
        may_go = []
        for block in blocks:
            if block.reason is not None:
                ctx.decline(_NAME, block.reason)
            elif not matches(block, self.skip):
                may_go.append(block)
        for pattern in self.skip:
            if not any(matches(b, [pattern]) for b in blocks):
                ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
        return may_go

    def listed(self, blocks: list[Block], taken: list[Removal]) -> list[dict[str, Any]]:
        """Every layer as plain data: what leaving out it alone does, and when it went."""
        alone = taken[0].others if taken else {}
        order = {} if self.dry else {r.block.name: i + 1 for i, r in enumerate(taken)}
        return [
            {
                "name": b.name,
                "kind": b.kind,
                "nodes": len(b.branch),
                "sqnr_db": decibels(1.0, alone[b.name]) if b.name in alone else None,
                "removed": order.get(b.name),
                "reason": b.reason or ("to be skipped" if matches(b, self.skip) else None),
            }
            for b in blocks
        ]


@dataclasses.dataclass
class _Search:
    """Removals until a goal is met, and what is told of them."""

    options: PruneLayers
    ctx: Context
    original: ir.Model
    fit: list[Feeds]
    aside: list[Feeds]
    quality: Quality | None = None
    time: float = math.nan

    def run(self, names: set[str], most: int) -> list[Removal]:
        """Removals that meet the goal.

        Raises:
            NotApplicable: The first one misses the budget, or the result is not faster.
        """
        trial = Trial(self.original, self.fit)
        judge = Trial(self.original, self.aside) if self.aside else trial
        options, taken, why = self.options, list[Removal](), ""
        fit = self.fit if options.reconstruct and not options.dry else []
        fast = options.latency is not None
        for found in removals(self.original, trial, names, fit=fit, fast=fast):
            if options.dry:
                return [found]
            quality = judge.quality(found.model)
            why = self._obstacle(quality) or ""
            if why:
                break
            taken.append(found)
            self.quality = quality
            if options.latency is not None:
                self.time = self._time(found.model)
                if self.time <= options.latency:
                    break
            if len(taken) == most:
                break
        if not taken:
            if self._budget != Budget():
                self.ctx.details["missed"] = why
            raise NotApplicable(f"without the layer that is missed least: {why}")
        if math.isnan(self.time):
            self.time = self._time(taken[-1].model)
        if self.time > SCATTER:
            raise NotApplicable(f"the result takes {self.time:.2f} times as long as the original")
        if options.latency is not None and self.time > options.latency * SCATTER:
            missed = f"latency {self.time:.2f} of the original's, not {options.latency:g}"
            self.ctx.details["missed"] = f"{missed}: {why}" if why else missed
        return taken

    def _obstacle(self, quality: Quality) -> str | None:
        """Why a quality will not do; None if it does."""
        if quality.sqnr_db == -math.inf:
            return "outputs have nothing to do with the original's"
        return None if self._budget == Budget() else self._budget.obstacle(quality)

    @property
    def _budget(self) -> Budget:
        return Budget(self.options.min_sqnr, self.options.max_drop)

    def _time(self, model: ir.Model) -> float:
        """Time of a model in units of the original's: measured, or estimated for other machines."""
        if runs_here(self.ctx.target) is not None:
            return Cost(model).seconds / Cost(self.original).seconds
        inputs = settings(self.fit[0], self.original)
        (ratios,) = race(
            self.original, [model], inputs, target=self.ctx.target, threads=self.options.threads
        )
        return float(np.exp(np.mean(np.log(ratios))))

    def tell(self, taken: list[Removal]) -> None:
        """Report what was done, and what the model is worth without the layers."""
        assert self.quality is not None
        measured = runs_here(self.ctx.target) is None
        self.ctx.details.update(
            quality={**self.quality.to_json(), "aside": bool(self.aside)},
            macs=[Cost(self.original).macs, Cost(taken[-1].model).macs],
            **({"speedup": [1 / self.time]} if measured else {}),
        )
        names = ", ".join(f"%{r.block.name}" for r in taken)
        self.ctx.remark(
            f"took out {len(taken)} layers: {names}; {self.time:.2f} of the time "
            f"({'measured' if measured else 'estimated'}); {self.quality} on "
            f"{self.quality.samples} samples "
            f"{'that decided nothing' if self.aside else 'calibrated on'}"
        )
        if (doubt := self._budget.doubt(self.quality)) is not None:
            self.ctx.remark(doubt)
        for each in taken:
            if each.unfitted is not None:
                self.ctx.remark(f"nothing makes up for %{each.block.name}: {each.unfitted}")

"""Pruning as a whole: which groups lose how many channels, and what becomes of the model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.calibration import Samples
from graphopt.errors import NotApplicable
from graphopt.measure import (
    WORDS,
    Judge,
    LatencyTable,
    Outcome,
    Trial,
    race,
    runs_here,
    settings,
)
from graphopt.pruning.batches import check_budget, first, split
from graphopt.pruning.biases import with_biases
from graphopt.pruning.choose import Chooser
from graphopt.pruning.criteria import Scores
from graphopt.pruning.layers_out import find_blocks
from graphopt.pruning.noise import measure_noise, order_by_score, order_channels
from graphopt.pruning.options import Options
from graphopt.pruning.recover import recovered
from graphopt.pruning.shorten import shortened
from graphopt.pruning.sizes import MEASURES, Measure, Sizes, totals
from graphopt.pruning.timing import measure_savings
from graphopt.pruning.units import find_units
from graphopt.pruning.vary import varied
from graphopt.reconstruct import Problem, layers, observe
from graphopt.targets import Target

__all__ = ["prune"]


# Samples that noise is measured on.
_TRIED = 128
# Roughly how long one choice and the original are each measured.
_SECONDS = 0.8
_DRY = "a dry run only lists what could be pruned"


def prune(
    model: ir.Model,
    target: Target,
    data: Samples | None,
    options: Options,
    *,
    cache: Path | None = None,
) -> Outcome:
    """Remove channels of a model until the goal is met, and let the layers that stay make up.

    Args:
        model: The model, lossless optimization done. It is not changed.
        target: What to measure latency on.
        data: Samples, or None: the criteria of weights need none.
        options: How.
        cache: Folder of measured times.

    Raises:
        NotApplicable: Something that is needed is missing, or there is nothing to prune.
        CalibrationError: The samples do not fit the model.
    """
    known = with_biases(model) if options.recover else model
    return _Pruner(model, known, target, data, options, cache).run()


class _Pruner:
    def __init__(
        self,
        given: ir.Model,
        model: ir.Model,
        target: Target,
        data: Samples | None,
        options: Options,
        cache: Path | None,
    ) -> None:
        self.model, self.target, self.options = model, target, options
        self.cache = cache
        self.channels = Channels(model)
        self.sizes = Sizes(model, self.channels, given)
        blocks = [b for b in find_blocks(model) if b.reason is None] if options.whole else []
        self.units, self.reasons = find_units(
            self.channels,
            list(layers(model)),
            blocks,
            kind=options.kind,
            least=options.least,
            multiple=options.multiple,
            skip=options.skip,
        )
        self.fit, self.aside = split(data, options.samples)
        # Made-up samples show layers more of what they may read; nothing is judged on them.
        self.more = varied(model, self.fit) if options.vary else self.fit
        self.details: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}

    def run(self) -> Outcome:
        if self.options.dry and not (self.units and self.fit):
            self._list(None)
            return Outcome(None, _DRY, self.details)
        self._check()
        scores = Scores(self.channels, data=self._samples())
        problems = self._observe()
        if self.options.criterion == "obs":
            order_channels(self.units, problems, scores)
        else:
            order_by_score(self.units, scores, self.options.criterion)
        if self.fit and (self.options.ranking == "measured" or self.options.dry):
            with self._timed("noise"):
                trial = Trial(self.model, first(self.fit, _TRIED))
                measure_noise(
                    self.channels, self.units, problems, trial, recover=self.options.recover
                )
        measure = self._measured if self._time() else None
        self.chooser = Chooser(self.units, self.sizes, self.options, scores, measure)
        with self._timed("choose"):
            left = self.chooser.choose()
        self._list(left)
        if self.options.dry:
            self._summarize({n: self.chooser.size(left, n) for n in MEASURES})
            return Outcome(None, _DRY, self.details)
        return self._finish(left)

    def _check(self) -> None:
        options = self.options
        if self.fit:
            check_budget(options.budget, self.aside)
        random = next(filter(_draws, ir.all_nodes(self.model)), None)
        if random is not None and self.fit:
            raise NotApplicable(
                f"{random.op_type} {random.outputs[0].name!r} draws random numbers, so that "
                "outputs cannot be compared"
            )
        if not self.units:
            why = next(iter(self.reasons.values()), "no operator makes any")
            hint = "; freeze-inputs turns weights that are inputs into constants"
            raise NotApplicable(
                f"there are no {options.kind} to prune: {why}"
                + (hint if any(v.is_initializer() for v in self.model.graph.inputs) else "")
            )
        if not self.fit:
            needs = [
                name
                for name, asked in (
                    ("criterion=obs", options.criterion == "obs"),
                    ("ranking=measured", options.ranking == "measured"),
                    ("recover", options.recover),
                    ("latency", options.goal.what == "latency"),
                )
                if asked
            ]
            if needs:
                verb = "needs" if len(needs) == 1 else "need"
                raise NotApplicable(f"{' and '.join(needs)} {verb} calibration data (--data)")
        what = options.goal.what
        if what in MEASURES and not self.sizes.before[what]:
            raise NotApplicable(f"the model has no {WORDS[what]} to save")
        if what == "latency":
            reason = runs_here(self.target)
            if reason is not None:
                raise NotApplicable(f"latency cannot be measured: {reason}")

    def _samples(self) -> Samples | None:
        from graphopt.calibration import from_batches

        return from_batches(self.fit, self.model) if self.fit else None

    def _observe(self) -> dict[str, Problem]:
        if not self.fit or not (self.options.recover or self.options.criterion == "obs"):
            return {}
        with self._timed("observe"):
            names = {read.layer for unit in self.units for read in unit.reads}
            return observe(self.model, self.more, names)

    def _time(self) -> bool:
        """Measure what units save; whether that is of use and could be done."""
        options = self.options
        paying = options.goal.what == "macs" and options.payoff and options.ranking == "measured"
        if options.goal.what != "latency" and not paying:
            return False
        if runs_here(self.target) is not None or not self.fit:
            return False
        table = LatencyTable.of(self.cache, self.target, options.threads)
        with self._timed("latency"):
            measure_savings(
                self.channels,
                self.units,
                settings(self.fit[0], self.model)[0],
                target=self.target,
                threads=options.threads,
                table=table,
            )
        table.save()
        return True

    def _measured(self, left: Sequence[int]) -> float:
        """Latency with so many channels of each unit, in units of the original's."""
        form = shortened(self.model, self.channels, self.units, left)
        feeds = settings(self.fit[0], self.model)[:1]
        ((ratio,),) = race(
            self.model,
            [form],
            feeds,
            target=self.target,
            threads=self.options.threads,
            seconds=_SECONDS,
        )
        return ratio

    # What becomes of the model.

    def _finish(self, left: list[int]) -> Outcome:
        if all(n == u.size for u, n in zip(self.units, left, strict=True)):
            return Outcome(None, "no group can lose channels for this goal", self.details)
        whole = wanted = self.model
        if self.options.recover:
            with self._timed("recover"):
                whole, wanted, fits = recovered(self.channels, self.units, left, self.more)
            self.details["fits"] = [dataclasses.asdict(fit) for fit in fits]
        pruned = shortened(whole, self.channels, self.units, left)
        judge = Judge(
            self.model, self.target, self.fit, self.aside,
            self.options.goal, self.options.budget, self.options.threads,
        )  # fmt: skip
        if self.options.recover:
            judge.same(wanted, pruned, "cutting channels out")
        self._summarize(totals(pruned))
        what = self.options.goal.what
        share = self.details["left"].get(what, self.chooser.share(left))
        return judge.verdict(
            pruned, share, self.details, how="pruned", exhausted=self.chooser.missed
        )

    # What is reported.

    def _list(self, left: Sequence[int] | None) -> None:
        """List the groups; without samples nobody knows how many channels would be left."""
        rows = []
        counts = [None] * len(self.units) if left is None else left
        for unit, n in zip(self.units, counts, strict=True):
            rows.append(
                {
                    "name": unit.group.name,
                    "kind": unit.group.kind,
                    "channels": unit.size,
                    "left": n,
                    "whole": unit.block is not None,
                    "noise": {str(k): v for k, v in unit.noise.items()},
                    "saved": {str(k): v for k, v in unit.saved.items()},
                }
            )
        self.details["groups"] = rows
        self.details["frozen"] = [
            {"name": name, "reason": reason} for name, reason in self.reasons.items()
        ]

    def _summarize(self, sizes: dict[Measure, float]) -> None:
        self.details["left"] = {
            name: size / max(self.sizes.before[name], 1e-300) for name, size in sizes.items()
        }
        self.details["seconds"] = self._seconds

    def _timed(self, name: str) -> _Clock:
        return _Clock(self._seconds, name)


def _draws(node: ir.Node) -> bool:
    """Whether a node computes something else each time."""
    known = node.domain in ("", "com.microsoft") and not any(ir.subgraphs(node))
    return known and not ir.is_deterministic(node)


class _Clock:
    """Adds the seconds inside of a with statement to an entry."""

    def __init__(self, entries: dict[str, float], name: str) -> None:
        self._entries, self._name = entries, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._began
        self._entries[self._name] = self._entries.get(self._name, 0.0) + spent

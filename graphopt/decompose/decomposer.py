"""Decomposition as a whole: which layers are computed in parts, and what becomes of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration import Samples
from graphopt.decompose.choose import Chooser
from graphopt.decompose.embeddings import Embeddings
from graphopt.decompose.emit import emit
from graphopt.decompose.forms import Form
from graphopt.decompose.items import Item, Removal, items
from graphopt.decompose.options import Options
from graphopt.decompose.parts import find_parts, measure_noise, products, skipped
from graphopt.decompose.product import Product
from graphopt.decompose.removals import bypassed, closed, find_removals
from graphopt.decompose.timing import changed, measure_savings
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
from graphopt.pruning.sizes import MEASURES, totals
from graphopt.reconstruct import Problem, behind, layers, rebuild
from graphopt.rewrite import Rewriter
from graphopt.targets import Target

__all__ = ["decompose"]

Array = np.ndarray[Any, Any]

# How often factors that the model gets are fitted to each other.
_SWEEPS = 8
# Roughly how long one choice and the original are each measured.
_SECONDS = 0.8
# Samples that the noise of blocks is measured on.
_TRIED = 128
_FITTED = (
    "parts were fitted to the samples that this quality is of; give more than one batch to see "
    "that of others"
)
_DRY = "a dry run only lists what could be decomposed"


def decompose(
    model: ir.Model,
    target: Target,
    data: Samples | None,
    options: Options,
    *,
    cache: Path | None = None,
) -> Outcome:
    """Compute layers of a model in parts until the goal is met, each fitted to the original.

    Args:
        model: The model, lossless optimization done. It is not changed.
        target: What to measure latency on.
        data: Samples.
        options: How.
        cache: Folder of measured times.

    Raises:
        NotApplicable: Something that is needed is missing, or no layer has a smaller form.
        CalibrationError: The samples do not fit the model.
    """
    return _Decomposer(model, target, data, options, cache).run()


class _Decomposer:
    def __init__(
        self,
        model: ir.Model,
        target: Target,
        data: Samples | None,
        options: Options,
        cache: Path | None,
    ) -> None:
        self.model, self.target, self.options, self.cache = model, target, options, cache
        self.fit, self.aside = split(data, options.samples)
        # Fitting gives layers a bias that have none.
        grown = with_biases(model)
        self.parts, self.reasons = find_parts(grown, options.kinds, options.skip)
        self.before = {str(name): size for name, size in totals(model).items()}
        self.biases = {str(name): size - self.before[name] for name, size in totals(grown).items()}
        self.items: list[Item] = []
        self.tables: Embeddings | None = None
        self.details: dict[str, Any] = {}

    def run(self) -> Outcome:
        self._check()
        measure_noise(self.model, self.parts, self.fit, 2)
        timed = self._time()
        if self._shrinks:
            self.tables = Embeddings(self.model, self.fit, self.options.skip, threads=2)
            self.parts = [*self.tables.parts, *self.parts]
            self.reasons |= self.tables.reasons
            self._require_parts()
        self.items = items(self.parts, self._removals(timed) if self.options.whole else [])
        what = self.options.goal.what
        total, added = (1.0, 0.0) if what == "latency" else (self.before[what], self.biases[what])
        measure = self._measured if timed else None
        chooser = Chooser(self.items, total, added, self.options, measure)
        places = chooser.choose()
        self._list(places)
        if self.options.dry:
            return Outcome(None, _DRY, self.details)
        if not any(places):
            why = "no form of a layer is worth it for this goal"
            return Outcome(None, why, self.details, missed=True)
        found = self._made(*self._chosen(places))
        after = {str(name): size for name, size in totals(found).items()}
        left: dict[str, float] = {
            name: after[name] / max(self.before[name], 1e-300) for name in MEASURES
        }
        self.details["left"] = left
        share = chooser.share(places) if what == "latency" else left[what]
        outcome = self._judge.verdict(
            found, share, self.details, how="decomposed", exhausted=chooser.missed
        )
        if self.aside:
            return outcome
        return dataclasses.replace(outcome, remarks=(*outcome.remarks, _FITTED))

    @property
    def _shrinks(self) -> bool:
        """Whether embeddings may be products, too: they save no work, but numbers."""
        return self.options.goal.what in ("params", "bytes") and "output" in self.options.kinds

    def _require_parts(self) -> None:
        if not self.parts:
            reasons = list(dict.fromkeys(self.reasons.values()))
            why = "; ".join(reasons) or "none has constant weights of 32-bit floats"
            raise NotApplicable(f"no layer can be computed in parts: {why}")

    def _check(self) -> None:
        options = self.options
        if not self._shrinks:
            self._require_parts()
        if not self.fit:
            raise NotApplicable(
                "needs calibration data (--data), to fit the parts to what layers compute"
            )
        check_budget(options.budget, self.aside)
        what = options.goal.what
        if what == "latency":
            reason = runs_here(self.target)
            if reason is not None:
                raise NotApplicable(f"latency cannot be measured: {reason}")
        elif not self.before[what]:
            raise NotApplicable(f"the model has no {WORDS[what]} to save")

    @property
    def _judge(self) -> Judge:
        options = self.options
        return Judge(
            self.model, self.target, self.fit, self.aside,
            options.goal, options.budget, options.threads,
        )  # fmt: skip

    def _time(self) -> bool:
        """Measure what forms save; whether that is of use and could be done."""
        options = self.options
        if options.goal.what != "latency" and not (options.goal.what == "macs" and options.payoff):
            return False
        if runs_here(self.target) is not None:
            return False
        table = LatencyTable.of(self.cache, self.target, options.threads)
        measure_savings(
            self.model,
            self.parts,
            settings(self.fit[0], self.model)[0],
            target=self.target,
            threads=options.threads,
            table=table,
        )
        table.save()
        return True

    def _removals(self, timed: bool) -> list[Removal]:
        trial = Trial(self.model, first(self.fit, _TRIED))
        how = {"target": self.target, "threads": self.options.threads} if timed else None
        inputs = settings(self.fit[0], self.model)[:1]
        return find_removals(self.model, self.parts, trial, self.options.skip, how, inputs)

    def _chosen(self, places: Sequence[int]) -> tuple[dict[str, Form], list[str]]:
        """Forms of layers, and blocks that go."""
        forms: dict[str, Form] = {}
        gone: list[str] = []
        for item, place in zip(self.items, places, strict=True):
            forms.update(item.forms[place])
            name = item.removed[place]
            if name is not None:
                gone.append(name)
        return forms, gone

    def _measured(self, places: Sequence[int]) -> float:
        """Latency with some options, in units of the original's."""
        forms, gone = self._chosen(places)
        form = closed(changed(bypassed(self.model, gone), forms), gone)
        ((ratio,),) = race(
            self.model, [form], settings(self.fit[0], self.model)[:1], target=self.target,
            threads=self.options.threads, seconds=_SECONDS,
        )  # fmt: skip
        return ratio

    def _made(self, forms: Mapping[str, Form], gone: Sequence[str]) -> ir.Model:
        """The model in parts: layer after layer is fitted as a whole, then written as parts."""
        factors: dict[str, list[Product]] = {}
        whole = bypassed(self.model, gone)
        low: list[str] = []
        if self.tables is not None:
            whole = self.tables.applied(whole, forms, whole=True)
            low = [part.name for part in self.tables.parts if part.name in forms]
        dirty = behind(whole, [*gone, *low]) if gone or low else set()

        def change(problem: Problem) -> Array:
            form = forms.get(problem.layer.name)
            if form is None:
                return problem.optimum
            factors[problem.layer.name], weights = products(problem, form, _SWEEPS)
            return weights

        fits = rebuild(
            self.model, whole, self.fit, change,
            wanted=lambda layer: layer.name in forms or layer.name in dirty,
            only=lambda layer: not skipped(layer, self.options.skip), threads=2,
        )  # fmt: skip
        self.details["fits"] = [dataclasses.asdict(fit) for fit in fits]
        found = ir.clone(whole) if self.tables is None else self.tables.applied(whole, forms)
        rw = Rewriter(found)
        for layer in list(layers(found)):
            groups = factors.get(layer.name)
            if groups is not None:
                each = zip(*(group.factors for group in groups), strict=True)
                emit(rw, layer, forms[layer.name], [np.stack(same) for same in each])
        rw.remove_initializers()
        closed(found, gone)
        self._judge.same(closed(whole, gone), found, "writing layers as parts")
        return found

    def _list(self, places: Sequence[int]) -> None:
        """List the layers and blocks, and what becomes of them."""
        forms, gone = self._chosen(places)
        lost = {
            name
            for item, place in zip(self.items, places, strict=True)
            if item.removed[place] is not None
            for each in item.forms
            for name in each
        }
        self.details["layers"] = [
            {
                "name": part.name,
                "form": "removed" if part.name in lost else str(forms.get(part.name, "whole")),
                "noise": float(part.noise[place]),
                "error": float(part.errors[place]),
                "faster": float(part.faster[place]),
                "saved": {what: float(part.saved[what][place]) for what in MEASURES},
            }
            for part in self.parts
            for place in (part.forms.index(forms.get(part.name)),)
        ]
        self.details["removed"] = gone
        self.details["whole"] = [
            {"name": name, "reason": reason} for name, reason in self.reasons.items()
        ]

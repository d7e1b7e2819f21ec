"""Post-training quantization of a model: everything from samples to the form that pays."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import glob
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from graphopt import ir
from graphopt.calibration import Samples, collect
from graphopt.calibration.observers import Finite
from graphopt.errors import NotApplicable, SessionError
from graphopt.measure import Budget, LatencyTable, Quality, Trial, runs_here, settings
from graphopt.quant.choose import Division, cheapest
from graphopt.quant.costs import Costs, estimated_costs, measure_costs
from graphopt.quant.debug import trace
from graphopt.quant.dynamic_form import DynamicForm
from graphopt.quant.equalize import equalize
from graphopt.quant.explain import explain
from graphopt.quant.measure import Candidate, best, judge, raced, summary
from graphopt.quant.static import StaticForm, affordable_rows, observe, search, settle
from graphopt.quant.units import Units, outputs
from graphopt.runtime import Feeds, batch_size
from graphopt.targets import Scheme, Target

__all__ = ["Options", "Outcome", "quantize"]

# Estimated seconds of inference for trying ranges and weights one by one.
_SEARCH_SECONDS = 100.0
# Forms that are measured whole: the fastest division and some that add less noise.
_DIVISIONS = 8
# Samples that judge the result and nothing else: this share, up to this number.
_SHARE, _JUDGES = 0.25, 256
# Of fewer samples all are needed for ranges.
_ENOUGH = 64
# Divisions that are expected to take this much longer than the fastest are for budgets only.
_SLOWER = 1.25
# Kinds of forms whose fastest member takes this much longer than the fastest are not searched.
_NEAR = 1.05
# Signal-to-noise ratio in dB from which on a dynamic form is accurate enough without a budget: a
# mean cosine of 0.995.
_FINE = 20.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        form: ``static``, ``dynamic`` (products whose activations are quantized when they are seen),
            or ``auto``: what is faster, node by node.
        method: How ranges of activations are found, and its options; None tries several.
        rounding: Round weights by what their errors do to outputs, and correct biases.
        equalize: Equalize the ranges of channels first.
        measured: Let measured latency and noise choose which nodes to quantize; otherwise all that
            have an integer kernel are.
        skip: Glob patterns of names of nodes or values, and operators, that stay as they are.
        budget: What has to be kept of the original.
        samples: How many samples to use, at most.
        threads: Threads within an operator, when latency is measured.
        debug: Tell of every tensor what quantization does to it.
    """

    form: Literal["auto", "static", "dynamic"] = "auto"
    method: tuple[str, Mapping[str, Any]] | None = None
    rounding: bool = True
    equalize: bool = True
    measured: bool = True
    skip: tuple[str, ...] = ()
    budget: Budget = dataclasses.field(default_factory=Budget)
    samples: int = 1024
    threads: int = 1
    debug: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        model: The quantized model; None where the original is to be kept.
        reason: Why this one, or why none, in a sentence.
        details: Candidates, nodes and why they are as they are, as plain data.
        unmatched: Patterns of what to skip that fit nothing.
    """

    model: ir.Model | None
    reason: str
    details: dict[str, Any]
    unmatched: tuple[str, ...] = ()


def quantize(
    model: ir.Model,
    target: Target,
    scheme: Scheme,
    data: Samples | None,
    options: Options,
    *,
    finish: Callable[[ir.Model], None],
    executor: concurrent.futures.Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Outcome:
    """Quantize a copy of a model for a target.

    Args:
        model: A model in normal form, with opset 13 or later.
        target: Where it will run.
        scheme: How the target wants it.
        data: Samples of the model's inputs; without them only the dynamic form is possible.
        options: How.
        finish: Brings a quantized copy into the spelling that the target runs, in place.
        executor: Where samples run.
        cache: Folder where observations and measured times are kept.

    Raises:
        NotApplicable: There is nothing to quantize, or nothing to quantize it with.
        CalibrationError: The data do not fit the model.
    """
    found = _Quantizer(model, target, scheme, data, options, finish, executor, cache).run()
    nodes = list(ir.all_nodes(model))
    unmatched = tuple(p for p in options.skip if not any(ir.matches(n, [p]) for n in nodes))
    return dataclasses.replace(found, unmatched=unmatched)


class _Quantizer:
    def __init__(
        self,
        model: ir.Model,
        target: Target,
        scheme: Scheme,
        data: Samples | None,
        options: Options,
        finish: Callable[[ir.Model], None],
        executor: concurrent.futures.Executor | None,
        cache: str | os.PathLike[str] | None,
    ) -> None:
        self.original, self.target, self.scheme = ir.clone(model), target, scheme
        self.data, self.options, self.finish = data, options, finish
        self.executor, self.cache = executor, cache
        ir.infer_shapes(self.original)
        self.model = self.original  # until channels are equalized, in a copy
        self.unmeasurable = (
            runs_here(target) if options.measured else "every node with an integer kernel counts"
        )
        self.infinite: frozenset[str] = frozenset()
        self.tried: list[Candidate] = []
        self.details: dict[str, Any] = {"unmeasured": self.unmeasurable}
        self.units = Units(self.model, scheme, skip=options.skip)
        self.dynamic = DynamicForm(self.model, scheme, target, options.skip)

    def run(self) -> Outcome:
        static, dynamic = self.possible()
        if self.data is None:
            if self.options.form != "dynamic":
                raise NotApplicable(
                    "needs calibration data (--data), to see what the nodes compute; form=dynamic "
                    "does without"
                )
            return self.without_data()
        batches = self.batches()
        try:
            trial = Trial(self.model, batches[0])
        except SessionError as e:
            raise NotApplicable(
                f"ONNX Runtime, with its optimizations on, does not run the model: {e}"
            ) from e
        self.leave_infinite(len(batches[0]))
        static, dynamic = self.possible()
        inputs = settings(batches[0][0], self.model)
        costs = self.costs(inputs[0]) if static and self.unmeasurable is None else None
        families = self.families(static, dynamic, costs, inputs)
        candidates: list[Candidate] = []
        form: StaticForm | None = None
        if "static" in families or "mixed" in families:
            form = self.static_form(trial)
            candidates += self.static(form, costs, trial, mixed="mixed" in families)
        if "dynamic" in families:
            candidates += self.dynamic.candidates(
                trial, self.data, self.finish, self.enough,
                executor=self.executor, cache=self.cache,
            )  # fmt: skip
        if candidates and self.unmeasurable is None:
            candidates = raced(
                self.original, candidates, inputs, target=self.target,
                threads=self.options.threads,
            )  # fmt: skip
        candidates = judge(candidates, Trial(self.original, batches[1]))
        chosen, reason = best(candidates or self.tried, self.options.budget)
        self.details["candidates"] = [*self.details.pop("tried", []), *summary(candidates)]
        self.details["chosen"] = None if chosen is None else chosen.name
        self.details["nodes"] = explain(
            self.units, self.dynamic, chosen, form=form, costs=costs, infinite=self.infinite
        )
        if form is not None and self.options.debug:
            # Where none is taken, the fastest one tells what was wrong with it.
            traced = next((c for c in (chosen, *candidates) if c and c.integer), None)
            if traced is not None:
                self.debug(form, traced, batches[0])
        if chosen is not None and chosen.quality is not None:
            which = (
                "that decided nothing" if batches[1] is not batches[0] else "it was calibrated on"
            )
            reason = f"{reason}; {chosen.quality} on {chosen.quality.samples} samples {which}"
        return Outcome(None if chosen is None else chosen.model, reason, self.details)

    def possible(self) -> tuple[bool, bool]:
        """Whether there are a static and a dynamic form.

        Raises:
            NotApplicable: There is neither.
        """
        static = self.options.form != "dynamic" and any(not u.moves for u in self.units)
        dynamic = self.options.form != "static" and bool(self.dynamic)
        if not static and not dynamic:
            raise NotApplicable(self.nothing())
        return static, dynamic

    def leave_infinite(self, limit: int) -> None:
        """Leave in floating point what reads or writes NaN or infinity, as masks do by design."""
        assert self.data is not None
        if not len(self.units):
            return
        seen = collect(
            self.model,
            {
                v.name or "": Finite()
                for v in self.units.tensors()
                if v.producer() is not None  # samples are finite
            },
            self.data, executor=self.executor, cache=self.cache, limit=limit,
        )  # fmt: skip
        odd = {n for n, (o,) in seen.items() if isinstance(o, Finite) and not o.finite}
        self.infinite = frozenset(
            u.name for u in self.units if any(v.name in odd for v in (*u.inputs, *outputs(u)))
        )
        if self.infinite:
            skip = (*self.options.skip, *(glob.escape(name) for name in sorted(self.infinite)))
            self.options = dataclasses.replace(self.options, skip=skip)
            self.units = Units(self.model, self.scheme, skip=skip)
            self.dynamic = DynamicForm(self.model, self.scheme, self.target, skip)

    def nothing(self) -> str:
        """Why there is nothing to quantize."""
        forms = {f for kernel in self.scheme.kernels.values() for f in kernel.forms}
        if not forms & {"static", "dynamic"}:
            return f"{self.target.name} computes nothing on 8-bit integers; convert-fp16 may help"
        left = ", and some let infinity through" if self.infinite else ""
        if self.options.skip:
            left += f"; these are to be skipped: {', '.join(self.options.skip)}"
        return f"{self.target.name} computes none of the nodes on integers{left}"

    def enough(self, quality: Quality) -> bool:
        """Whether a dynamic form needs no product left in floating point."""
        budget = self.options.budget
        return budget.obstacle(quality) is None and (budget != Budget() or quality.sqnr_db > _FINE)

    def without_data(self) -> Outcome:
        """Dynamic quantization of all products, since nothing can be tried.

        Raises:
            NotApplicable: There is a budget, which has to be tried.
        """
        if self.options.budget != Budget():
            raise NotApplicable("needs calibration data (--data), to see what is kept of accuracy")
        model = self.dynamic.written(self.model, None, self.finish)
        chosen = Candidate("dynamic", model, dynamic=self.dynamic.names | self.dynamic.layers)
        self.details["chosen"] = chosen.name
        self.details["nodes"] = explain(self.units, self.dynamic, chosen)
        return Outcome(model, "dynamic, without samples to judge it by", self.details)

    def debug(self, form: StaticForm, traced: Candidate, batches: list[Feeds]) -> None:
        """Report what quantization does to every tensor of a static form."""
        assert self.data is not None
        report = trace(
            traced.name, self.units, form, traced.integer, batches, self.data,
            executor=self.executor, cache=self.cache,
        )  # fmt: skip
        self.details["debug"] = report.to_json()

    def batches(self) -> tuple[list[Feeds], list[Feeds]]:
        """Batches to try forms on, and others, which nothing else sees, to judge the result by.

        A quarter of the samples is kept for that, up to a number, from the end of the data; none
        where there are few.
        """
        assert self.data is not None
        sizes, rows = [], 0
        for feeds in self.data:
            sizes.append(batch_size(feeds))
            rows += sizes[-1]
            if rows >= self.options.samples:
                break
        if rows < (self.data.count or 0):
            self.details["samples"] = {"used": rows, "given": self.data.count}
        room = min(_JUDGES, rows * _SHARE) if rows >= _ENOUGH else 0
        kept, last = 0, len(sizes)
        while last > 1 and kept + sizes[last - 1] <= room:
            last -= 1
            kept += sizes[last]
        variants = 5 * len(self.units.tensors()) + len(self.units)
        wanted = affordable_rows(self.model, variants, seconds=_SEARCH_SECONDS)
        first: list[Feeds] = []
        then: list[Feeds] = []
        seen = 0
        for i, feeds in enumerate(itertools.islice(self.data, len(sizes))):
            if i >= last:
                then.append(feeds)
            elif seen < wanted:
                first.append(feeds)
                seen += sizes[i]
        self.data = self.data.first(last)
        self.details["judged_on"] = "held out" if then else "calibration"
        return first, then or first

    def costs(self, feeds: Feeds) -> Costs:
        """Measured seconds of the units, with parameters that are good enough for that."""
        assert self.data is not None
        cache = None if self.cache is None else Path(self.cache)
        table = LatencyTable.of(cache, self.target, self.options.threads)
        rough = settle(
            self.units,
            observe(self.units, self.data, rounding=False, limit=1),
            skip=self.options.skip,
        )
        self.rough = rough
        found = measure_costs(
            self.units,
            rough.quantized,
            feeds,
            target=self.target,
            threads=self.options.threads,
            table=table,
        )
        table.save()
        return found

    def families(
        self, static: bool, dynamic: bool, costs: Costs | None, inputs: Sequence[Feeds]
    ) -> list[str]:
        """Which kinds of forms are worth a search, by the latency of their fastest member."""
        if costs is None and self.unmeasurable is None:
            return ["dynamic"]
        if costs is None:
            return ["static"] if static else ["dynamic"]
        fastest: dict[str, Candidate] = {}
        products = self.dynamic.names
        for name in ("static", "mixed", "dynamic"):
            if name == "dynamic" and dynamic:
                model = self.dynamic.written(self.model, None, self.finish)
            elif name == "static" or (name == "mixed" and dynamic):
                fixed = products if name == "mixed" else ()
                division = cheapest(self.units, costs, {}, {}, 0.0, fixed=fixed)
                if not division.integer:
                    continue
                model = self.rough.quantized(self.model, division.integer)
                if name == "mixed":
                    self.dynamic.write(model, None)
                self.finish(model)
            else:
                continue
            fastest[name] = Candidate(f"fastest {name}", model)
        if not fastest:
            return []
        measured = raced(
            self.model, list(fastest.values()), inputs, target=self.target,
            threads=self.options.threads, seconds=0.5,
        )  # fmt: skip
        self.tried, self.details["tried"] = measured, summary(measured)
        ratios = {n: c.ratio for n, c in zip(fastest, measured, strict=True)}
        limit = min(min(ratios.values()) * _NEAR, 1.0)
        near = [n for n, r in ratios.items() if r <= limit]
        if "static" in near and "mixed" in near:  # they differ in how products are computed
            near.remove(max("static", "mixed", key=ratios.__getitem__))
        return near

    def static_form(self, trial: Trial) -> StaticForm:
        """Parameters and weights, the best that samples can tell."""
        assert self.data is not None
        if self.options.equalize:
            self.equalize(trial)
        seen = observe(
            self.units,
            self.data,
            method=self.options.method,
            rounding=self.options.rounding,
            executor=self.executor,
            cache=self.cache,
        )
        first = settle(self.units, seen, skip=self.options.skip)
        return search(self.units, seen, trial, first)

    def equalize(self, trial: Trial) -> None:
        """Equalize channels in a copy, which static forms are made of from then on."""
        assert self.data is not None
        copy = ir.clone(self.original)
        units = Units(copy, self.scheme, skip=self.options.skip)
        found = equalize(
            units, trial, self.data, rounding="optimal" if self.options.rounding else "nearest",
            executor=self.executor, cache=self.cache,
        )  # fmt: skip
        self.details["equalized"] = {"before": found.before, "after": found.after}
        self.model = copy
        ir.infer_shapes(copy)
        self.units = Units(copy, self.scheme, skip=self.options.skip)

    def static(
        self, form: StaticForm, costs: Costs | None, trial: Trial, *, mixed: bool
    ) -> list[Candidate]:
        """Forms of the model with more and fewer units on integers."""
        products = self.dynamic.names if mixed else frozenset()
        names = {u.name for u in self.units}
        whole = [] if costs is not None else [Division(frozenset(names), 0.0, 0.0)]
        known = estimated_costs(self.units) if costs is None else costs
        others = form.divisions(self.units, known, fixed=products)
        found: list[Candidate] = []
        fastest = 0.0
        for division in itertools.chain(whole, itertools.islice(others, _DIVISIONS)):
            if not division.integer or any(c.integer == division.integer for c in found):
                continue
            if not whole and self.options.budget == Budget():
                fastest = division.seconds if not found else fastest
                if division.seconds > _SLOWER * fastest:
                    break  # only a budget would be worth that much of the speed
            model = form.quantized(self.model, division.integer)
            if mixed:
                self.dynamic.write(model, self.data, executor=self.executor, cache=self.cache)
            self.finish(model)
            count = len(division.integer)
            name = f"static, {count} of {len(names)} nodes"
            found.append(Candidate(name, model, division.integer, products))
            budget = self.options.budget
            if whole and budget == Budget() and budget.obstacle(trial.quality(model)) is None:
                break  # all that has a kernel, and nothing against it
        return found

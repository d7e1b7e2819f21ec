"""Static quantization of a model, from samples to a form for every division of its units."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.calibration import Histogram, Observer, Samples, collect, find_range, observer_for
from graphopt.calibration.gram import Gram
from graphopt.measure import Trial
from graphopt.quant import weights as weight_rounding
from graphopt.quant.choose import Division, frontier
from graphopt.quant.costs import Costs
from graphopt.quant.emit import Quantized, emit_static
from graphopt.quant.params import QParams
from graphopt.quant.prepare import Range, activation_params, to_observe
from graphopt.quant.sensitivity import Sensitivity, measure_activations, measure_weights
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.targets import Scheme

__all__ = ["StaticForm", "observe", "search", "settle"]

# Ranges that are tried for each activation: rare large values may matter, or cost all others.
_TRIED: tuple[tuple[str, dict[str, float]], ...] = (
    ("minmax", {}),
    ("percentile", {"percentile": 99.999}),
    ("percentile", {"percentile": 99.99}),
    ("mse", {}),
)
_FIRST = ("percentile", {"percentile": 99.999})
# Ranges that differ by less than this share of their width are taken for one.
_SAME = 0.002


@dataclasses.dataclass(frozen=True)
class Observed:
    """What calibration saw.

    Attributes:
        activations: By name of the value.
        inputs: What weights multiply, by name of the unit.
        method: How ranges are found, and with which options; None to try several.
    """

    activations: Mapping[str, Observer]
    inputs: Mapping[str, Gram]
    method: tuple[str, Mapping[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class StaticForm:
    """Everything that writing a static quantization takes, by names, so that it fits any copy.

    Attributes:
        scheme: How the target wants it.
        skip: Patterns of what stays as it is.
        params: Of activations, by value.
        weights: By unit.
        noise: Noise at the outputs from rounding an activation, by root of those that share
            parameters; empty where it was not measured.
        weight_noise: The same of a weight, by unit.
        ranges: Range of every observed activation.
    """

    scheme: Scheme
    skip: tuple[str, ...]
    params: Mapping[str, QParams]
    weights: Mapping[str, Quantized]
    ranges: Mapping[str, Range]
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weight_noise: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def units(self, model: ir.Model) -> Units:
        """The units of a copy of the model."""
        return Units(model, self.scheme, skip=self.skip)

    def write(self, rw: Rewriter, chosen: Collection[str] | None = None) -> dict[str, str]:
        """Quantize units of a model in place.

        Args:
            rw: Rewriter of a copy of the model.
            chosen: Names of the units; all of them if None.

        Returns:
            Which value stands for which; see :func:`emit_static`.
        """
        units = self.units(rw.model)
        names = {u.name for u in units} if chosen is None else chosen
        stand_ins = emit_static(rw, units, names, self.params, self.weights)
        rw.remove_initializers()
        return stand_ins

    def quantized(self, model: ir.Model, chosen: Collection[str] | None = None) -> ir.Model:
        """A quantized copy of a model; see :meth:`write`."""
        copy = ir.clone(model)
        rw = Rewriter(copy)
        start = rw.mark()
        self.write(rw, chosen)
        rw.undo(start)  # where both neighbours compute on integers, nobody reads the way back
        return copy

    def divisions(
        self, units: Units, costs: Costs, *, fixed: Collection[str] = ()
    ) -> Iterator[Division]:
        """Divisions worth trying, the fastest first."""
        return frontier(units, costs, self.noise, self.weight_noise, fixed=fixed)


def observe(
    units: Units,
    data: Samples,
    *,
    method: tuple[str, Mapping[str, Any]] | None = None,
    rounding: bool = True,
    limit: int | None = None,
    executor: concurrent.futures.Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Observed:
    """Run the samples and see what the units read and write.

    Args:
        units: The units of the model.
        data: Samples.
        method: How ranges will be found; None for the best of several.
        rounding: Look at what weights multiply, so that they can be rounded well.
        limit: Number of batches to use, at most.
        executor: Where samples run.
        cache: Folder where observations are kept.

    Raises:
        CalibrationError: The data do not fit the model.
    """
    name, options = method or _FIRST
    watch: dict[str, list[Observer]] = {}
    for value in to_observe(units):
        watch[value.name or ""] = [observer_for(name, **options)]
    place: dict[str, tuple[str, int]] = {}
    for unit in units if rounding else ():
        gram = weight_rounding.observer(unit)
        if gram is not None:
            read = unit.inputs[0].name or ""
            seen = watch.setdefault(read, [])
            place[unit.name] = (read, len(seen))
            seen.append(gram)
    found = collect(units.model, watch, data, executor=executor, cache=cache, limit=limit)
    grams = {unit: found[read][i] for unit, (read, i) in place.items()}
    return Observed(
        {v.name or "": found[v.name or ""][0] for v in to_observe(units)},
        {k: g for k, g in grams.items() if isinstance(g, Gram)},
        method,
    )


def settle(
    units: Units,
    seen: Observed,
    *,
    ranges: Mapping[str, Range] | None = None,
    skip: tuple[str, ...] = (),
) -> StaticForm:
    """Parameters and weights from what was observed, nothing tried.

    Args:
        units: The units.
        seen: What was observed of them.
        ranges: Ranges that are known better, by value.
        skip: Patterns that the units were found with.
    """
    name, options = seen.method or _FIRST
    form = units.scheme.activation
    levels = form.limits[1] - form.limits[0] + 1
    found: dict[str, Range] = {}
    for value, observed in seen.activations.items():
        if ranges is not None and value in ranges:
            found[value] = ranges[value]
        elif not getattr(observed, "count", 1):
            found[value] = (0.0, 0.0)  # empty in every sample
        else:
            found[value] = find_range(
                observed, name, levels=levels, symmetric=form.symmetric, **options
            )
    params = activation_params(units, found)
    weights = {
        u.name: weight_rounding.rounded(u, units, params, seen.inputs.get(u.name))
        for u in units
        if u.weight is not None
    }
    return StaticForm(units.scheme, skip, params, weights, found)


def search(units: Units, seen: Observed, trial: Trial, first: StaticForm) -> StaticForm:
    """Find the range of each activation, and what each rounding does to the outputs, by trying.

    Args:
        units: The units.
        seen: What was observed of them.
        trial: The original on samples.
        first: What :func:`settle` found.
    """
    form = units.scheme.activation
    levels = form.limits[1] - form.limits[0] + 1
    roots: dict[str, list[str]] = {}
    for value in to_observe(units):
        roots.setdefault(units.root(value).name or "", []).append(value.name or "")
    candidates: dict[str, Sequence[Range]] = {}
    for root, names in roots.items():
        each = [first.ranges[n] for n in names]
        whole = (min(r[0] for r in each), max(r[1] for r in each))
        single = seen.activations[names[0]] if len(names) == 1 and names[0] == root else None
        if seen.method is None and isinstance(single, Histogram) and single.count:
            tried = [
                find_range(single, m, levels=levels, symmetric=form.symmetric, **o)
                for m, o in _TRIED
            ]
            candidates[root] = list(_distinct(tried))
        else:
            candidates[root] = [whole]
    found: Sensitivity = measure_activations(trial, units, candidates)
    best = {
        n: found.ranges[root]
        for root, names in roots.items()
        if len(names) == 1 and root in found.ranges
        for n in names
    }
    settled = settle(units, seen, ranges={**first.ranges, **best}, skip=first.skip)
    return dataclasses.replace(
        settled,
        noise=found.noise,
        weight_noise=measure_weights(trial, units, settled.weights),
    )


def _distinct(ranges: Iterable[Range]) -> Iterator[Range]:
    kept: list[Range] = []
    for low, high in ranges:
        near = _SAME * max(high - low, 1e-30)
        if all(abs(low - a) + abs(high - b) > near for a, b in kept):
            kept.append((low, high))
            yield low, high


def affordable_rows(model: ir.Model, variants: int, *, seconds: float, most: int = 128) -> int:
    """How many samples to try each of many variants on, by the model's estimated cost.

    Args:
        model: The model.
        variants: How many forms of it will be tried.
        seconds: Estimated time for all of them.
        most: Largest answer.
    """
    each = max(Cost(model).seconds, 1e-6)
    return max(8, min(most, math.floor(seconds / (each * max(variants, 1)))))

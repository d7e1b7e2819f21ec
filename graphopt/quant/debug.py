"""Where a static quantization loses accuracy: every quantized tensor, in the order of the graph."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration import Histogram, Samples, collect
from graphopt.calibration.watched import expected_sizes, putting_out
from graphopt.measure import decibels, difference, square
from graphopt.quant.params import QParams
from graphopt.quant.static import StaticForm
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds, open_session

__all__ = ["DebugReport", "TensorReport", "trace"]

# Bins of the histograms that are reported.
_BINS = 32
# Bytes of the tensors of both models that are in memory at a time, roughly.
_MEMORY = 256 << 20


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """What quantization does to one activation.

    Attributes:
        name: Its name in the floating-point model.
        op: The operator that computes it; empty for an input of the model.
        quantized: Whether it is in integers.
        sqnr_db: Ratio of its energy to that of its difference from the floating-point model's, in
            dB; infinite without any difference, None where the quantized model does not hold it.
        range: Smallest and largest number that its integers stand for; None in floating point.
        seen: Smallest and largest number in the samples; None where it was always empty.
        saturated: Share of its elements in the samples that are outside of the range; None in
            floating point.
        histogram: Number of elements in bins of equal width from one end of ``seen`` to the other.
    """

    name: str
    op: str
    quantized: bool
    sqnr_db: float | None
    range: tuple[float, float] | None
    seen: tuple[float, float] | None
    saturated: float | None
    histogram: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class DebugReport:
    """All activations that a static form of a model quantizes, or could.

    Attributes:
        form: Which form.
        tensors: In the order of the graph.
        batches: Number of batches that the signal-to-noise ratios are from; the rest is from all.
    """

    form: str
    tensors: tuple[TensorReport, ...]
    batches: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {
            "form": self.form,
            "batches": self.batches,
            "tensors": [each.to_json() for each in self.tensors],
        }


def trace(
    name: str,
    units: Units,
    form: StaticForm,
    integer: Collection[str],
    batches: Sequence[Feeds],
    data: Samples,
    *,
    executor: concurrent.futures.Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> DebugReport:
    """Run a model in floating point and quantized, and compare its activations.

    The quantized model is the one with QuantizeLinear and DequantizeLinear, before they are fused
    into integer operators, computed node by node as it stands.

    Args:
        name: What the form is called.
        units: The units of the model.
        form: Its static form.
        integer: Names of the units that compute on integers.
        batches: What to compare on.
        data: What histograms are made of.
        executor: Where the samples run for these.
        cache: Folder where they are kept.
    """
    values = [v for v in _in_order(units) if ir.const(v) is None]
    names = [v.name or "" for v in values]
    copy = ir.clone(units.model)
    stand_ins = form.write(Rewriter(copy), integer)
    ratios = _ratios(units.model, copy, values, stand_ins, batches)
    seen = collect(
        units.model, {n: [Histogram()] for n in names}, data, executor=executor, cache=cache
    )
    tensors = []
    for value in values:
        each, producer = value.name or "", value.producer()
        (histogram,) = seen[each]
        assert isinstance(histogram, Histogram)
        quantized = each in stand_ins
        bounds = _bounds(form.params[each]) if quantized else None
        tensors.append(
            TensorReport(
                name=each,
                op="" if producer is None else producer.op_type,
                quantized=quantized,
                sqnr_db=ratios.get(each),
                range=bounds,
                seen=(float(histogram.min), float(histogram.max)) if histogram.count else None,
                saturated=None if bounds is None else _outside(histogram, bounds),
                histogram=_coarse(histogram),
            )
        )
    return DebugReport(name, tuple(tensors), len(batches))


def _in_order(units: Units) -> Iterator[ir.Value]:
    """The activations of units in the order in which they are computed."""
    wanted = set(units.tensors())
    yield from (v for v in units.model.graph.inputs if v in wanted)
    for node in units.model.graph:
        yield from (v for v in node.outputs if v in wanted)


def _bounds(params: QParams) -> tuple[float, float]:
    low, high = params.range
    return float(low), float(high)


def _ratios(
    original: ir.Model,
    quantized: ir.Model,
    values: Sequence[ir.Value],
    stand_ins: Mapping[str, str],
    batches: Sequence[Feeds],
) -> dict[str, float]:
    """Signal-to-noise ratio of values in dB, by name; those that can be compared."""
    made = {v.name for node in quantized.graph for v in node.outputs}
    pairs = {v.name or "": stand_ins.get(v.name or "", v.name or "") for v in values}
    given = set(original.graph.inputs)
    pairs = {
        v.name or "": pairs[v.name or ""]
        for v in values
        # An input that no batch holds has a default, which is no activation.
        if pairs[v.name or ""] in made and (v not in given or all(v.name in b for b in batches))
    }
    energy, noise = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    kept = {v.name or "": v for v in values if v.name in pairs}
    largest = max(batches, key=_bytes, default={})
    sizes = expected_sizes(kept, original.graph.inputs, largest)
    for some in _parts(sizes):
        computed = [n for n in some if kept[n].producer() is not None]
        with contextlib.ExitStack() as stack:
            after = stack.enter_context(
                open_session(putting_out(quantized, [pairs[n] for n in some]))
            )
            before = None
            if computed:
                before = stack.enter_context(open_session(putting_out(original, computed)))
            for feeds in batches:
                here = feeds if before is None else {**feeds, **before.run(feeds)}
                there = after.run(feeds)
                for n in some:
                    energy[n] += square(here[n])
                    noise[n] += difference(here[n], there[pairs[n]])
    return {n: decibels(energy[n], noise[n]) for n in pairs}


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names whose values, of two models, fit into memory together."""
    part: list[str] = []
    used = 0
    for name, size in sizes.items():
        if part and used + 2 * size > _MEMORY:
            yield part
            part, used = [], 0
        part.append(name)
        used += 2 * size
    if part:
        yield part


def _bytes(feeds: Feeds) -> int:
    return sum(v.nbytes for v in feeds.values() if isinstance(v, np.ndarray))


def _outside(seen: Histogram, bounds: tuple[float, float]) -> float:
    """Share of values out of bounds; a bin of the histogram counts where its middle is."""
    low, high, counts = seen.bins()
    middle = (low + high) / 2
    out = counts[(middle < bounds[0]) | (middle > bounds[1])]
    return float(out.sum() / max(1, seen.count))


def _coarse(seen: Histogram) -> tuple[int, ...]:
    if not seen.count:
        return ()
    low, high, counts = seen.bins()
    found, _ = np.histogram((low + high) / 2, _BINS, (seen.min, seen.max), weights=counts)
    return tuple(int(n) for n in found)

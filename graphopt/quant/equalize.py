"""Making the channels of tensors alike, so that one scale serves all of them.

A channel may be divided by a number that the weights which read it are multiplied by. Where
channels share a scale, small ones gain by it; how much of that their weights lose again, which
share scales as well, depends on the model. So the ways to divide are tried on samples, for one
group of coupled channels after the other: what counts is the noise at the outputs when the
activations of the group and the weights around it are rounded.

Clip with bounds does not commute with a factor. Of three ways to deal with it the third is best
(SQNR of a small MobileNetV2 with one scale per tensor, 11.8 dB as it is): leave its channels alone
(12.0 dB); put Relu in its place (30.0); keep its bounds, and let factors make no channel larger
than the largest was (31.1). Then it cuts nothing of what was observed, but for channels that
reached a bound before, where the noise that is measured tells whether they may do so elsewhere. It
costs no time: the range of the quantizer behind does what Clip did.

References:
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from graphopt import ir
from graphopt.calibration import ChannelStats, Histogram, Samples, collect, find_range
from graphopt.measure import Trial
from graphopt.quant.channels import Channels, Fold, scaled
from graphopt.quant.params import from_range, from_weight
from graphopt.quant.prepare import channel_axis
from graphopt.quant.units import Unit, Units
from graphopt.rewrite import Rewriter

__all__ = ["Equalized", "Extent", "equalize", "find_factors", "observe_extents", "weight_factors"]

Array = np.ndarray[Any, Any]

# Channels of next to nothing are not blown up to the size of others.
_LEAST = 1e-3
# Sweeps after which weights that share one scale are as alike as they get.
_SWEEPS = 20
_PERCENTILE = 99.999
# Errors of weights that are rounded by what they multiply, relative to those of the nearest
# integers: about 3 dB less noise.
_OPTIMAL = 0.7
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclasses.dataclass(frozen=True, eq=False)
class Extent:
    """What was observed of a tensor.

    Attributes:
        low: Smallest value of each channel or 0, ``[channels]``.
        high: Largest value of each channel or 0, likewise.
        kept: Shares of the two ends of the tensor's range that quantization is to keep.
    """

    low: Array
    high: Array
    kept: tuple[float, float] = (1.0, 1.0)

    def range(self, factor: Array) -> tuple[float, float]:
        """Range to quantize after the channels were divided by a factor."""
        low, high = float((self.low / factor).min()), float((self.high / factor).max())
        return low * self.kept[0], high * self.kept[1]

    @property
    def relative(self) -> Array:
        """Width of each channel's range, that of the widest being 1."""
        return _relative(self.high * self.kept[1] - self.low * self.kept[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Equalized:
    """Factors and what they are expected to change.

    Attributes:
        factors: By class of channels; channels are to be divided by them.
        before: Energy of the noise at the outputs, in units of theirs, that comes from what the
            factors have an influence on.
        after: The same with the factors.
        chosen: How a group was divided, by the name of its first tensor, for people to read.
    """

    factors: Array
    before: float
    after: float
    chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Way:
    """Exponents of the factor of a channel, whose ranges are given relative to the widest.

    Attributes:
        activation: Of the range of what it holds.
        out: Of the range of the weights that compute it.
        into: Of that of the weights that read it; it is taken as negative.
        mean: Where the channel occurs several times, average ranges instead of taking the widest.
    """

    activation: float = 0.0
    out: float = 0.0
    into: float = 0.0
    mean: bool = False

    def __str__(self) -> str:
        parts = ((self.activation, "range"), (self.out, "out"), (-self.into, "in"))
        text = " ".join(f"{name}^{value:g}" for value, name in parts if value)
        return (text or "1") + (" mean" if self.mean else "")


_STARTS = (_Way(1 / 3, 1 / 3, 1 / 3), _Way(0, 0.5, 0.5))
_ALIKE = tuple(_Way(a) for a in (0.25, 0.5, 0.75, 1.0))
_MEAN = tuple(_Way(w.activation, mean=True) for w in _ALIKE)
# With a scale per output channel it makes no difference how large the weights of one are.
_BY_INPUT = (_Way(0.5, into=0.5), _Way(0.5, into=0.25))
_BY_WEIGHT = (
    _Way(0.5, 0.25, 0.25),
    *_STARTS,
    _Way(0.5, 0.5, 0),
    _Way(0.25, 0.75, 0),
    _Way(0, 1, 0),
)


def equalize(
    units: Units,
    trial: Trial,
    data: Samples | Iterable[Mapping[str, Any]],
    *,
    clips: bool = True,
    sweeps: int = 1,
    rounding: Literal["optimal", "nearest"] = "nearest",
    **options: Any,
) -> Equalized:
    """Equalize the channels of a model in place. Its units have to be found anew afterwards.

    Args:
        units: What is to be quantized, and how.
        trial: The model on some of the samples.
        data: Samples to observe channels on.
        clips: Divide channels that go through a Clip with bounds, too. That is exact only for
            channels which stay in the range they had on the samples.
        sweeps: How often to go through the groups of coupled channels.
        rounding: How weights will be rounded: errors of optimal rounding weigh less.
        **options: As for :func:`graphopt.calibration.collect`.

    Raises:
        CalibrationError: The data do not fit the model.
    """
    channels = Channels(units.model, clips=clips)
    extents = observe_extents(channels, units, data, **options)
    found = find_factors(channels, units, trial, extents, sweeps=sweeps, rounding=rounding)
    rw = Rewriter(units.model)
    reason = channels.fold(rw, found.factors)
    assert reason is None, reason  # else the trials had failed
    rw.remove_initializers()
    return found


def observe_extents(
    channels: Channels, units: Units, data: Samples | Iterable[Mapping[str, Any]], **options: Any
) -> dict[ir.Value, Extent]:
    """Run samples and observe the channels of what is quantized and may be divided.

    Args:
        channels: The channels of the model.
        units: Its units.
        data: Samples.
        **options: As for :func:`graphopt.calibration.collect`.
    """
    wanted = {
        v.name or "": channels.labels[v]
        for v in (*units.tensors(), *channels.clips)
        if v in channels.labels and channels.free[channels.labels[v].ids].any()
    }
    watch = {name: (ChannelStats(x.axis), Histogram()) for name, x in wanted.items()}
    seen = collect(channels.model, watch, data, **options)
    by_name = {v.name: v for v in channels.labels}
    return {by_name[name]: _extent(*found) for name, found in seen.items()}  # type: ignore[arg-type]


def _extent(stats: ChannelStats, histogram: Histogram) -> Extent:
    low, high = np.minimum(stats.min, 0), np.maximum(stats.max, 0)
    first, last = find_range(
        [histogram], "percentile", levels=256, symmetric=False, percentile=_PERCENTILE
    )
    kept = [
        end / whole if whole else 1.0
        for end, whole in ((min(first, 0.0), low.min()), (max(last, 0.0), high.max()))
    ]
    return Extent(low, high, (kept[0], kept[1]))


def find_factors(
    channels: Channels,
    units: Units,
    trial: Trial,
    extents: Mapping[ir.Value, Extent],
    *,
    sweeps: int = 1,
    rounding: Literal["optimal", "nearest"] = "nearest",
) -> Equalized:
    """Try ways to make channels alike, one group of coupled channels at a time.

    The model runs on the trial's samples once for each group and way (18 at most), sweep by sweep.

    Args:
        channels: The channels of the model.
        units: Its units.
        trial: The model on samples.
        extents: What was observed of the tensors that are quantized.
        sweeps: How often to go through the groups; each depends on its neighbours.
        rounding: How weights will be rounded.
    """
    share = _OPTIMAL if rounding == "optimal" else 1.0
    search = _Search(channels, units, trial, extents, share)
    before = search.begin()
    for _ in range(sweeps):
        for group in search.groups:
            search.improve(group)
    after = search.total()
    if after > before:
        return Equalized(np.ones(channels.count), before, before)
    return Equalized(search.factors, before, after, {g.name: str(g.way) for g in search.groups})


def weight_factors(channels: Channels) -> Array:
    """Factors that make the ranges of weights alike that have one scale, without any samples.

    Args:
        channels: The channels of the model.

    Returns:
        Factors by class: each channel's weights, those that compute it and those that read it, get
        ranges of the same size relative to the largest of their tensors.
    """
    factors = np.ones(channels.count)
    around = _Around(channels)
    groups = [(ids, around.weights(ids)) for ids in map(around.ids, channels.components())]
    for _ in range(_SWEEPS):
        largest = 0.0
        for ids, weights in groups:
            out, into = _ranges(weights, factors, ids)
            step = np.sqrt(out / into)
            step /= np.exp(np.log(step).mean())
            factors[ids] *= step
            largest = max(largest, float(np.abs(np.log(step)).max()))
        if largest < _LEAST:
            break
    return factors


class _Around:
    """What there is around channels."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._folds: dict[int, dict[Fold, None]] = {}
        for fold in channels.folds:
            for ids in (fold.multiply, fold.divide):
                for k in np.unique(ids) if ids is not None else ():
                    self._folds.setdefault(int(k), {})[fold] = None

    def ids(self, members: Iterable[ir.Value]) -> Array:
        """The free classes of some tensors."""
        ids = np.unique(np.concatenate([self.channels.labels[v].ids for v in members]))
        return np.asarray(ids[self.channels.free[ids]])

    def folds(self, ids: Array) -> list[Fold]:
        """Constants that take up factors of some classes."""
        return list({fold: None for k in ids for fold in self._folds.get(int(k), ())})

    def weights(self, ids: Array) -> list[tuple[Fold, Array]]:
        """Magnitudes of those that are multiplied with channels."""
        found = []
        for fold in self.folds(ids):
            data = ir.array(fold.node.inputs[fold.index])
            if data is not None and fold.index == 1 and fold.node.op_type in _WEIGHTED:
                size = np.abs(data.astype(np.float64))
                # Of the taps of a kernel, all of which take the same factors, the largest.
                found.append((fold, size.reshape(*size.shape[:2], -1).max(axis=2)))
        return found


@dataclasses.dataclass(eq=False)
class _Group:
    """Coupled channels, and what of the model is rounded around them."""

    name: str
    ids: Array
    tensors: list[ir.Value]
    units: list[Unit]
    clips: list[ir.Value]
    weights: list[tuple[Fold, Array]]
    way: _Way = _Way()


class _Search:
    def __init__(
        self,
        channels: Channels,
        units: Units,
        trial: Trial,
        extents: Mapping[ir.Value, Extent],
        share: float,
    ) -> None:
        self.channels, self.units, self.trial, self.extents = channels, units, trial, extents
        self.share = share
        self.factors = np.ones(channels.count)
        self._around = _Around(channels)
        self.groups = [g for each in channels.components() if (g := self._group(each)) is not None]

    def _group(self, members: list[ir.Value]) -> _Group | None:
        ids = self._around.ids(members)
        held = set(members)
        quantized = [v for v in self.units.tensors() if v in held and self.units.root(v) is v]
        touched = {fold.node for fold in self._around.folds(ids)}
        around = [u for u in self.units if u.weight is not None and u.node in touched]
        clips = [v for v in self.channels.clips if v in held]
        tensors = [v for v in quantized if v in self.extents]
        if not tensors or not around:
            return None
        weights = self._around.weights(ids)
        return _Group(tensors[0].name or "", ids, tensors, around, clips, weights)

    def total(self) -> float:
        """Noise from what is rounded around any of the groups, with the factors there are."""
        return sum(self.trial.noises(lambda g: self._rounded(g, self.factors), self.groups))

    def begin(self) -> float:
        """Let neighbours be about right: what is measured first depends on them.

        Returns:
            Noise without any factors.
        """
        noises, states, ways = [self.total()], [self.factors], [_Way()]
        if any(channel_axis(u, self.units) is None for g in self.groups for u in g.units):
            for way in _STARTS:
                self.factors = states[0]
                for _ in range(_SWEEPS):
                    for group in self.groups:
                        self.factors = self._factors(group, way)
                noises.append(self.total())
                states.append(self.factors)
                ways.append(way)
        best = int(np.argmin(noises))
        self.factors = states[best]
        for group in self.groups:
            group.way = ways[best]
        return noises[0]

    def improve(self, group: _Group) -> None:
        """Divide a group in the way that adds the least noise."""
        tries = [group.way, _Way(), *self._ways(group)]
        factors = [self.factors, *(self._factors(group, way) for way in tries[1:])]
        noises = self.trial.noises(lambda f: self._rounded(group, f), factors)
        best = int(np.argmin(noises))
        group.way, self.factors = tries[best], factors[best]

    def _ways(self, group: _Group) -> Sequence[_Way]:
        ways = [*_ALIKE, *(_MEAN if len(group.tensors) > 1 else ())]
        if any(channel_axis(u, self.units) is None for u in group.units):
            ways += _BY_WEIGHT
        return [*ways, *_BY_INPUT]

    def _factors(self, group: _Group, way: _Way) -> Array:
        """Factors of all classes, with those of a group computed anew."""
        factors = self.factors.copy()
        factors[group.ids] = 1.0
        if way == _Way():
            return factors
        logs = self._activation(group, way.mean) * way.activation
        if way.out or way.into:
            out, into = _ranges(group.weights, factors, group.ids)
            logs += way.out * np.log(out) - way.into * np.log(into)
        factors[group.ids] = np.exp(logs - logs.mean())
        if group.clips:
            # No Clip is to cut what it did not: none of its channels gets larger than the largest.
            factors[group.ids] *= max(self._growth(v, factors) for v in group.clips)
        return factors

    def _activation(self, group: _Group, mean: bool) -> Array:
        """Logarithms of the relative ranges of classes over the tensors of a group."""
        total = np.zeros(self.channels.count) if mean else np.full(self.channels.count, -np.inf)
        count = np.zeros(self.channels.count)
        for value in group.tensors:
            ids, logs = self.channels.labels[value].ids, np.log(self.extents[value].relative)
            if mean:
                np.add.at(total, ids, logs)
            else:
                np.maximum.at(total, ids, logs)
            np.add.at(count, ids, 1)
        found = total / np.maximum(count, 1) if mean else np.where(count > 0, total, 0)
        return np.asarray(found[group.ids])

    def _growth(self, value: ir.Value, factors: Array) -> float:
        extent = self.extents[value]
        by = factors[self.channels.labels[value].ids]
        ends = ((extent.low, extent.low / by), (extent.high, extent.high / by))
        sizes = [(np.abs(a).max(), np.abs(b).max()) for a, b in ends]
        return max(float(b / a) for a, b in sizes if a) if any(a for a, _ in sizes) else 1.0

    def _rounded(self, group: _Group, factors: Array) -> ir.Model:
        """The model with factors, and with what they have an influence on rounded."""
        copy = ir.clone(self.units.model)
        rw = Rewriter(copy)
        reason = self.channels.fold(rw, factors)
        assert reason is None, reason
        nodes = {n.outputs[0].name: n for n in copy.graph}
        for unit in group.units:
            _round_weight(rw, nodes[unit.node.outputs[0].name], unit, self.units, self.share)
        values = {v.name: v for n in copy.graph for v in n.outputs}
        form = dataclasses.replace(self.units.scheme.activation, granularity="tensor")
        for value in group.tensors:
            low, high = self.extents[value].range(factors[self.channels.labels[value].ids])
            params = from_range(low, high, form)

            def pair(x: ir.Value, params: Any = params) -> ir.Value:
                scale, zero = rw.const(params.scale), rw.const(params.zero_point)
                return rw.op(
                    "DequantizeLinear", rw.op("QuantizeLinear", x, scale, zero), scale, zero
                )

            rw.insert_after(values[value.name], pair)
        rw.remove_initializers()
        return copy


def _round_weight(rw: Rewriter, node: ir.Node, unit: Unit, units: Units, share: float) -> None:
    position = unit.kernel.weight
    assert position is not None
    data = ir.array(node.inputs[position])
    assert data is not None
    params = from_weight(data, units.scheme.weight, channel_axis(unit, units))
    error = params.dequantize(params.quantize(data)) - data
    with rw.at(node):
        rw.set_input(node, position, rw.const((data + share * error).astype(data.dtype)))


def _ranges(
    weights: Sequence[tuple[Fold, Array]], factors: Array, classes: Array
) -> tuple[Array, Array]:
    """Largest weight that computes each class, and that reads it, relative to its tensor's."""
    out, into = np.zeros(len(factors)), np.zeros(len(factors))
    for fold, size in weights:
        by = scaled(fold, factors)
        now = size * by.reshape(by.shape[:2])
        now /= max(float(now.max(initial=0)), 1e-300)
        for ids, found in ((fold.divide, out), (fold.multiply, into)):
            if ids is not None:
                np.maximum.at(found, np.broadcast_to(ids.reshape(ids.shape[:2]), now.shape), now)
    return _bounded(out[classes]), _bounded(into[classes])


def _bounded(ranges: Array) -> Array:
    return np.where(ranges > 0, np.maximum(ranges, _LEAST), 1.0)


def _relative(width: Array) -> Array:
    return np.maximum(width / max(float(width.max(initial=0)), 1e-300), _LEAST)

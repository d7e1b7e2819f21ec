"""Channels of like ranges, for quantization with few scales."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import Context, Exactness, NotApplicable, Pass, ir
from graphopt.calibration import Samples, from_batches
from graphopt.measure import Trial
from graphopt.quant.channels import Channels
from graphopt.quant.equalize import Equalized, find_factors, observe_extents, weight_factors
from graphopt.quant.units import Units
from graphopt.runtime import Feeds
from graphopt.targets import Scheme

__all__ = ["EqualizeChannels"]

_NAME = "equalize-channels"
_OPSET = 10  # QuantizeLinear
# Factors that change less than this are not worth rewriting weights.
_LEAST = 0.01


class EqualizeChannels(Pass):
    """Divide channels by factors that the weights around them take up.

    What it does: a tensor that is quantized with one scale leaves few integers to channels that are
    much smaller than others. Relu, additions and poolings of a channel that was divided by a number
    give what they gave, divided by it, so that the weights before can be divided and those behind
    multiplied. With samples, ways to choose the factors are tried, for one group of coupled
    channels after the other, and what counts is the noise at the outputs when activations and
    weights are rounded as the target wants it. Without, the weights on both sides of every channel
    get ranges of like size.

    Exactness: ROUNDING

    Needs: nothing; calibration data to choose by the noise at the outputs

    Options: samples: number of samples to try factors on; all are observed. per-channel: weights
    have a scale for each output channel where the target's kernels take that. sweeps: how often to
    go through the groups, which depend on their neighbours.

    Example: Conv(Relu(Conv(x, w, b)), v) -> Conv(Relu(Conv(x, w / s, b / s)), v * s)

    Declines when: channels go through something that does not commute with a factor, such as
    Sigmoid, HardSwish or a Clip with bounds (quantize-int8, which rounds anyway, goes through
    Clip), are an output of the model, or have weights that are computed.

    References: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), section 4.1.
    """

    name = _NAME
    exactness = Exactness.ROUNDING
    # Constants that were scalars may become vectors.
    gated = False
    samples: int = 64
    per_channel: bool = True
    sweeps: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is below 1.
        """
        for name in ("samples", "sweeps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Find factors and fold them into constants."""
        ctx.infer_shapes()
        channels = Channels(model)
        for reason in sorted({w for v in channels.labels if (w := channels.why_not(v))}):
            ctx.decline(_NAME, reason)
        if not channels.free.any():
            return False
        if ctx.data is None:
            factors = weight_factors(channels)
            said = "weights only: no samples were given"
        else:
            found = self._search(channels, ctx)
            factors = found.factors
            said = f"noise at the outputs {_db(found.before)} -> {_db(found.after)}"
        if np.abs(np.log(factors)).max() < _LEAST or not ctx.allow(_NAME):
            return False
        rw = ctx.rewriter()
        why = channels.fold(rw, factors)
        if why is not None:
            ctx.decline(_NAME, why)
            return False
        rw.remove_initializers()
        ctx.remark(said)
        ctx.stats.applied["divide-channels"] += int((factors != 1).sum())
        return rw.changed

    def _search(self, channels: Channels, ctx: Context) -> Equalized:
        model = channels.model
        if ctx.target.scheme is None:
            raise NotApplicable(f"target {ctx.target.name} has no integer scheme")
        if ir.opset(model) < _OPSET:
            raise NotApplicable(f"QuantizeLinear, to try factors with, needs opset {_OPSET}")
        scheme: Scheme = ctx.target.scheme
        if not self.per_channel:
            weight = dataclasses.replace(scheme.weight, granularity="tensor")
            scheme = dataclasses.replace(scheme, weight=weight)
        assert ctx.data is not None
        units = Units(model, scheme)
        data = ctx.data if isinstance(ctx.data, Samples) else from_batches(ctx.data, model)
        extents = observe_extents(channels, units, data, executor=ctx.executor, cache=ctx.cache)
        trial = Trial(model, _first(data, self.samples))
        return find_factors(channels, units, trial, extents, sweeps=self.sweeps)


def _first(data: Samples, count: int) -> list[Feeds]:
    """Batches of so many samples, and what else the last one holds."""
    batches: list[Feeds] = []
    for feeds in data:
        batches.append(feeds)
        arrays = (a for a in feeds.values() if isinstance(a, np.ndarray) and a.ndim)
        count -= max(map(len, arrays), default=1)
        if count <= 0:
            break
    return batches


def _db(noise: float) -> str:
    return f"{10 * np.log10(max(noise, 1e-30)):.1f} dB"

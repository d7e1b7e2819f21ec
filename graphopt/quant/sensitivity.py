"""What quantizing one tensor does to the outputs, and the range with which it does least."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt import ir
from graphopt.quant.emit import Quantized
from graphopt.quant.params import QParams, from_range
from graphopt.quant.prepare import Range
from graphopt.quant.trial import Trial
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter

__all__ = ["Sensitivity", "measure_activations", "measure_weights"]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Noise at the outputs, in units of their energy, from quantizing one activation alone.

    Attributes:
        noise: By name of the value, the root of those that share parameters.
        ranges: The range that adds this least noise, by the same name.
    """

    noise: dict[str, float] = dataclasses.field(default_factory=dict)
    ranges: dict[str, Range] = dataclasses.field(default_factory=dict)


def measure_activations(
    trial: Trial, units: Units, candidates: Mapping[str, Sequence[Range]]
) -> Sensitivity:
    """Try ranges of activations, one tensor at a time.

    Args:
        trial: The original on samples.
        units: Its units.
        candidates: Ranges to try, by name of the root of the values that share one.
    """
    found = Sensitivity()
    form = dataclasses.replace(units.scheme.activation, granularity="tensor")
    tries = [(root, each) for root, ranges in candidates.items() for each in ranges]

    def build(each: tuple[str, Range]) -> ir.Model:
        root, bounds = each
        return _through(units.model, root, from_range(*bounds, form))

    for (root, bounds), noise in zip(tries, trial.noises(build, tries), strict=True):
        if noise < found.noise.get(root, np.inf) or root not in found.ranges:
            found.noise[root], found.ranges[root] = noise, bounds
    return found


def measure_weights(
    trial: Trial, units: Units, weights: Mapping[str, Quantized]
) -> dict[str, float]:
    """Noise from rounding one weight, by name of its unit."""
    positions = {u.name: u.kernel.weight for u in units}

    def build(name: str) -> ir.Model:
        found, position = weights[name], positions[name]
        assert position is not None
        copy = ir.clone(units.model)
        node = next(n for n in copy.graph if n.outputs[0].name == name)
        rw = Rewriter(copy)
        with rw.at(node):
            rw.set_input(node, position, rw.const(found.params.dequantize(found.integers)))
        rw.remove_initializers()
        return copy

    return dict(zip(weights, trial.noises(build, list(weights)), strict=True))


def _through(model: ir.Model, name: str, params: QParams) -> ir.Model:
    """A copy of the model in which a value goes through integers."""
    copy = ir.clone(model)
    made = (v for node in copy.graph for v in node.outputs)
    value = next(v for v in itertools.chain(copy.graph.inputs, made) if v.name == name)
    rw = Rewriter(copy)

    def pair(x: ir.Value) -> ir.Value:
        scale, zero = rw.const(params.scale), rw.const(params.zero_point)
        return rw.op("DequantizeLinear", rw.op("QuantizeLinear", x, scale, zero), scale, zero)

    rw.insert_after(value, pair)
    return copy

"""What quantizing one tensor does to the outputs, and the range with which it does least."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt import ir
from graphopt.measure import Trial
from graphopt.quant.emit import Quantized
from graphopt.quant.params import QParams, from_range
from graphopt.quant.prepare import Range
from graphopt.quant.units import Units, outputs
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

    written = {v for unit in units for v in outputs(unit)}
    places: dict[str, list[tuple[str, int]]] = {}
    for unit in units:
        for i, value in enumerate(unit.node.inputs):
            if value in unit.inputs and value not in written:
                places.setdefault(value.name or "", []).append((unit.name, i))

    def build(each: tuple[str, Range]) -> ir.Model:
        root, bounds = each
        return _through(units.model, root, from_range(*bounds, form), places.get(root))

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


def _through(
    model: ir.Model, name: str, params: QParams, places: Sequence[tuple[str, int]] | None
) -> ir.Model:
    """A copy of the model in which a value goes through integers, for all or some that read it."""
    copy = ir.clone(model)
    made = {v.name: v for node in copy.graph for v in node.outputs}
    value = {**{v.name: v for v in copy.graph.inputs}, **made}[name]
    uses = None if places is None else [(_producer(made[unit]), i) for unit, i in places]
    rw = Rewriter(copy)

    def pair(x: ir.Value) -> ir.Value:
        scale, zero = rw.const(params.scale), rw.const(params.zero_point)
        return rw.op("DequantizeLinear", rw.op("QuantizeLinear", x, scale, zero), scale, zero)

    rw.insert_after(value, pair, uses)
    return copy


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node

"""From what was observed to scales, zero points and integer weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from graphopt import ir
from graphopt.quant.emit import Array, Quantized
from graphopt.quant.params import QParams, from_range, from_weight
from graphopt.quant.units import Unit, Units, clip_bounds, outputs

__all__ = ["Range", "activation_params", "as_bias", "fit_bias", "quantize_weight", "to_observe"]

Range = tuple[float, float]

# A bias in integers is to stay this far from the limits of int32, since products are added to it.
_ROOM = 2.0**30
# Steps that the largest bias of a channel has at least, where its weights are zero.
_STEPS = 2.0**24
# Range of a value of which nothing but 0 was seen.
_UNSEEN = (-255.0, 255.0)


def activation_params(units: Units, ranges: Mapping[str, Range]) -> dict[str, QParams]:
    """Scale and zero point of every activation that a unit reads or writes.

    Values that have to share them get those of the range that holds all of theirs, unless the range
    of the first of them is that of all (as for what a pooling writes). Operators with an output of
    a known range, such as Sigmoid, have theirs.

    Args:
        units: The units.
        ranges: Observed range by name of the value; constants need none.

    Returns:
        Parameters by name of the value.
    """
    form = units.scheme.activation
    form = dataclasses.replace(form, granularity="tensor")
    fixed = {u.output: u.kernel.output for u in units if u.kernel.output is not None}
    # What was 0 in all samples may be something else: an activation that disappears has to hold.
    clips = {u.output: u.activation for u in units if u.activation is not None}
    params: dict[str, QParams] = {}
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in units.tensors():
        groups.setdefault(units.root(value), []).append(value)
    for members in groups.values():
        given = next((fixed[v] for v in members if v in fixed), None)
        if given is not None and form.limits[0] == 0:
            found = QParams(
                np.asarray(given[0], np.float32), np.asarray(given[1], form.dtype), form
            )
        else:
            bounds = [ranges[v.name or ""] for v in members if v.name in ranges]
            bounds += [_of_constant(v) for v in members if ir.const(v) is not None]
            low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
            if low == high == 0 and members[0] in clips:
                low, high = np.clip(clip_bounds(clips[members[0]]), *_UNSEEN)
            found = from_range(float(low), float(high), form)
        params |= {v.name or "": found for v in members}
    return params


def to_observe(units: Units) -> list[ir.Value]:
    """Activations whose ranges have to be observed: all but what only moves elements of others."""
    moved = {v for unit in units if unit.moves for v in outputs(unit)}
    return [v for v in units.tensors() if v not in moved and ir.const(v) is None]


def _of_constant(value: ir.Value) -> Range:
    data = ir.array(value)
    assert data is not None
    return float(data.min(initial=0)), float(data.max(initial=0))


def channel_axis(unit: Unit, units: Units) -> int | None:
    """Axis that the scales of a unit's weight lie along, None for a single scale."""
    kernel, form = unit.kernel, units.scheme.weight
    if (kernel.granularity or form.granularity) == "tensor" or unit.weight is None:
        return None
    return kernel.axis(unit.node)


def quantize_weight(unit: Unit, units: Units, params: Mapping[str, QParams]) -> Quantized:
    """A unit's weight rounded to the nearest integers.

    Where the weights of a channel are so small beside its bias that the bias would not fit into
    int32, or would be rounded coarsely, their scale is raised.

    Args:
        unit: A unit with a constant weight.
        units: The units it belongs to.
        params: Parameters of the activations, by name.
    """
    assert unit.weight is not None
    data = ir.array(unit.weight)
    assert data is not None
    axis = channel_axis(unit, units)
    found = from_weight(data, units.scheme.weight, axis)
    bias = as_bias(unit, units, data)
    if bias is not None:  # ONNX Runtime rounds those in floating point itself
        found = fit_bias(found, bias, params[unit.inputs[0].name or ""], data)
    return Quantized(found.quantize(data), found, bias)


def as_bias(unit: Unit, units: Units, weight: Array) -> Array | None:
    """A unit's bias as a vector of one element per output channel, or None."""
    if unit.bias is None:
        return None
    bias = ir.array(unit.bias)
    assert bias is not None
    channels = weight.shape[unit.kernel.axis(unit.node) % weight.ndim]
    return np.broadcast_to(bias.reshape(-1), channels).astype(np.float32)


def fit_bias(found: QParams, bias: Array, x: QParams, weight: Array) -> QParams:
    """Parameters of a weight with which its bias fits into int32, finely enough."""
    size = np.abs(bias).astype(np.float64)
    least = size / float(x.scale) / _ROOM
    if found.axis is None:
        largest = float(size.max(initial=0))
        if largest and not weight.any():
            wanted = largest / float(x.scale) / _STEPS
        else:
            wanted = max(float(found.scale), float(least.max(initial=0)))
        return dataclasses.replace(found, scale=np.asarray(wanted, np.float32))
    others = tuple(i for i in range(weight.ndim) if i != found.axis % weight.ndim)
    dead = ~weight.any(axis=others)
    scale = np.maximum(found.scale.astype(np.float64), least)
    fine = np.where(size > 0, size / float(x.scale) / _STEPS, 1.0)
    return dataclasses.replace(found, scale=np.where(dead, fine, scale).astype(np.float32))

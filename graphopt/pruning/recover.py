"""Pruned models whose layers make up for what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.pruning.cut import nodes_of
from graphopt.pruning.layers_out import bypass, find_blocks
from graphopt.pruning.losses import Losses
from graphopt.pruning.units import Unit
from graphopt.reconstruct import Fit, Layer, Problem, layers, rebuild
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["dead_of", "recovered", "used_columns"]

Array = np.ndarray[Any, Any]

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def dead_of(channels: Channels, units: Sequence[Unit], left: Sequence[int]) -> Array:
    """Which classes go, bool ``[count]``."""
    dead = np.zeros(channels.count, bool)
    for unit, n in zip(units, left, strict=True):
        dead[unit.dead(n)] = True
    return dead


def used_columns(layer: Layer, units: Sequence[Unit], left: Sequence[int]) -> Array:
    """Which columns of a layer are still read, bool ``[groups, columns]``."""
    weight = layer.matrix()
    used = np.ones((weight.shape[0], weight.shape[2]), bool)
    for unit, n in zip(units, left, strict=True):
        if 0 < n < unit.size:
            for read in unit.reads:
                if read.layer == layer.name:
                    used[read.part, read.columns[unit.order[: unit.size - n]].reshape(-1)] = False
    return used


def recovered(
    channels: Channels,
    units: Sequence[Unit],
    left: Sequence[int],
    batches: Sequence[Feeds],
) -> tuple[ir.Model, list[Fit]]:
    """A clone of the original at its full size whose layers do without what is to be cut out.

    Args:
        channels: Channels of the original.
        units: Groups.
        left: Channels that are left of each.
        batches: Inputs to fit the layers on.

    Returns:
        The clone, in which removed channels have weights of zero wherever a layer reads them, and
        what became of each layer.
    """
    original = channels.model
    model = ir.clone(original)
    rw = Rewriter(model)
    for unit, n in zip(units, left, strict=True):
        if not n and unit.block is not None:
            name = unit.block.name
            bypass(rw, next(b for b in find_blocks(model) if b.name == name))
    _silence(rw, channels, dead_of(channels, units, left))
    readers = {r.layer for u, n in zip(units, left, strict=True) if n < u.size for r in u.reads}
    masks = {
        layer.name: used_columns(layer, units, left)
        for layer in layers(original)
        if layer.name in readers
    }

    def change(problem: Problem) -> Array:
        used = masks.get(problem.layer.name)
        if used is None or used.all():
            return problem.optimum
        return problem.restricted(used)

    fits = rebuild(
        original, model, batches, change, wanted=lambda each: each.name in readers, threads=1
    )
    left_out = {fit.name for fit in fits if fit.reason is not None}
    for layer in list(layers(model)):
        used = masks.get(layer.name) if layer.name in left_out else None
        if used is not None:
            layer.write(rw, layer.matrix() * used[:, None, :], None)
    return model, fits


def _silence(rw: Rewriter, channels: Channels, dead: Array) -> None:
    """Let hidden units that go be zero: their weights are zero, and so is what they start from."""
    losses = Losses(channels, dead)
    nodes = nodes_of(channels, rw.model)
    for (node, index), factors in channels.constants.items():
        if node.op_type not in _RECURRENT:
            continue
        for axis, kept in losses.of(factors).items():
            here = nodes[node]
            value = here.inputs[index]
            data = ir.array(value)
            if value is None or data is None:
                continue
            shape = [len(kept) if a == axis else 1 for a in range(data.ndim)]
            zeroed = data * kept.reshape(shape).astype(data.dtype)
            rw.set_input(here, index, rw.const(zeroed, value.name or "weight"))

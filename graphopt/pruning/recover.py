"""Pruned models whose layers make up for what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.pruning.masking import masked
from graphopt.pruning.shorten import bypass_blocks, dead_of
from graphopt.pruning.units import Unit
from graphopt.reconstruct import Fit, Layer, Problem, behind, layers, rebuild
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["recovered", "used_columns"]

Array = np.ndarray[Any, Any]


def used_columns(layer: Layer, units: Sequence[Unit], left: Sequence[int]) -> Array:
    """Which columns of a layer are still read, bool ``[groups, columns]``."""
    used = np.ones((layer.groups, layer.columns), bool)
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
) -> tuple[ir.Model, ir.Model, list[Fit]]:
    """The original at its full size, its layers fitted to do without what is to be cut out.

    They are fitted in the masked model, so that what goes is missing wherever it is summed up, not
    only where a layer reads it.

    Args:
        channels: Channels of the original.
        units: Groups.
        left: Channels that are left of each.
        batches: Inputs to fit the layers on.

    Returns:
        A clone of the original with the fitted weights and the blocks that go bypassed, the masked
        model, which computes what is left once channels are cut out of the clone, and what became
        of each layer.
    """
    original = channels.model
    model = masked(channels, dead_of(channels, units, left))
    whole = ir.clone(original)
    rw = Rewriter(whole)
    bypass_blocks(rw, units, left)
    gone = bypass_blocks(Rewriter(model), units, left)
    dirty = behind(model, {*gone, *_others(model, original)})
    masks = {each.name: used_columns(each, units, left) for each in layers(original)}

    def change(problem: Problem) -> Array:
        used = masks[problem.layer.name]
        return problem.optimum if used.all() else problem.restricted(used)

    fits = rebuild(
        original, model, batches, change, wanted=lambda each: each.name in dirty, threads=1
    )
    fitted = {each.name: each for each in layers(model)}
    changed = {fit.name for fit in fits if fit.reason is None}
    for layer in layers(whole):
        if layer.name in changed:
            new = fitted[layer.name]
            layer.write(rw, new.matrix(), new.bias() if layer.takes_bias else None)
    rw.remove_initializers()
    return whole, model, fits


def _others(model: ir.Model, original: ir.Model) -> set[str]:
    """Names of what the original does not compute: masks."""
    return _names(model) - _names(original)


def _names(model: ir.Model) -> set[str]:
    found = {v.name or "" for node in ir.all_nodes(model) for v in node.outputs}
    for graph in ir.all_graphs(model):
        found |= {v.name or "" for v in (*graph.inputs, *graph.initializers.values())}
    return found

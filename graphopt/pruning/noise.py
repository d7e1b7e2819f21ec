"""In which order the channels of groups go, and what their loss adds to the outputs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.measure import Trial
from graphopt.pruning.criteria import Scores
from graphopt.pruning.layers_out import bypass, find_blocks
from graphopt.pruning.masking import masked
from graphopt.pruning.recover import used_columns
from graphopt.pruning.shorten import dead_of
from graphopt.pruning.units import Unit
from graphopt.reconstruct import Layer, Problem, Reader, behind, eliminate, layers, rebuild
from graphopt.reconstruct.problem import why_fixed
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["measure_noise", "order_by_score", "order_channels", "without"]

Array = np.ndarray[Any, Any]

# Layers behind a block that make up for its loss, when that is measured.
_BEHIND = 2


def order_channels(units: Sequence[Unit], problems: Mapping[str, Problem], scores: Scores) -> None:
    """Set the order in which channels go: those first that the layers which read them miss least.

    Groups that nothing linear reads go by the norms of their weights.

    Args:
        units: Groups; ``order`` is set.
        problems: Problems of the layers, with the inputs of the original, by name.
        scores: Criteria of weights.
    """
    for unit in units:
        readers = []
        for read in unit.reads:
            problem = problems.get(read.layer)
            if problem is None:
                continue
            scale = 1.0 / problem.energy if problem.energy > 0 else 0.0
            gram, best = problem.gram[read.part], problem.optimum[read.part]
            readers.append(Reader(gram, best, read.columns, scale))
        if readers and len(readers) == len(unit.reads):
            unit.order = eliminate(readers)[0]
        else:
            unit.order = np.argsort(scores.of(unit.group, "l2"), kind="stable")


def order_by_score(units: Sequence[Unit], scores: Scores, criterion: Any) -> None:
    """Set the order in which channels go: those of the lowest score first."""
    for unit in units:
        unit.order = np.argsort(scores.of(unit.group, criterion), kind="stable")


def measure_noise(
    channels: Channels,
    units: Sequence[Unit],
    problems: Mapping[str, Problem],
    trial: Trial,
    *,
    recover: bool = True,
) -> None:
    """Set what each level of each unit adds to the outputs of the model.

    Layers that read the channels make up for their loss as far as they can; where a block goes, the
    next two layers do.

    Args:
        channels: Channels of the model.
        units: Groups, with their orders; ``noise`` is set.
        problems: Problems of the layers with the inputs of the original, by name; layers without
            one stay as they are.
        trial: Outputs of the original.
        recover: Whether layers make up for blocks that go.
    """
    variants = [(unit, n) for unit in units for n in unit.levels[1:]]

    def build(variant: tuple[Unit, int]) -> ir.Model:
        unit, left = variant
        if left:
            return _variant(channels, unit, left, problems)
        assert unit.block is not None
        return without(channels.model, unit.block.name, trial.batches if recover else [])

    for unit in units:
        unit.noise = {unit.size: 0.0}
    for (unit, n), noise in zip(variants, trial.noises(build, variants), strict=True):
        unit.noise[n] = noise


def without(model: ir.Model, name: str, batches: Sequence[Feeds]) -> ir.Model:
    """A model with a bypass for a block, and the next layers fitted to make up for it.

    Args:
        model: The model.
        name: Name of the block.
        batches: Samples to fit on; without any, the layers stay as they are.
    """
    copy = ir.clone(model)
    bypass(Rewriter(copy), next(b for b in find_blocks(copy) if b.name == name))
    if batches:
        dirty = behind(copy, {name})
        names = [e.name for e in layers(copy) if e.name in dirty and why_fixed(e) is None][:_BEHIND]

        def near(layer: Layer) -> bool:
            return layer.name in names

        optimum = operator.attrgetter("optimum")
        rebuild(model, copy, batches, optimum, wanted=near, only=near, threads=1)
    return copy


def _variant(
    channels: Channels, unit: Unit, left: int, problems: Mapping[str, Problem]
) -> ir.Model:
    """The model with the loss of one unit only."""
    fitted = {r.layer for r in unit.reads if r.layer in problems}
    if unit.others or len(fitted) < len({r.layer for r in unit.reads}):
        model = masked(channels, dead_of(channels, [unit], [left]))
    else:
        model = ir.clone(channels.model)
    rw = Rewriter(model)
    for layer in layers(model):
        if layer.name in fitted:
            problem = problems[layer.name]
            new = problem.restricted(used_columns(problem.layer, [unit], [left]))
            weights = new[:, :-1] if layer.takes_bias else new
            layer.write(rw, weights.transpose(0, 2, 1), new[:, -1] if layer.takes_bias else None)
    rw.remove_initializers()
    return model

"""How many zeros each layer gets: where they cost the outputs least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt import Rewriter, ir
from graphopt.measure import Trial
from graphopt.passes.sparsity._parts import optimal_parts
from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.obs_sparse import Zeros, allocate
from graphopt.reconstruct.problem import Problem
from graphopt.reconstruct.rebuild import rebuild
from graphopt.runtime import Feeds

__all__ = ["Share", "first", "shares"]

Array = np.ndarray[Any, Any]

# Ratios at which the error of a layer is known; between them it is interpolated.
_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Samples that the noise at the outputs is measured on: it only has to rank layers.
_SAMPLES = 128


@dataclasses.dataclass(frozen=True)
class Share:
    """What a layer gets.

    Attributes:
        ratio: Fraction of its weights that is to be zero.
        noise: What the ratio of all layers together would add to the outputs if this layer alone
            had it, in units of their energy.
    """

    ratio: float
    noise: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Curve:
    """A layer's weights at the ratio of all layers, and its errors at several."""

    size: int
    errors: Array
    weights: Array


def shares(
    model: ir.Model,
    batches: Sequence[Feeds],
    wanted: Callable[[Layer], bool],
    zeros: Zeros,
    threads: int,
) -> dict[str, Share]:
    """Share the zeros out between layers so that the outputs change least.

    The error that zeros make in what a layer computes follows from the moments of its inputs; what
    it does to the outputs is measured, with zeros in this layer alone.

    Args:
        model: The model.
        batches: Samples.
        wanted: Which layers get zeros.
        zeros: Their ratio over all these layers, and the blocks they come in.
        threads: Threads within an operator.
    """
    ratios = tuple(sorted({*_RATIOS, zeros.ratio}))
    curves: dict[str, _Curve] = {}

    def look(problem: Problem) -> None:
        if not wanted(problem.layer):
            return
        found = optimal_parts(problem, zeros, ratios)
        curves[problem.layer.name] = _Curve(
            problem.layer.matrix().size,
            np.array([problem.error(each) * problem.energy for each in found]),
            found[ratios.index(zeros.ratio)],
        )

    rebuild(model, ir.clone(model), batches, look, wanted=wanted, threads=threads)
    trial = Trial(model, first(batches, _SAMPLES))
    names = list(curves)

    def alone(name: str) -> ir.Model:
        changed = ir.clone(model)
        (layer,) = (each for each in layers(changed) if each.name == name)
        rw = Rewriter(changed)
        write(rw, layer, curves[name].weights)
        rw.remove_initializers()
        return changed

    noises = np.array(trial.noises(alone, names))
    at = ratios.index(zeros.ratio)
    scaled = np.stack([
        np.maximum(c.errors, 0.0) * (noise / max(float(c.errors[at]), 1e-300))
        for c, noise in zip(curves.values(), noises, strict=True)
    ])  # fmt: skip
    found = allocate([c.size for c in curves.values()], scaled, ratios, zeros.ratio)
    return {
        name: Share(ratio, float(noise))
        for name, ratio, noise in zip(names, found, noises, strict=True)
    }


def write(rw: Rewriter, layer: Layer, weights: Array) -> None:
    """Give a layer weights in the form of ``Problem.optimum``."""
    k = weights.shape[1] - int(layer.takes_bias)
    bias = weights[:, k] if layer.takes_bias else None
    layer.write(rw, weights[:, :k].transpose(0, 2, 1), bias)


def first(batches: Iterable[Feeds], count: int) -> list[Feeds]:
    """Batches of so many samples, and what else the last one holds."""
    taken: list[Feeds] = []
    for feeds in batches:
        taken.append(feeds)
        count -= max((len(a) for a in feeds.values() if getattr(a, "ndim", 0)), default=1)
        if count <= 0:
            break
    return taken

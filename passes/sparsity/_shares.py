"""How many zeros each layer gets: where they cost the outputs least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt import Rewriter, ir
from graphopt.measure import Trial
from graphopt.passes.sparsity._parts import optimal_parts
from graphopt.pruning.batches import first
from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.obs_sparse import Zeros, allocate
from graphopt.reconstruct.problem import Problem
from graphopt.reconstruct.rebuild import rebuild
from graphopt.runtime import Feeds

__all__ = ["Share", "shares"]

Array = np.ndarray[Any, Any]

# Ratios at which the error of a layer is known; between them it is interpolated.
_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Samples that the noise at the outputs is measured on: it only has to rank layers. They are of this
# part of the batches, which the weights are not fitted to: on what it was fitted to, a layer that
# reads few rows can do without nearly all of its weights.
_SAMPLES, _PART = 128, 4
# Noise beyond this is all the same.
_MOST = 1e30


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
        batches: Samples, two batches or more.
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

    start = len(batches) - max(len(batches) // _PART, 1)
    rebuild(model, ir.clone(model), batches[:start], look, wanted=wanted, threads=threads)
    trial = Trial(model, first(batches[start:], _SAMPLES))
    names = list(curves)

    def alone(name: str) -> ir.Model:
        changed = ir.clone(model)
        (layer,) = (each for each in layers(changed) if each.name == name)
        rw = Rewriter(changed)
        write(rw, layer, curves[name].weights)
        rw.remove_initializers()
        return changed

    # Where outputs are no numbers any more, noise is infinite, which no sum is least with.
    noises = np.minimum(trial.noises(alone, names), _MOST)
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

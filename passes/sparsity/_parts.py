"""Zeros in one layer: its groups, its bias, and the precision that weights are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.reconstruct.layers import Layer
from graphopt.reconstruct.obs_sparse import Zeros, path
from graphopt.reconstruct.problem import Problem

__all__ = ["arranged", "halved", "optimal_parts", "replaced"]

Array = np.ndarray[Any, Any]

# Share of the norm of a layer's weights that 16-bit floats may lose: rounding takes 0.0003.
_LOSS = 1e-3


def arranged(columns: int, layer: Layer, zeros: Zeros) -> Array:
    """Order of a layer's columns in which groups and blocks are consecutive.

    Groups are of input channels, as hardware for N:M sparsity wants them, whatever the kernel.
    """
    order = np.arange(columns)
    if zeros.group is None:
        return order
    return np.ascontiguousarray(order.reshape(-1, layer.kernel).T).reshape(-1)


def optimal_parts(problem: Problem, zeros: Zeros, ratios: Sequence[float]) -> list[Array]:
    """The best weights with zeros for several ratios, each in the form of ``Problem.optimum``."""
    out = [problem.optimum.copy() for _ in ratios]
    for g, (gram, best) in enumerate(zip(problem.gram, problem.optimum, strict=True)):
        k = len(gram) - int(problem.layer.takes_bias)
        order = arranged(k, problem.layer, zeros)
        metric, mean = _centred(gram, k)
        weight = best[order].T
        found = path(weight, metric[np.ix_(order, order)], ratios, zeros)
        for whole, part in zip(out, found, strict=True):
            whole[g, order] = part.T
            if k < len(gram):
                # The bias makes up for the mean of what is missing.
                whole[g, k] += mean @ (best[:k] - whole[g, :k])
    return out


def replaced(problem: Problem, found: Array, weights: Array) -> Array:
    """Other weights instead of those found, and the bias that goes with them.

    Args:
        problem: The layer's problem.
        found: In the form of ``Problem.optimum``.
        weights: The same without the bias.
    """
    k, out = weights.shape[1], found.copy()
    out[:, :k] = weights
    for g, gram in enumerate(problem.gram):
        if k < len(gram):
            out[g, k] += _centred(gram, k)[1] @ (found[g, :k] - weights[g])
    return out


def halved(weights: Array) -> Array | None:
    """Weights rounded to 16-bit floats; None where that loses more than rounding."""
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16).astype(np.float64)
        lost = np.linalg.norm(half - weights)
    return half if lost <= _LOSS * np.linalg.norm(weights) else None


def _centred(gram: Array, columns: int) -> tuple[Array, Array]:
    """The metric of weights whose bias follows them, and the mean inputs that it follows by."""
    inner = gram[:columns, :columns]
    if columns == len(gram):
        return inner, np.zeros(columns)
    mean = gram[columns, :columns] / gram[columns, columns]
    return inner - np.outer(mean, gram[columns, :columns]), mean

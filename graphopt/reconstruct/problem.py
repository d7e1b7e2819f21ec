"""What one layer should compute, as a least-squares problem in second moments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from graphopt.calibration.gram import spread
from graphopt.reconstruct.layers import Layer

__all__ = ["Problem", "accumulate"]

Array = np.ndarray[Any, Any]

# Multiply-adds that a Gram matrix may take, and rows per column that it needs at least.
_WORK = 2e10
_ROWS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Find the weights of a layer that compute targets from inputs, in the mean over samples.

    Everything about it is in the moments: the mean squared error of weights W is, up to a constant,
    the distance of W to the :attr:`optimum` in the metric of :attr:`gram`. So whatever replaces the
    weights (some zeros, few values, a product) is best where it is closest in this metric.

    Attributes:
        layer: The layer; its weights are those it starts from.
        gram: Moments of its inputs, a ridge included, ``[groups, columns, columns]`` float64. The
            last column is that of the bias, always 1, if the layer takes one.
        optimum: The best weights, ``[groups, columns, outputs of a group]`` float64.
        energy: Mean squared target, summed over its channels.
        residual: Mean squared error of the optimum in units of ``energy``.
        rows: Number of rows.
    """

    layer: Layer
    gram: Array
    optimum: Array
    energy: float
    residual: float
    rows: int

    def restricted(self, columns: Array) -> Array:
        """The best weights whose other columns are zero, in the form of ``optimum``.

        Args:
            columns: Which columns may be used, bool ``[groups, columns without bias]``.
        """
        found = np.zeros_like(self.optimum)
        for g, gram in enumerate(self.gram):
            free = self._free(columns[g])
            right = gram[free] @ self.optimum[g]
            found[g, free] = np.linalg.solve(gram[np.ix_(free, free)], right)
        return found

    def error(self, weights: Array) -> float:
        """Mean squared error of weights beyond that of the optimum, in units of ``energy``."""
        off = weights - self.optimum
        more = float(np.einsum("gco,gcd,gdo->", off, self.gram, off, optimize=True))
        return more / max(self.energy, 1e-300)

    def _free(self, columns: Array) -> Array:
        bias = [len(columns)] if self.gram.shape[1] > len(columns) else []
        return np.concatenate([np.flatnonzero(columns), np.array(bias, np.int64)]).astype(np.int64)


def accumulate(
    layer: Layer, inputs: Iterable[Array], targets: Iterable[Array], count: int, ridge: float
) -> Problem:
    """Gather the moments of a layer's inputs and of what it should compute from them.

    Args:
        layer: The layer, with the weights that the ridge draws to: those that it starts from.
        inputs: What it reads, batch by batch.
        targets: What it should compute, batch by batch, in the shape of its output.
        count: Number of batches.
        ridge: Share of the mean moment that is added to the diagonal (Hoerl and Kennard, 1970).
    """
    weight, bias = layer.matrix(), layer.bias()
    columns = weight.shape[2]
    most = max(_ROWS * columns, int(_WORK / columns**2)) // max(count, 1)
    gram: Any = 0.0
    cross: Any = 0.0
    energy, rows = 0.0, 0
    for x, y in zip(inputs, targets, strict=True):
        a, b = _rows(layer, x, y, max(most, 32))
        if layer.takes_bias:
            a = np.concatenate([a, np.ones((*a.shape[:2], 1), a.dtype)], axis=2)
        left = a.transpose(1, 2, 0)
        gram = gram + (left @ a.transpose(1, 0, 2)).astype(np.float64)
        cross = cross + (left @ b.transpose(1, 0, 2)).astype(np.float64)
        energy += float(np.einsum("rgo,rgo->", b, b, dtype=np.float64, casting="same_kind"))
        rows += len(a)
    gram, cross, energy = gram / rows, cross / rows, energy / rows
    start = weight.transpose(0, 2, 1)
    if layer.takes_bias:
        start = np.concatenate([start, bias[:, None, :]], axis=1)
    raw = gram.copy()
    index = np.arange(columns)
    means = gram[:, index, index].mean(axis=1, keepdims=True)
    gram[:, index, index] += ridge * np.maximum(means, 1e-12)
    optimum = start + np.linalg.solve(gram, cross - raw @ start)
    lost = energy - 2 * np.sum(optimum * cross) + np.sum(optimum * (raw @ optimum))
    residual = max(float(lost), 0.0) / max(energy, 1e-300)
    return Problem(layer, gram, optimum, energy, residual, rows)


def _rows(layer: Layer, x: Array, y: Array, most: int) -> tuple[Array, Array]:
    """Inputs and targets as rows, ``[rows, groups, columns]`` and ``[rows, groups, outputs]``."""
    if layer.patches is None:
        a = x.reshape(-1, 1, x.shape[-1])
        b = y.reshape(-1, 1, y.shape[-1])
        if len(a) > most:
            picked = spread(len(a), most)
            a, b = a[picked], b[picked]
        return a, b
    channels = np.moveaxis(y, 1, -1)
    flat = channels.reshape(math.prod(channels.shape[:-1]), layer.groups, -1)
    if len(flat) > most:
        flat = flat[spread(len(flat), most)]
    return layer.patches.cut(x, most), flat

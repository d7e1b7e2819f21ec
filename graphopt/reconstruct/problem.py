"""What one layer should compute, as a least-squares problem in second moments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration.gram import spread
from graphopt.errors import CalibrationError
from graphopt.reconstruct.layers import Layer

__all__ = ["Problem", "accumulate", "too_large", "why_fixed"]

Array = np.ndarray[Any, Any]

# Multiply-adds that a Gram matrix may take, and rows per column that it needs at least.
_WORK = 1e10
_ROWS = 8
# Columns of a layer that is still fitted: 300 MB of moments, and some copies of them.
_MOST = 6144
# Elements of rows that are multiplied at a time.
_PIECE = 1 << 24
# With so many rows for each column no ridge is sought: weights fit other rows as well. With fewer,
# every fourth batch tells which of some powers of ten does best.
_PLENTY, _PARTS, _DECADES = 32, 4, 6
# Share of the energy below which an error is one of rounding.
_EXACT = 1e-6
# Moments are sums of float32 products, which a smaller ridge would take at their word.
_LEAST = 1e-8


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


def too_large(layer: Layer) -> str | None:
    """Why a layer has no :class:`Problem`, which would take too much memory; None if it has one."""
    size = layer.groups * layer.columns * max(layer.columns, layer.outputs // layer.groups)
    if size <= _MOST**2:
        return None
    return (
        f"its {layer.outputs} outputs of {layer.columns} columns take more memory to fit than "
        f"{_MOST} x {_MOST}"
    )


def why_fixed(layer: Layer) -> str | None:
    """Why a layer keeps the weights that it has; None if it may get others."""
    weight = layer.node.inputs[1]
    if weight is not None and ir.use_count(weight) > 1:
        # With weights of its own the model would grow.
        return "its weights are used elsewhere, too"
    return too_large(layer)


def accumulate(
    layer: Layer, inputs: Iterable[Array], targets: Iterable[Array], count: int, ridge: float
) -> Problem:
    """Gather the moments of a layer's inputs and of what it should compute from them.

    Args:
        layer: The layer, with the weights that the ridge draws to: those that it starts from.
        inputs: What it reads, batch by batch.
        targets: What it should compute, batch by batch, in the shape of its output.
        count: Number of batches.
        ridge: Share of the mean moment that is added to the diagonal (Hoerl and Kennard, 1970); for
            the bias, of its own. More is added where that leaves the moments singular, and where
            there are few rows and it helps on those that were not fitted.

    Raises:
        CalibrationError: There are no rows, or something is not finite.
    """
    start = layer.matrix().transpose(0, 2, 1)
    if layer.takes_bias:
        start = np.concatenate([start, layer.bias()[:, None, :]], axis=1)
    groups, columns, _ = start.shape
    most = max(_ROWS * columns, int(_WORK / (groups * columns**2))) // max(count, 1)
    moments, aside = _Moments(start.shape), _Moments(start.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # seen below
        for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
            part = aside if i % _PARTS == _PARTS - 1 else moments
            for a, b in _rows(layer, x, y, max(most, 32)):
                part.add(a, b)
    rows = moments.rows + aside.rows
    if not rows:
        raise CalibrationError(f"{layer.name!r} cannot be fitted: all samples are empty")
    if not (moments.finite and aside.finite):
        raise CalibrationError(
            f"{layer.name!r} cannot be fitted: on these samples it reads or should compute NaN, "
            "infinity, or numbers too large to be squared"
        )
    inputs_only = columns - int(layer.takes_bias)
    if moments.rows and aside.rows and rows < _PLENTY * columns:
        ridge = _least_wrong(moments, aside, start, ridge, inputs_only)
    moments.join(aside)
    gram, cross, energy = moments.gram / rows, moments.cross / rows, moments.energy / rows
    right = cross - gram @ start
    added = _regularize(gram, ridge, inputs=inputs_only)
    optimum = start + np.linalg.solve(gram, right)
    error = gram @ optimum - added[:, :, None] * optimum - 2 * cross
    lost = energy + float(np.sum(optimum * error))
    residual = max(lost, 0.0) / max(energy, 1e-300)
    return Problem(layer, gram, optimum, energy, residual, rows)


class _Moments:
    """Sums of products of rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        groups, columns, outputs = shape
        self.gram = np.zeros((groups, columns, columns))
        self.cross = np.zeros((groups, columns, outputs))
        self.energy, self.rows = 0.0, 0

    def add(self, a: Array, b: Array) -> None:
        for g in range(a.shape[1]):
            x = np.ascontiguousarray(a[:, g])
            self.gram[g] += x.T @ x  # a symmetric product, which BLAS computes half of
            self.cross[g] += x.T @ b[:, g]
        self.energy += float(np.einsum("rgo,rgo->", b, b, dtype=np.float64, casting="same_kind"))
        self.rows += len(a)

    def join(self, other: _Moments) -> None:
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        self.rows += other.rows

    @property
    def finite(self) -> bool:
        both = np.isfinite(self.gram).all() and np.isfinite(self.cross).all()
        return bool(both and np.isfinite(self.energy))


def _least_wrong(
    moments: _Moments, aside: _Moments, start: Array, ridge: float, inputs: int
) -> float:
    """The ridge with which weights fitted to some rows are best on others."""
    off = float(np.sum(start * (aside.gram @ start - 2 * aside.cross))) + aside.energy
    if off <= _EXACT * aside.energy:
        return ridge  # nothing can be better: that says nothing of what has to be made up for
    best, least = ridge, np.inf
    for share in (ridge * 10.0**k for k in range(_DECADES)):
        gram = moments.gram / moments.rows
        right = moments.cross / moments.rows - gram @ start
        _regularize(gram, share, inputs)
        weights = start + np.linalg.solve(gram, right)
        wrong = float(np.sum(weights * (aside.gram @ weights - 2 * aside.cross)))
        if wrong < least:
            best, least = share, wrong
    return best


def _regularize(gram: Array, ridge: float, inputs: int) -> Array:
    """Add to the diagonal what makes moments positive definite; return it, ``[groups, columns]``.

    The sum of the mean moments bounds every eigenvalue and every rounding error in them, so that an
    end is certain.
    """
    index = np.arange(gram.shape[1])
    diagonal = gram[:, index, index].copy()
    unit = np.ones_like(diagonal)  # the moment of the bias
    means = diagonal[:, :inputs].mean(axis=1, keepdims=True)
    unit[:, :inputs] = np.where(means > 0, means, 1.0)
    share = max(ridge, _LEAST)
    while True:
        gram[:, index, index] = diagonal + share * unit
        try:
            np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            share *= 10
        else:
            return np.asarray(share * unit)


def _rows(layer: Layer, x: Array, y: Array, most: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets as rows, ``[rows, groups, columns]`` and ``[rows, groups, outputs]``.

    Rows of many samples come in pieces, since patches take the memory of their inputs many times.
    """
    if not y.size:
        return
    width = layer.groups * layer.columns
    if layer.patches is None:
        a, b = x.reshape(-1, 1, width), y.reshape(-1, 1, layer.outputs)
        picked = spread(len(a), most)
        for part in np.array_split(picked, math.ceil(len(picked) * width / _PIECE)):
            yield _with_bias(layer, a[part]), b[part]
        return
    positions = math.prod(y.shape[2:])
    wanted = min(len(x) * positions, most)
    pieces = min(len(x), math.ceil(wanted * width / _PIECE))
    for xs, ys in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        rows = math.ceil(wanted * len(xs) / len(x))
        flat = np.moveaxis(ys, 1, -1).reshape(-1, layer.groups, layer.outputs // layer.groups)
        yield _with_bias(layer, layer.patches.cut(xs, rows)), flat[spread(len(flat), rows)]


def _with_bias(layer: Layer, rows: Array) -> Array:
    if not layer.takes_bias:
        return rows
    return np.concatenate([rows, np.ones((*rows.shape[:2], 1), rows.dtype)], axis=2)

"""Few numbers for many: k-means in one dimension, where sorting makes it fast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["centres", "counted", "gathered", "nearest"]

Array = np.ndarray[Any, Any]

# Rounds of Lloyd's algorithm, and the share of the error that another one has to gain.
_ROUNDS, _GAIN = 60, 1e-4
# Beyond so many numbers those that share the first bits of a 32-bit float are counted together.
_MANY, _BITS = 1 << 18, 20
_PIECE = 1 << 22
# Bins per entry, and at most, that points are gathered in before runs of them are chosen.
_BINS, _MOST = 32, 1536
# Bins of a run at most, in units of what they would be if all runs were of as many.
_LONGEST = 16


def counted(array: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """The numbers of an array as ascending points that have weights.

    Args:
        array: Finite numbers, of any shape.
        weights: How much each counts, not negative, of the same shape; 1 by default.

    Returns:
        Points and their weights, ``[points]`` float64. Of many numbers, neighbours become one point
        at their mean.
    """
    flat = array.reshape(-1)
    mass = np.ones(flat.size) if weights is None else np.asarray(weights.reshape(-1), np.float64)
    if flat.size > _MANY:
        cuts = range(0, flat.size, _PIECE)
        return gathered((flat[at : at + _PIECE], mass[at : at + _PIECE]) for at in cuts)
    order = np.argsort(flat, kind="stable")
    return np.asarray(flat[order], np.float64), mass[order]


def gathered(pieces: Iterable[tuple[Array, Array | None]]) -> tuple[Array, Array]:
    """The numbers of many arrays as in :func:`counted`, in the memory of one of them.

    Args:
        pieces: Finite numbers and their weights, or None where each counts 1.
    """
    bins = 1 << _BITS
    mass, total = np.zeros(bins), np.zeros(bins)
    for numbers, weights in pieces:
        part = np.ascontiguousarray(numbers, np.float32).reshape(-1)
        place = part.view(np.uint32) >> np.uint32(32 - _BITS)
        mass += np.bincount(place, weights, bins)
        total += np.bincount(place, part if weights is None else part * weights, bins)
    used = np.flatnonzero(mass > 0)
    points = total[used] / mass[used]
    order = np.argsort(points, kind="stable")
    return points[order], mass[used][order]


def centres(points: Array, weights: Array, entries: int) -> Array:
    """Numbers that stand for points with the least weighted squared error.

    The best runs of points, gathered in bins where there are many, by dynamic programming; then
    Lloyd's algorithm on the points themselves.

    Args:
        points: Ascending, ``[points]``, one or more.
        weights: Not negative, ``[points]``.
        entries: How many numbers there may be.

    Returns:
        Ascending, ``[entries]`` float64 or fewer where there are not as many distinct points.

    References:
        Wang and Song, "Ckmeans.1d.dp" (2011); Lloyd, "Least squares quantization in PCM" (1982);
        Panter and Dite, "Quantization distortion in pulse-count modulation" (1951), for bins by the
        cube root of the density.
    """
    distinct = np.flatnonzero(np.diff(points, prepend=-np.inf) > 0)
    if len(distinct) <= entries:
        return points[distinct].copy()
    if not weights.any():
        weights = np.ones_like(weights)
    sums = _Sums(points, weights)
    cuts = _bins(points, weights, min(_BINS * entries, _MOST))
    mass, total = sums.runs(cuts)
    runs = _runs(mass, total, entries)
    return sums.lloyd(sums.means(cuts[runs]))


def nearest(values: Array, book: Array) -> Array:
    """The place in an ascending book of the number closest to each value, in the same shape."""
    wide = book if book.dtype == values.dtype == np.float32 else book.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values)


class _Sums:
    """Sums over runs of points, from running totals."""

    def __init__(self, points: Array, weights: Array) -> None:
        self._points = points
        # Around their mean, lest what differs in large numbers drowns in rounding.
        self._mean = float(np.average(points, weights=weights))
        self._mass = np.concatenate([[0.0], np.cumsum(weights)])
        self._sum = np.concatenate([[0.0], np.cumsum(weights * (points - self._mean))])

    def runs(self, cuts: Array) -> tuple[Array, Array]:
        """Weight of each run between cuts, and its weighted sum of distances to the mean."""
        return np.diff(self._mass[cuts]), np.diff(self._sum[cuts])

    def means(self, cuts: Array) -> Array:
        """Mean of each run that weighs anything."""
        mass, total = self.runs(cuts)
        return np.asarray(total[mass > 0] / mass[mass > 0] + self._mean)

    def lloyd(self, book: Array) -> Array:
        """Better centres."""
        before = np.inf
        for _ in range(_ROUNDS):
            inner = np.searchsorted(self._points, (book[1:] + book[:-1]) / 2)
            cuts = np.concatenate([[0], inner, [len(self._points)]])
            mass, total = self.runs(cuts)
            off = np.divide(total, mass, out=book - self._mean, where=mass > 0)
            # The error but for a constant.
            error = -float((np.square(off) * mass).sum())
            book = np.sort(off + self._mean)
            if error >= before - _GAIN * abs(before):
                break
            before = error
        return book


def _bins(points: Array, weights: Array, bins: int) -> Array:
    """Where points are cut into runs: each point one, or evenly in the cube root of the density."""
    if len(points) <= bins:
        return np.arange(len(points) + 1)
    # The density from equally heavy runs, whose width is what their density is the inverse of.
    order = np.linspace(0, len(points), bins + 1).astype(np.int64)
    mass = np.add.reduceat(weights, order[:-1])
    width = np.diff(points[np.minimum(order, len(points) - 1)])
    steps = np.concatenate([[0.0], np.cumsum(np.cbrt(mass * np.square(width)))])
    even = np.interp(np.linspace(0, steps[-1], bins + 1), steps, order)
    return np.unique(np.concatenate([[0], even.astype(np.int64), [len(points)]]))


def _runs(mass: Array, total: Array, entries: int) -> Array:
    """Bounds of the runs of bins whose means are least wrong, ``[entries + 1]``."""
    n = len(mass)
    longest = min(n, _LONGEST * n // entries + _LONGEST)
    w, s = (np.concatenate([[0.0], np.cumsum(each)]) for each in (mass, total))
    ends = np.arange(1, n + 1)
    starts = ends - np.arange(1, longest + 1)[:, None]
    real = starts >= 0
    starts = np.maximum(starts, 0)
    inside, sums = w[ends] - w[starts], s[ends] - s[starts]
    # What a run of some length that ends somewhere gains over no run at all.
    gain = np.divide(np.square(sums), inside, out=np.zeros(inside.shape), where=inside > 0)
    gain[~real] = -np.inf
    first = np.divide(np.square(s), w, out=np.zeros(n + 1), where=w > 0)
    first[longest + 1 :] = -np.inf
    best, back = np.concatenate([[-np.inf], first[1:]]), []
    for _ in range(min(entries, n) - 1):
        both = best[starts] + gain
        length = both.argmax(axis=0)
        best = np.concatenate([[-np.inf], both[length, ends - 1]])
        back.append(length)
    bounds = [n]
    for length in reversed(back):
        bounds.append(bounds[-1] - 1 - int(length[bounds[-1] - 1]))
    return np.array([0, *reversed(bounds)])

"""The range of least expected squared error of quantization.

The error is not sampled but integrated: within a bin of the histogram values count as evenly
spread, and the squared error of a rounding grid has a closed antiderivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.calibration.histogram import Histogram

__all__ = ["expected_error", "mse_range"]

_Floats = np.ndarray[Any, np.dtype[np.float64]]

# Candidates of one round, and how much narrower each round searches around the best so far.
_CANDIDATES = 12
_WIDEST = 2.0**-8
_ROUNDS = 3
_NARROWER = 8.0
# Share of the step at the full range below which all candidates round a value to zero.
_NEGLIGIBLE = _WIDEST / 8


def mse_range(seen: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """Find the range with the least expected squared error.

    First both ends shrink together, by up to 2^-8, then each by itself, in ever smaller steps.

    Args:
        seen: The values; there is at least one.
        levels: Number of representable values, of which one is zero.
        symmetric: Whether the range is symmetric around zero.
    """
    low, high = min(0.0, seen.min), max(0.0, seen.max)
    if symmetric:
        high = max(high, -low)
        low = -high
    if low == high:
        return low, high
    bins = _coarser(seen, (high - low) / (levels - 1))
    factors = _WIDEST ** np.linspace(0, 1, 2 * _CANDIDATES)
    low, high, best = _best(bins, low * factors, high * factors, levels)
    spread = _WIDEST ** (1 / (2 * _CANDIDATES - 1))  # between two neighbours so far
    ends = ["both"] if symmetric else [e for e, x in (("low", low), ("high", high)) if x]
    if not symmetric and low and high:
        ends.append("both")
    limit = (min(0.0, seen.min), max(0.0, seen.max))
    width = 1 / 8 if len(ends) > 1 else spread  # one end may have much farther to go than the other
    for _ in range(_ROUNDS):
        factors = width ** np.linspace(-1, 1, _CANDIDATES)
        for end in ends:
            lows = low * factors if end != "high" else np.full(_CANDIDATES, low)
            highs = high * factors if end != "low" else np.full(_CANDIDATES, high)
            if not symmetric:
                lows, highs = np.maximum(lows, limit[0]), np.minimum(highs, limit[1])
            a, b, error = _best(bins, lows, highs, levels)
            if error < best:
                low, high, best = a, b, error
        width **= 1 / _NARROWER
    return low, high


def expected_error(
    bins: tuple[_Floats, _Floats, _Floats], low: _Floats, high: _Floats, levels: int
) -> _Floats:
    """Sum of squared errors of quantization, for candidate ranges.

    Args:
        bins: Lower ends, upper ends and counts.
        low: ``[candidates]``, at most 0.
        high: ``[candidates]``, at least 0, and above ``low``.
        levels: Number of representable values. Zero is one of them: the grid is shifted as
            quantization shifts it.

    Returns:
        ``[candidates]``.
    """
    step = ((high - low) / (levels - 1))[:, None]
    first = np.round(low[:, None] / step)
    last = first + levels - 1
    a, b = bins[0] / step, bins[1] / step  # in units of the step; [candidates, bins]
    middle, width = (a + b) / 2, b - a
    point = np.clip(np.round(middle), first, last) - middle
    # Of narrow bins the difference of antiderivatives would be all rounding error.
    narrow = width < 1e-3
    even = (_integral(b, first, last) - _integral(a, first, last)) / np.where(narrow, 1, width)
    errors = np.where(narrow, point**2, even)
    found: _Floats = (errors * bins[2]).sum(axis=1) * step[:, 0] ** 2
    return found


def _integral(x: _Floats, first: _Floats, last: _Floats) -> _Floats:
    """Antiderivative of the squared distance to the nearest integer of ``first`` to ``last``."""
    nearest = np.clip(np.round(x), first, last)
    rest = x - nearest
    found: _Floats = nearest / 12 + rest**3 / 3
    return found


def _best(
    bins: tuple[_Floats, _Floats, _Floats], low: _Floats, high: _Floats, levels: int
) -> tuple[float, float, float]:
    error = expected_error(bins, low, high, levels)
    i = int(np.argmin(error))  # of equal ones the first, which is the widest
    return float(low[i]), float(high[i]), float(error[i])


def _coarser(seen: Histogram, step: float) -> tuple[_Floats, _Floats, _Floats]:
    """Bins no finer than the search needs.

    Args:
        seen: The values.
        step: Step of the grid over the full range. Bins above it are put together to half of it,
            smaller ones to eighths of octaves, since candidates may have smaller steps; what every
            candidate rounds to zero, to one bin of the same sum of squares.
    """
    low, high, counts = seen.bins()
    weights = counts.astype(np.float64)
    middle = (low + high) / 2
    size = abs(middle)
    tiny = size < step * _NEGLIGIBLE
    rest = ~tiny
    a, b, w, m, size = low[rest], high[rest], weights[rest], middle[rest], size[rest]
    octave = np.sign(m) * np.floor(8 * np.log2(size / (step * _NEGLIGIBLE)) + 1)
    group = np.where(size < step, octave, np.floor(2 * m / step) + np.sign(m) * 1000)
    starts = np.flatnonzero(np.diff(group, prepend=np.nan))
    if len(starts):
        ends = np.append(starts[1:], len(a)) - 1
        a, b, w = a[starts], b[ends], np.add.reduceat(w, starts)
    total = weights[tiny].sum()
    if not total:
        return a, b, w
    root = np.sqrt((weights[tiny] * middle[tiny] ** 2).sum() / total)
    return np.append(a, root), np.append(b, root), np.append(w, total)

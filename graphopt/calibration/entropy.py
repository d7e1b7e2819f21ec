"""The range that loses the least information, by Kullback-Leibler divergence.

Migacz, "8-bit Inference with TensorRT", GTC 2017, with these differences: zeros are left out (they
are represented exactly, and after Relu there are so many that nothing else would count); ranges on
both sides of zero are cut at equal magnitude, the grid being that of the type at hand; and all
candidates are tried, where ONNX Runtime's defaults leave one, the full range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.calibration.histogram import Histogram

__all__ = ["entropy_range"]

_Floats = np.ndarray[Any, np.dtype[np.float64]]

_FINER = 16  # bins to a level at the full range, as in TensorRT: 2048 for 128
_CANDIDATES = 64
_MOST_LEVELS = 1024


def entropy_range(seen: Histogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """Find the range whose quantized distribution diverges least from the original.

    Args:
        seen: The values; there is at least one.
        levels: Number of representable values. With more than 1024 there is nothing to be gained,
            and the range is the full one.
        symmetric: Whether the range is symmetric around zero.
    """
    low, high = min(0.0, seen.min), max(0.0, seen.max)
    if symmetric:
        high = max(high, -low)
        low = -high
    largest = max(high, -low)
    if levels > _MOST_LEVELS or low == high:
        return low, high
    count = _FINER * levels
    edges = np.linspace(low, high, count + 1)
    mass = _rebinned(seen, edges)
    if not mass.any():
        return low, high
    middle = (edges[:-1] + edges[1:]) / 2
    best, found = np.inf, (low, high)
    for top in largest * np.linspace(1, 1 / _FINER, _CANDIDATES):
        a, b = max(low, -top), min(high, top)
        divergence = _divergence(mass, middle, a, b, levels)
        if divergence < best:
            best, found = divergence, (a, b)
    return found


def _divergence(mass: _Floats, middle: _Floats, low: float, high: float, levels: int) -> float:
    """Divergence of the quantized distribution from the clipped one."""
    first, end = np.searchsorted(middle, (low, high))
    within = mass[first:end]
    if not within.any():
        return np.inf
    step = (high - low) / (levels - 1)
    level = np.round(middle[first:end] / step).astype(np.int64)
    level -= level[0]
    filled = within > 0
    totals = np.bincount(level, within)
    share = np.bincount(level, filled)
    quantized = np.where(filled, totals[level] / np.maximum(share[level], 1), 0)
    clipped = within.copy()
    clipped[0] += mass[:first].sum()
    clipped[-1] += mass[end:].sum()
    p, q = clipped / clipped.sum(), quantized / quantized.sum()
    # What was clipped into an empty bin has no counterpart; a tiny one makes it count dearly.
    q = np.where((p > 0) & (q == 0), np.finfo(np.float64).tiny, q)
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


def _rebinned(seen: Histogram, edges: _Floats) -> _Floats:
    """Counts in even bins, without zeros; values count as evenly spread within their bin."""
    low, high, counts = seen.bins()
    zero = (low == 0) & (high == 0)
    low, high, counts = low[~zero], high[~zero], counts[~zero]
    # The number of values below a point is piecewise linear, with corners at the ends of bins.
    corners = np.stack([low, high], axis=1).reshape(-1)
    below = np.cumsum(counts)
    heights = np.stack([below - counts, below], axis=1).reshape(-1)
    at_edges = np.interp(edges, corners, heights) if counts.size else np.zeros(len(edges))
    at_edges[0], at_edges[-1] = 0, counts.sum()
    return np.diff(at_edges)

"""Arrays near another one that take fewer bytes: floats of 16 bits, and equal steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.storage.narrow import pieces

__all__ = ["distance", "rounded"]

Array = np.ndarray[Any, Any]

# Numbers of steps, zero in their middle, that fill up what an index of so many bits tells apart.
_STEPS = (9, 15, 39, 73, 255)


def rounded(array: Array, tolerance: float) -> Iterator[Array]:
    """Arrays that are as near to another one as they have to be.

    Zeros stay zeros.

    Args:
        array: Floats of 16, 32 or 64 bits; of other arrays there are none.
        tolerance: Norm of the difference over that of the array, at most.
    """
    if array.dtype.kind != "f" or tolerance <= 0:
        return
    largest = float(max((np.abs(piece).max() for piece in pieces(array)), default=0.0))
    if not 0 < largest < math.inf:
        return
    if array.dtype.itemsize > 2:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16).astype(array.dtype)
        if distance(array, half) <= tolerance:
            yield half
    for steps in _STEPS:
        step = array.dtype.type(largest / (steps // 2))
        if step == 0:
            continue
        grid = np.rint(array / step) * step + 0  # adding makes zero of minus zero
        if distance(array, grid) <= tolerance:
            yield grid
            return


def distance(a: Array, b: Array) -> float:
    """Frobenius norm of a difference over that of the first of the two."""
    whole = off = 0.0
    for x, y in zip(pieces(a), pieces(b), strict=True):
        wide = x.astype(np.float64)
        whole += float(np.vdot(wide, wide))
        wide -= y
        off += float(np.vdot(wide, wide))
    return math.sqrt(off / whole) if whole else math.inf * off

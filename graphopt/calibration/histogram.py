"""A histogram that needs no range beforehand.

The upper 16 bits of a float32 (which are a bfloat16) number the bins: sign, exponent and the first
7 bits of the mantissa. Bins so are 128 to an octave, at any magnitude, the same for every tensor
and every process; counts are integers. Merging is exact, and its order does not matter.
"""

from __future__ import annotations

import mmap
import sys
import threading
from typing import Any, TypeAlias

import numpy as np

from graphopt.calibration.observers import Observer, extremes
from graphopt.errors import CalibrationError
from graphopt.runtime.values import Array

__all__ = ["Bins", "Histogram"]

_Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
_Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Bins: TypeAlias = tuple[_Floats, _Floats, _Counts]

# Bins of one sign and exponent make a page; few of the 512 pages are ever in use.
_PAGE = 128
_PAGES = 2**16 // _PAGE
_NEGATIVE = _PAGES // 2
# Elements counted at a time: their indices as int64 are to fit into a second-level cache.
_CHUNK = 1 << 15
_UPPER = 1 if sys.byteorder == "little" else 0


class Histogram(Observer):
    """Counts of values in bins of a relative width of 2^-7, and the exact extremes.

    Values are taken as float32. Memory is 1 KB for each power of two and sign that occurs, 0.5 MB
    at most, whatever the number of values.

    Attributes:
        min: Smallest value so far, exact; infinity before the first.
        max: Largest value so far, exact; -infinity before the first.
        count: Number of elements seen.
    """

    def __init__(self) -> None:
        self.min, self.max, self.count = np.inf, -np.inf, 0
        # Row of each page in the table of counts, in increasing order; -1 for pages not in use.
        self._rows = np.full(_PAGES, -1, np.int16)
        self._counts: _Counts = np.empty((0, _PAGE), np.int64)

    def update(self, array: Array) -> None:
        """See the base class.

        Raises:
            CalibrationError: An element is NaN, infinite, or too large for float32.
        """
        if not array.size:
            return
        values = _float32(array)
        low, high = extremes(values)
        self.min, self.max = min(self.min, low), max(self.max, high)
        self.count += values.size
        upper = values.reshape(-1).view(np.uint16)[_UPPER::2]
        table = _scratch()
        flat = table.reshape(-1)
        for start in range(0, upper.size, _CHUNK):
            np.add.at(flat, upper[start : start + _CHUNK], 1)
        # Only pages up to the extremes can be in use; negative values have the upper half of them.
        used = np.concatenate([
            np.flatnonzero(table[: _page(high) + 1].any(axis=1)),
            np.flatnonzero(table[_NEGATIVE : _NEGATIVE + _page(-low) + 1].any(axis=1)) + _NEGATIVE,
        ])  # fmt: skip
        self._add(used, table[used])
        table[used] = 0

    def merge(self, other: Histogram) -> None:
        """See the base class."""
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self.count += other.count
        self._add(np.flatnonzero(other._rows >= 0), other._counts)

    def _add(self, pages: np.ndarray[Any, np.dtype[np.intp]], counts: _Counts) -> None:
        rows = self._rows[pages]
        if (rows < 0).any():
            old = np.flatnonzero(self._rows >= 0)
            self._rows[pages] = 0
            used = np.flatnonzero(self._rows >= 0)
            self._rows[used] = np.arange(len(used))
            room = _off_heap(len(used))
            room[self._rows[old]] = self._counts
            self._counts, rows = room, self._rows[pages]
        self._counts[rows] += counts

    def bins(self) -> Bins:
        """The bins that are not empty, by increasing value.

        Returns:
            Lower ends, upper ends (both float64, within ``min`` and ``max``) and counts (int64).
            Zero is a bin without width: all else that the format puts there is below 1e-40.
        """
        pages = np.flatnonzero(self._rows >= 0).astype(np.int64)
        index = (pages[:, None] * _PAGE + np.arange(_PAGE)).reshape(-1)
        counts = self._counts.reshape(-1)
        index, counts = index[counts > 0], counts[counts > 0]
        near = _value(index)
        far = _value(index + 1)
        far[(index & 0x7FFF) == 0] = 0.0
        low, high = np.minimum(near, far), np.maximum(near, far)
        order = np.lexsort((high, low))
        low, high = np.clip(low, self.min, self.max), np.clip(high, self.min, self.max)
        return low[order], high[order], counts[order]


_local = threading.local()


def _scratch() -> _Counts:
    """Counters of all pages, all zero, of which each thread has its own."""
    found: _Counts | None = getattr(_local, "counts", None)
    if found is None:
        found = _local.counts = _off_heap(_PAGES)
    return found


def _page(magnitude: float) -> int:
    """The page of a value of positive sign; the first one for others."""
    return int(np.float32(max(0.0, magnitude)).view(np.uint32)) >> 23


def _off_heap(rows: int) -> _Counts:
    """Counters, all zero, outside of the heap.

    They are made while outputs of a model are alive and outlive them. On the heap they would take a
    little of the room that each output leaves, so that the next one would need room elsewhere: in
    the end twice the memory.
    """
    memory = mmap.mmap(-1, max(1, rows) * _PAGE * np.dtype(np.int64).itemsize)
    return np.frombuffer(memory, np.int64, rows * _PAGE).reshape(rows, _PAGE)


def _value(index: _Counts) -> _Floats:
    """The value a bin begins at, on its side towards zero."""
    magnitude = ((index & 0x7FFF) << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    # The largest finite bin ends where float32 does.
    magnitude = np.minimum(magnitude, float(np.finfo(np.float32).max))
    return np.where(index & 0x8000, -magnitude, magnitude)


def _float32(array: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
        raise CalibrationError(f"holds {array.dtype}, which are no numbers")
    with np.errstate(over="ignore"):  # infinity is refused by whoever looks at the extremes
        return np.ascontiguousarray(array, np.float32)

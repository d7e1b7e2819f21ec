"""Where an array has something else than zeros: the ways to say so."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.storage.code import Layout, Where
from graphopt.storage.packing import Packed, pack, packing

__all__ = ["Mask", "blocks", "masks", "plain_layout"]

Array = np.ndarray[Any, Any]

_BYTE = 256
# Share of elements other than zero beyond which no mask pays.
_FULL = 0.98
# Blocks of a matrix that are tried, rows by columns.
_BLOCKS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4), (8, 8))
# Groups of which a code knows patterns: how many elements are kept of how many.
_PATTERNS = ((1, 4), (2, 4))
# Groups that are looked at before all of them are.
_SOME = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """A way to tell which units are listed.

    Attributes:
        where: Its kind.
        layout: The units.
        listed: How many are listed, zeros among them or not.
        nbytes: Bytes that the mask takes.
        zeros: Whether zeros may be listed.
        bridges: Whether units of zeros are.
        kept: Bool ``[units]``, which units are not zero.
        keep: Units of a group that a pattern lists.
    """

    where: Where
    layout: Layout
    listed: int
    nbytes: int
    zeros: bool = True
    bridges: bool = True
    kept: Array | None = None
    keep: int = 0

    def parts(self) -> tuple[Array | slice, Packed | None, Array | None]:
        """Indices of the listed units, the mask, and patterns."""
        if self.kept is None:
            return slice(None), None, None
        if self.where == "bits":
            return self.kept, pack(self.kept, 2), None
        if self.where == "gaps":
            at, gaps = _gaps(self.kept)
            return at, Packed(gaps, packing(_BYTE), len(gaps)), None
        full, numbers, table = _patterns(self.kept.reshape(-1, 4), self.keep)
        return full.reshape(-1), pack(numbers, len(table)), table


def masks(bits: Array) -> Iterator[Mask]:
    """Ways to tell which units of an array are listed, from the bits of its elements."""
    plain = plain_layout(bits.shape)
    yield Mask("all", plain, bits.size, 0)
    kept = bits != 0
    share = np.count_nonzero(kept) / bits.size
    if share > _FULL:
        return
    rows, columns = bits.shape[0], math.prod(bits.shape[1:])
    matrix = kept.reshape(rows, columns)
    whole = (1, math.prod(bits.shape[2:]))  # kernels of a convolution
    for r, c in dict.fromkeys((*_BLOCKS, whole)):
        if rows % r == 0 and columns % c == 0:
            yield from _block_masks(matrix, r, c, plain if r * c == 1 else None)
    for axis, (keep, group) in itertools.product(range(bits.ndim), _PATTERNS):
        if bits.shape[axis] % group or share > keep / group:
            continue
        layout = _along(bits.shape, axis)
        units = layout.units(kept)[:, 0]
        if _most(units[: _SOME * group], group) <= keep and _most(units, group) <= keep:
            size = math.comb(group, keep)
            nbytes = packing(size).nbytes(len(units) // group)
            listed = len(units) // group * keep
            yield Mask("patterns", layout, listed, nbytes, kept=units, keep=keep)


def blocks(rows: int, columns: int, r: int, c: int) -> Layout:
    """Blocks of a matrix of ``r`` rows by ``c`` columns."""
    view = (rows // r, r, columns // c, c)
    return Layout(view, (0, 2, 1, 3) if r > 1 else (0, 1, 2, 3), r * c)


def plain_layout(shape: tuple[int, ...]) -> Layout:
    """Single elements in their order."""
    return Layout(shape, tuple(range(len(shape))), 1)


def _block_masks(matrix: Array, r: int, c: int, layout: Layout | None) -> Iterator[Mask]:
    rows, columns = matrix.shape
    layout = layout or blocks(rows, columns, r, c)
    kept = functools.reduce(np.logical_or, (matrix[i::r] for i in range(r)))
    kept = functools.reduce(np.logical_or, (kept[:, i::c] for i in range(c))).reshape(-1)
    count = int(np.count_nonzero(kept))
    inner = r * c > 1
    yield Mask("bits", layout, count, packing(2).nbytes(len(kept)), inner, False, kept)
    if count < len(kept) / 8:  # where a byte each is less than a bit for all
        at, gaps = _gaps(kept)
        bridges = len(at) > count
        yield Mask("gaps", layout, len(at), gaps.nbytes, bridges or inner, bridges, kept)


def _along(shape: tuple[int, ...], axis: int) -> Layout:
    """Single elements, those along an axis next to each other."""
    others = [i for i in range(len(shape)) if i != axis]
    return Layout(shape, (*others, axis), 1)


def _most(kept: Array, group: int) -> int:
    counts = kept[::group].astype(np.uint8)
    for i in range(1, group):
        counts += kept[i::group]
    return int(counts.max())


def _gaps(kept: Array) -> tuple[Array, Array]:
    """Which units are listed, and the distance of each from the one before.

    A distance beyond a byte is bridged by listing zeros.
    """
    at = np.flatnonzero(kept) if kept.any() else np.zeros(1, np.int64)
    steps = np.diff(at, prepend=-1)
    bridges = (steps - 1) // (_BYTE - 1)
    ends = np.cumsum(bridges + 1) - 1
    gaps = np.full(int((bridges + 1).sum()), _BYTE - 1, np.int64)
    gaps[ends] = steps - bridges * (_BYTE - 1)
    return np.cumsum(gaps) - 1, gaps.astype(np.uint8)


def _patterns(kept: Array, keep: int) -> tuple[Array, Array, Array]:
    """Exactly ``keep`` of each group, the number of the pattern of each, and the patterns."""
    group = kept.shape[1]
    table = np.zeros((math.comb(group, keep), group), bool)
    for row, places in zip(table, itertools.combinations(range(group), keep), strict=True):
        row[list(places)] = True
    # Where fewer are not zero, zeros are listed: the first pattern that has them all.
    every = np.arange(2**group)[:, None] >> np.arange(group) & 1 != 0
    fits = (table[None] | ~every[:, None]).all(axis=2)
    first = fits.argmax(axis=1)
    code = sum(kept[:, i].astype(np.uint8) << i for i in range(group))
    numbers = first.astype(np.uint8)[code]
    return table[numbers], numbers, table

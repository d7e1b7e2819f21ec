"""Codes for arrays of many zeros: which elements are not zero, and what these are.

An array is cut into units of equal size, single elements or blocks; a code says which units hold
something else than zeros, and lists those. Codes differ in how they say which. All are lossless,
bit by bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

__all__ = ["Code", "Coding", "Layout", "decode", "encode"]

Array = np.ndarray[Any, Any]
Coding = Literal["dense", "bits", "gaps", "patterns"]

_BYTE = 256
# Share of elements other than zero beyond which no mask pays.
_FULL = 0.98
# Blocks of a matrix that are tried, rows by columns.
_BLOCKS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4), (8, 8))
# Groups of which a code knows patterns: how many elements are kept of how many.
_PATTERNS = ((1, 4), (2, 4))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the units of an array are found.

    Attributes:
        view: Shape that the array is reshaped to.
        perm: Order of the axes of the view in which units follow each other, elements of a unit
            last.
        unit: Number of elements of a unit.
    """

    view: tuple[int, ...]
    perm: tuple[int, ...]
    unit: int

    def units(self, array: Array) -> Array:
        """The units of an array, ``[units, elements]``."""
        return np.ascontiguousarray(array.reshape(self.view).transpose(self.perm)).reshape(
            -1, self.unit
        )

    def array(self, units: Array, shape: tuple[int, ...]) -> Array:
        """The array of these units."""
        moved = units.reshape([self.view[axis] for axis in self.perm])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.perm))).reshape(shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """An array in fewer bytes.

    Attributes:
        coding: How it says which units are listed. ``dense``: all are. ``bits``: one bit per unit,
            the first in the highest bit. ``gaps``: bytes, distances between the listed units.
            ``patterns``: bytes, each several numbers of patterns, the first most significant.
        shape: Shape of the array.
        dtype: Its type.
        layout: Where its units are.
        values: What is listed, ``[listed, elements]``, of ``dtype`` or float16.
        mask: The bytes, uint8 ``[bytes]``; empty where the coding is ``dense``.
        patterns: ``[patterns, units of a group]`` bool, where the coding is ``patterns``.
    """

    coding: Coding
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout
    values: Array
    mask: Array
    patterns: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return self.values.nbytes + self.mask.nbytes

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the array itself."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def digits(self) -> int:
        """Numbers in a byte of the mask."""
        return 8 if self.patterns is None else _digits(len(self.patterns))

    @property
    def base(self) -> int:
        """What these numbers are below."""
        return 2 if self.patterns is None else len(self.patterns)


def encode(array: Array) -> Code:
    """The smallest code of an array.

    Floats of 32 bits are listed as floats of 16 bits where that keeps every bit of every one.

    Args:
        array: Of any number type that zero bits mean zero in; one axis at least.

    Raises:
        ValueError: The array has no elements, or no axis.
    """
    if not array.size or not array.ndim:
        raise ValueError(f"an array of shape {list(array.shape)} has nothing to code")
    return min(_candidates(array), key=lambda code: code.nbytes)


def decode(code: Code) -> Array:
    """The array that was encoded, as ONNX Runtime computes it from the nodes of a code."""
    unit = code.layout.unit
    count = math.prod(code.shape) // unit
    values = code.values.astype(code.dtype)
    if code.coding == "dense":
        units = values
    elif code.coding == "gaps":
        units = np.zeros((count, unit), code.dtype)
        units[np.cumsum(code.mask, dtype=np.int64) - 1] = values
    else:
        powers = code.base ** np.arange(code.digits - 1, -1, -1)
        numbers = (code.mask[:, None] // powers % code.base).reshape(-1)
        kept = numbers if code.patterns is None else code.patterns[numbers].reshape(-1)
        kept = kept[:count].astype(np.int64)
        units = np.concatenate([np.zeros((1, unit), code.dtype), values])[np.cumsum(kept) * kept]
    return code.layout.array(units, code.shape)


def _candidates(array: Array) -> Iterator[Code]:
    half = _is_half(array)

    def code(coding: Coding, layout: Layout, values: Array, mask: Array, *rest: Array) -> Code:
        listed = values.astype(np.float16) if half else values
        return Code(coding, array.shape, array.dtype, layout, listed, mask, *rest)

    plain = Layout(array.shape, tuple(range(array.ndim)), 1)
    yield code("dense", plain, plain.units(array), np.zeros(0, np.uint8))
    if _bits_of(array).mean() > _FULL:
        return
    for layout in _layouts(array.shape):
        units = layout.units(array)
        kept = np.asarray(_bits_of(units).any(axis=1))
        yield code("bits", layout, units[kept], np.packbits(kept))
        at, mask = _gaps(kept)
        yield code("gaps", layout, units[at], mask)
    for axis, (keep, group) in itertools.product(range(array.ndim), _PATTERNS):
        if array.shape[axis] % group:
            continue
        layout = _along(array.shape, axis)
        units = layout.units(array)
        kept = _bits_of(units).any(axis=1).reshape(-1, group)
        if kept.sum(axis=1).max() <= keep:
            full, mask, table = _pattern_mask(kept, keep)
            yield code("patterns", layout, units[full.reshape(-1)], mask, table)


def _bits_of(array: Array) -> Array:
    """Whether elements are anything else than zero bits: minus zero is."""
    size = array.dtype.itemsize
    return np.asarray(np.ascontiguousarray(array).view(f"u{size}") != 0)


def _is_half(array: Array) -> bool:
    """Whether 16-bit floats are the same numbers to the last bit.

    Those of NaN are up to who converts them.
    """
    if array.dtype != np.float32 or np.isnan(array).any():
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        back = array.astype(np.float16).astype(np.float32)
    return bool(np.array_equal(back.view(np.uint32), array.view(np.uint32)))


def _layouts(shape: tuple[int, ...]) -> Iterator[Layout]:
    """Units of a matrix of the first axis by all others."""
    rows, columns = shape[0], math.prod(shape[1:])
    blocks = dict.fromkeys((*_BLOCKS, (1, math.prod(shape[2:]))))  # whole kernels of a convolution
    for r, c in blocks:
        if rows % r == 0 and columns % c == 0:
            view = (rows // r, r, columns // c, c)
            yield Layout(view, (0, 2, 1, 3) if r > 1 else (0, 1, 2, 3), r * c)


def _along(shape: tuple[int, ...], axis: int) -> Layout:
    """Single elements, those along an axis next to each other."""
    others = [i for i in range(len(shape)) if i != axis]
    return Layout(shape, (*others, axis), 1)


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


def _digits(base: int) -> int:
    return int(math.log(_BYTE) / math.log(base) + 1e-9)


def _pattern_mask(kept: Array, keep: int) -> tuple[Array, Array, Array]:
    """Exactly ``keep`` of each group, the bytes that say which, and the patterns."""
    group = kept.shape[1]
    # Where fewer are not zero, zeros are listed: the first ones.
    order = np.argsort(~kept, axis=1, kind="stable")[:, :keep]
    full = np.zeros(kept.shape, bool)
    np.put_along_axis(full, order, True, axis=1)
    table = np.zeros((math.comb(group, keep), group), bool)
    for row, places in zip(table, itertools.combinations(range(group), keep), strict=True):
        row[list(places)] = True
    number = np.full(2**group, -1)
    weights = 2 ** np.arange(group)
    number[table @ weights] = np.arange(len(table))
    numbers, digits = number[full @ weights], _digits(len(table))
    padded = np.pad(numbers, (0, -len(numbers) % digits)).reshape(-1, digits)
    mask = padded @ len(table) ** np.arange(digits - 1, -1, -1)
    return full, mask.astype(np.uint8), table

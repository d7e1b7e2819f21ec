"""The smallest code of an array."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.storage.books import Division, Found, divisions, find
from graphopt.storage.code import Book, Code
from graphopt.storage.narrow import bits_of, narrowest
from graphopt.storage.packing import pack, packing
from graphopt.storage.zeros import Mask, masks

__all__ = ["candidates", "encode"]

Array = np.ndarray[Any, Any]


def encode(array: Array) -> Code:
    """The smallest code of an array; decoding it gives the same bits.

    Args:
        array: Of any number type that zero bits mean zero in; one axis at least.

    Raises:
        ValueError: The array has no elements, or no axis.
    """
    if not array.size or not array.ndim:
        raise ValueError(f"an array of shape {list(array.shape)} has nothing to code")
    given = _Given.of(array)
    ways = list(masks(given.bits))
    mask = min(ways, key=given.plain_nbytes)
    best, chosen = given.plain_nbytes(mask), None
    bounded = [
        (min(_book_nbytes(given, way, division, entries, others) for way in ways), i, division)
        for i, (division, entries, others) in enumerate(divisions(given.bits))
    ]
    for bound, _, division in sorted(bounded, key=lambda each: each[:2]):
        if bound >= best:
            break

        def least(entries: int, others: int, division: Division = division) -> tuple[int, Mask]:
            sizes = [_book_nbytes(given, way, division, entries, others) for way in ways]
            return min(sizes), ways[sizes.index(min(sizes))]

        found = find(division, given.bits, lambda *n: least(*n)[0] < best)  # noqa: B023
        if found is not None:
            best, mask = least(found.entries, found.others)
            chosen = found
    return given.plain(mask) if chosen is None else given.booked(mask, chosen)


def candidates(array: Array) -> Iterator[Code]:
    """All codes of an array, of which ``encode`` takes the smallest."""
    given = _Given.of(array)
    ways = list(masks(given.bits))
    for mask in ways:
        yield given.plain(mask)
    for division, _, _ in divisions(given.bits):
        found = find(division, given.bits, lambda entries, others: True)
        if found is not None:
            for mask in ways:
                if _goes_with(mask, division):
                    yield given.booked(mask, found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Given:
    """An array to encode.

    Attributes:
        shape: Its shape.
        core: It, once along axes that it is the same along.
        bits: The bits of the core's elements.
        narrow: The narrowest type that holds them.
    """

    shape: tuple[int, ...]
    core: Array
    bits: Array
    narrow: np.dtype[Any]

    @classmethod
    def of(cls, array: Array) -> _Given:
        core = array
        for axis in range(array.ndim):
            core = _once(core, axis)
        return cls(array.shape, core, bits_of(core), narrowest(core))

    def plain_nbytes(self, mask: Mask) -> int:
        listed = mask.listed + (mask.where in ("bits", "patterns"))  # and one of zeros
        return mask.nbytes + listed * mask.layout.unit * self.narrow.itemsize

    def plain(self, mask: Mask) -> Code:
        """The code without a book."""
        at, packed, patterns = mask.parts()
        listed = mask.layout.units(self.core)[at].astype(self.narrow)
        return Code(
            self.shape, self.core.dtype, self.core.shape, mask.layout, mask.where, listed,
            mask=packed, patterns=patterns,
        )  # fmt: skip

    def booked(self, mask: Mask, found: Found) -> Code:
        """The code with a book."""
        division, masked = found.division, mask.kept is not None
        at, packed, patterns = mask.parts()
        bits = found.table(masked=masked)
        table = bits.view(self.core.dtype).astype(self.narrow)
        vectors, places = division.elements > 1, found.places
        if mask.kept is not None:
            zero = ~mask.kept if vectors else self.bits.reshape(-1) == 0
            places = np.where(zero, np.uint16(found.others), places)
        layout = division.layout if vectors else mask.layout
        listed = (places[:, None] if vectors else mask.layout.units(places))[at]
        base = _base(mask, division, found.entries, found.others)
        return Code(
            self.shape, self.core.dtype, self.core.shape, layout, mask.where,
            pack(listed.reshape(-1), base), Book(table, division.run), packed, patterns,
        )  # fmt: skip


def _once(array: Array, axis: int) -> Array:
    """The first of an axis that the array is the same along, else the array."""
    if array.shape[axis] == 1:
        return array
    bits = bits_of(array)
    first, last = bits.take([0], axis), bits.take([-1], axis)
    if np.array_equal(first, last) and bool((bits == first).all()):
        return array.take([0], axis)
    return array


def _goes_with(mask: Mask, division: Division) -> bool:
    """Whether what a mask lists are places in a book."""
    return division.elements == 1 or mask.kept is None or mask.layout == division.layout


def _base(mask: Mask, division: Division, entries: int, others: int) -> int:
    """What the listed places are below."""
    if mask.kept is None:
        return entries
    zeros = mask.bridges if division.elements > 1 else mask.zeros
    return max(others + int(zeros), 1)


def _book_nbytes(given: _Given, mask: Mask, division: Division, entries: int, others: int) -> int:
    """Bytes of a code with a book; at least as many, if there are at least as many entries."""
    if not _goes_with(mask, division):
        return given.bits.nbytes * 2  # more than any code
    size = entries if mask.kept is None else others + 1
    table = division.blocks * size * division.elements * given.narrow.itemsize
    listed = mask.listed * (1 if division.elements > 1 else mask.layout.unit)
    if mask.kept is None and division.elements > 1:
        listed //= division.elements
    places = packing(_base(mask, division, entries, others)).nbytes(listed)
    return mask.nbytes + places + table

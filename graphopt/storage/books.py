"""Few different values: in an array, in blocks of its rows or columns, or as whole units.

Values are told apart by keys: their bits, or for units of several elements a hash of them that is
checked in the end. What a book would take is first bounded by the keys of a sample, so that arrays
without one cost next to nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt.storage.code import Layout
from graphopt.storage.lookup import different, index
from graphopt.storage.zeros import blocks, plain_layout

__all__ = ["Division", "Found", "divisions", "find"]

Array = np.ndarray[Any, Any]

_SAMPLE = 4096  # keys per block
_BLOCKS = 4  # blocks that are sampled
_LEAST = 16  # keys from which on a sample tells something, and a block has a book
# Units of several elements that are tried, rows by columns of a matrix.
_UNITS = ((1, 2), (1, 4), (1, 8), (1, 16), (2, 1), (4, 1), (8, 1))
# Share of different values in samples from which on there are no books.
_VARIED = 0.9
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Division:
    """Where books are looked for: units of a matrix, and equal blocks of units.

    Attributes:
        matrix: Rows and columns.
        unit: Rows and columns of a unit.
        axis: Which axis blocks cut: 0 or 1.
        blocks: How many blocks there are.
        layout: The units of the array.
    """

    matrix: tuple[int, int]
    unit: tuple[int, int]
    axis: int
    blocks: int
    layout: Layout

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units."""
        return self.matrix[0] // self.unit[0], self.matrix[1] // self.unit[1]

    @property
    def run(self) -> int:
        """How many units that follow each other belong to the same block."""
        rows, columns = self.grid
        return (columns if self.axis else rows * columns) // self.blocks

    @property
    def elements(self) -> int:
        """Elements of a unit."""
        return self.unit[0] * self.unit[1]

    def split(self, grid: Array) -> Array:
        """A view of what there is per unit, ``[blocks, rows, columns]``."""
        rows, columns = self.grid
        if self.axis:
            return grid.reshape(rows, self.blocks, columns // self.blocks).swapaxes(0, 1)
        return grid.reshape(self.blocks, rows // self.blocks, columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Books of a division.

    Attributes:
        division: The division.
        places: Place of each unit in the book of its block, uint16 ``[units]``.
        books: Bits of the entries of each block, ``[entries, elements]``; zero is the last one.
        entries: Entries of the largest book, zero among them.
        others: Entries of the largest book without zero.
    """

    division: Division
    places: Array
    books: list[Array]
    entries: int
    others: int

    def table(self, *, masked: bool) -> Array:
        """Bits of all books, ``[blocks, entries, elements]``.

        Args:
            masked: Zero is the last entry of all blocks, where ``others`` says.
        """
        size = self.others + 1 if masked else self.entries
        first = self.books[0]
        table = np.zeros((len(self.books), size, self.division.elements), first.dtype)
        for row, book in zip(table, self.books, strict=True):
            row[: len(book)] = book[:size]
            if masked:
                row[self.others] = 0
        return table


def divisions(bits: Array) -> list[tuple[Division, int, int]]:
    """Where an array may have books.

    Args:
        bits: Bits of the elements of an array.

    Returns:
        Divisions, how many entries their largest book has at least, and how many without zero.
    """
    if _varied(bits.reshape(bits.shape[0], -1)):
        return []
    found = []
    for each in _divisions(bits.shape):
        bound = _sampled(each, bits)
        if bound is not None:
            found.append((each, *bound))
    return found


def find(division: Division, bits: Array, pays: Callable[[int, int], bool]) -> Found | None:
    """The books of a division.

    Args:
        division: The division.
        bits: Bits of the elements of the array.
        pays: Whether books of so many entries, and so many without zero, are any use.

    Returns:
        None where the books are too large to be of use.
    """
    keys = division.split(_keys(_units(division, bits)))
    places = np.empty(division.grid, np.uint16)
    split = division.split(places)
    entries = others = 0
    firsts: list[Array] = []
    for block, its_keys in enumerate(keys):
        flat = np.ascontiguousarray(its_keys).reshape(-1)
        known = index(flat, lambda n: pays(max(entries, n), max(others, n - 1)))  # noqa: B023
        if known is None:
            return None
        table, at = known
        order = np.argsort(table == 0, kind="stable")  # zero comes last
        rank = np.empty(len(table), np.uint16)
        rank[order] = np.arange(len(table), dtype=np.uint16)
        at = rank[at]
        split[block] = at.reshape(its_keys.shape)
        entries = max(entries, len(table))
        others = max(others, int(np.count_nonzero(table)))
        if not pays(entries, others):
            return None
        firsts.append(table[order] if division.elements == 1 else _example(at, len(table)))
    if division.elements == 1:
        return Found(division, places.reshape(-1), [t[:, None] for t in firsts], entries, others)
    units = division.layout.units(bits)
    numbers = division.split(np.arange(len(units)).reshape(division.grid))
    books = [units[np.ravel(numbers[i])[first]] for i, first in enumerate(firsts)]
    found = Found(division, places.reshape(-1), books, entries, others)
    return found if _true(found, units) else None


def _divisions(shape: tuple[int, ...]) -> Iterator[Division]:
    """Divisions of an array of this shape that are tried."""
    rows, columns = shape[0], math.prod(shape[1:])
    views = dict.fromkeys([((rows, columns), 0), ((rows * columns // shape[-1], shape[-1]), 1)])
    for matrix, axis in views:
        for count in _divisors(matrix[axis]):
            if (count > 1 or axis == 0) and rows * columns // count >= _LEAST:
                yield Division(matrix, (1, 1), axis, count, plain_layout(shape))
    whole = (1, math.prod(shape[2:]))
    for r, c in dict.fromkeys((*_UNITS, whole, (1, columns), (rows, 1))):
        if r * c == 1 or rows % r or columns % c:
            continue
        grid = rows // r, columns // c
        for axis, count in dict.fromkeys([(0, 1), (0, grid[0]), (1, grid[1])]):
            if grid[0] * grid[1] // count >= _LEAST and (count > 1 or axis == 0):
                layout = blocks(rows, columns, r, c)
                yield Division((rows, columns), (r, c), axis, count, layout)


def _divisors(number: int) -> list[int]:
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def _varied(matrix: Array) -> bool:
    """Whether hardly any number occurs twice: in a row, in a column, and in all."""
    rows, columns = matrix.shape
    samples = (
        matrix[rows // 2, :_SAMPLE],
        matrix[:: -(-rows // _SAMPLE), columns // 2],
        matrix.reshape(-1)[:: matrix.size // _SAMPLE | 1],
    )
    shares = []
    for sample in samples:
        others = sample[sample != 0]
        if len(others) >= _LEAST:
            shares.append(len(different(others)) / len(others))
    return bool(shares) and min(shares) > _VARIED


def _sampled(division: Division, bits: Array) -> tuple[int, int] | None:
    """How many entries the largest of some blocks has at least, and how many without zero.

    None where hardly any unit of a sample occurs twice.
    """
    (r, c), (rows, columns) = division.unit, division.grid
    units = bits.reshape(rows, r, columns, c)
    entries = others = 0
    for block in np.unique(np.linspace(0, division.blocks - 1, _BLOCKS).astype(int)):
        size = (rows, columns)[division.axis] // division.blocks
        part = slice(block * size, (block + 1) * size)
        mine = units[:, :, part] if division.axis else units[part]
        high, wide = mine.shape[0], mine.shape[2]
        few = min(wide, max(_SAMPLE // min(high, 64), 1))
        some = mine[:: -(-high * few // _SAMPLE), :, :: -(-wide // few)]
        keys = _keys(some)
        table = different(keys)
        if keys.size < high * wide and len(table) > _VARIED * keys.size:
            return None
        entries = max(entries, len(table))
        others = max(others, int(np.count_nonzero(table)))
    return entries, others


def _units(division: Division, bits: Array) -> Array:
    (r, c), (rows, columns) = division.unit, division.grid
    return bits.reshape(rows, r, columns, c)


def _keys(units: Array) -> Array:
    """Numbers that tell units apart, ``[rows, r, columns, c]`` to ``[rows, columns]``.

    That of a unit of zeros is 0. Different units may have the same number.
    """
    _, r, _, c = units.shape
    if r * c == 1:
        return units[:, 0, :, 0]
    keys = np.zeros(units.shape[::2], np.uint64)
    for i in range(r):
        for j in range(c):
            keys *= _ODD
            keys ^= keys >> np.uint64(29)
            keys += units[:, i, :, j]
    return keys


def _example(at: Array, entries: int) -> Array:
    """One place of each entry."""
    found = np.empty(entries, np.int64)
    found[at] = np.arange(len(at))
    return found


def _true(found: Found, units: Array) -> bool:
    """Whether the books hold what the units are, and keys did not mix any up."""
    split = found.division.split
    numbers = split(np.arange(len(units)).reshape(found.division.grid))
    places = split(found.places.reshape(found.division.grid))
    return all(
        np.array_equal(units[numbers[i].reshape(-1)], book[places[i].reshape(-1)])
        for i, book in enumerate(found.books)
    )

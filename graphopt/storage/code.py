"""Codes: where an array has something else than zeros, and what is there.

An array is cut into units of equal size, single elements or blocks. *Where* tells which units are
listed, the others being zeros. *What* is listed are numbers, in their own type or a narrower one,
or places in a book of the few different values that there are. Both are lossless, bit by bit, and
any goes with any. A core that is the same along axes is coded once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from graphopt.storage.packing import Packed

__all__ = ["Book", "Code", "Layout", "Where", "decode"]

Array = np.ndarray[Any, Any]
Where = Literal["all", "bits", "gaps", "patterns"]


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

    @property
    def count(self) -> int:
        """How many units there are."""
        return math.prod(self.view) // self.unit

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
class Book:
    """The different values of an array, or of each of several blocks of it.

    Attributes:
        table: ``[blocks, entries, elements]``, of the type of the array or a narrower one.
        run: How many places that follow each other belong to the same block; after those of the
            last block come those of the first again.
    """

    table: Array
    run: int

    @property
    def blocks(self) -> int:
        """How many books there are."""
        return int(self.table.shape[0])

    @property
    def entries(self) -> int:
        """Entries of each."""
        return int(self.table.shape[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """An array in fewer bytes.

    Attributes:
        shape: Shape of the array.
        dtype: Its type.
        core: Its shape with 1 for the axes that it is the same along.
        layout: Where the units of the core are.
        where: Which units are listed. ``all``. ``bits``: a bit per unit says so. ``gaps``: bytes,
            distances between the listed units. ``patterns``: numbers of patterns.
        what: What is listed: numbers ``[listed, elements]`` of ``dtype`` or a narrower type, or
            places in the book; one place per element, or per unit where entries are units.
        book: The values that places mean. Where not all units are listed, the last entry of each
            block is zero.
        mask: Bits, gaps or numbers of patterns; None where all units are listed.
        patterns: ``[patterns, units of a group]`` bool, which units a pattern lists.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    core: tuple[int, ...]
    layout: Layout
    where: Where
    what: Array | Packed
    book: Book | None = None
    mask: Packed | None = None
    patterns: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(part.nbytes for part in self.parts)

    @property
    def parts(self) -> tuple[Array, ...]:
        """The arrays that are stored, other than some of a few bytes."""
        what = self.what.words if isinstance(self.what, Packed) else self.what
        table = () if self.book is None else (self.book.table,)
        return (what, *table) if self.mask is None else (what, *table, self.mask.words)

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the array itself."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def vectors(self) -> bool:
        """Whether entries of the book are units of several elements."""
        return self.book is not None and self.book.table.shape[2] > 1

    @property
    def kind(self) -> str:
        """What is listed, and where, such as ``books at bits``."""
        if self.book is not None:
            what = "vectors" if self.vectors else "books"
        else:
            assert isinstance(self.what, np.ndarray)
            what = str(self.what.dtype) if self.what.dtype != self.dtype else "values"
        repeated = "repeated " if self.core != self.shape else ""
        return repeated + (what if self.where == "all" else f"{what} at {self.where}")

    def __str__(self) -> str:
        """In words, such as ``bits of 1x4, book of 16 in 64 blocks``."""
        unit = f" of {self.layout.unit}" if self.layout.unit > 1 and self.where != "all" else ""
        words = [] if self.where == "all" else [self.where + unit]
        if self.book is not None:
            size = f" x {self.layout.unit}" if self.vectors else ""
            many = f" in {self.book.blocks} blocks" if self.book.blocks > 1 else ""
            entries = self.book.entries - (self.mask is not None)  # other than zero
            words.append(f"book of {entries}{size}{many}")
        elif isinstance(self.what, np.ndarray) and self.what.dtype != self.dtype:
            words.append(str(self.what.dtype))
        if self.core != self.shape:
            words.append("repeated")
        return ", ".join(words or ["plain"])


def decode(code: Code) -> Array:
    """The array that was encoded, as ONNX Runtime computes it from the nodes of a code."""
    layout, book = code.layout, code.book
    if book is None:
        assert isinstance(code.what, np.ndarray)
        listed = code.what.astype(code.dtype)
        core = layout.array(_placed(code, listed, listed.dtype.type(0)), code.core)
    else:
        assert isinstance(code.what, Packed)
        places = (
            code.what.numbers().astype(np.int64).reshape(-1, 1 if code.vectors else layout.unit)
        )
        places = _placed(code, places, np.int64(book.entries - 1))
        if not code.vectors:
            places = layout.array(places, code.core)
        blocks = np.arange(book.blocks)[:, None] * book.entries
        places = (places.reshape(-1, book.blocks, book.run) + blocks).reshape(places.shape)
        table = book.table.astype(code.dtype).reshape(-1, book.table.shape[2])
        found = table[places.reshape(-1)]
        core = layout.array(found, code.core) if code.vectors else found.reshape(code.core)
    return np.ascontiguousarray(np.broadcast_to(core, code.shape))


def _placed(code: Code, listed: Array, other: np.generic) -> Array:
    """What is listed at its units, and another number in all others."""
    if code.mask is None:
        return listed
    count, numbers = code.layout.count, code.mask.numbers()
    units = np.full((count, listed.shape[1]), other, listed.dtype)
    if code.where == "gaps":
        units[np.cumsum(numbers, dtype=np.int64) - 1] = listed
    else:
        kept = numbers if code.patterns is None else code.patterns[numbers].reshape(-1)
        units[kept[:count] != 0] = listed
    return units

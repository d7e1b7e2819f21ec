"""Books of values, and weights that are places in them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from graphopt.sharing.kmeans import nearest

__all__ = ["Books", "Shared", "padded"]

Array = np.ndarray[Any, Any]


class Books:
    """A book of values for each block of rows of a matrix.

    The place beyond all values of a book stands for zero.

    Attributes:
        table: ``[books, entries]`` float64.
        rows: Rows of the matrix; as many share each book.
    """

    def __init__(self, table: Array, rows: int) -> None:
        self.table, self.rows = table, rows
        self._wide = np.concatenate([table, np.zeros((len(table), 1))], axis=1)
        self._middles = (table[:, 1:] + table[:, :-1]) / 2
        self._book = np.arange(rows) // (rows // len(table))

    def having(self, table: Array) -> Books:
        """Books of other values."""
        return Books(table, self.rows)

    def values(self, places: Array) -> Array:
        """What is at places, ``[rows]`` or ``[rows, columns]``."""
        book = self._book if places.ndim == 1 else self._book[:, None]
        return np.asarray(self._wide[book, places])

    def column(self, column: Array, kept: Array | None = None) -> Array:
        """The place of the value nearest to each number, ``[rows]``; values are ascending.

        Args:
            column: ``[rows]`` float.
            kept: Which may be other than zero, bool ``[rows]``.
        """
        if len(self.table) == 1:
            found = np.searchsorted(self._middles[0], column)
        else:
            found = (column[:, None] > self._middles[self._book]).sum(axis=1)
        return found if kept is None else np.where(kept, found, self.table.shape[1])

    def places(self, weights: Array, kept: Array | None = None) -> Array:
        """The same for a matrix."""
        rows = self.rows // len(self.table)
        found = np.concatenate(
            [nearest(weights[i * rows : (i + 1) * rows], book) for i, book in enumerate(self.table)]
        )
        return found if kept is None else np.where(kept, found, self.table.shape[1])

    def sums(self, places: Array, numbers: Array) -> Array:
        """Sum of the numbers at the places of each value but zero, ``[books, entries]``.

        Args:
            places: ``[rows, columns]``.
            numbers: As many.
        """
        books, slots = self._wide.shape
        at = (self._book[:, None] * slots + places).reshape(-1)
        return np.bincount(at, numbers.reshape(-1), books * slots).reshape(books, slots)[:, :-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """Weights as places in books.

    Attributes:
        places: ``[rows, columns]`` integers.
        books: Where the values are.
    """

    places: Array
    books: Books

    @property
    def values(self) -> Array:
        """The weights, ``[rows, columns]`` float64."""
        return self.books.values(self.places)

    def ascending(self) -> Shared:
        """The same weights from books whose values ascend."""
        table = self.books.table
        order = np.argsort(table, axis=1, kind="stable")
        rank = Books(np.argsort(order, axis=1, kind="stable"), self.books.rows)
        wide = np.where(
            self.places < table.shape[1],
            rank.values(self.places).astype(np.int64),
            table.shape[1],
        )
        return Shared(wide, self.books.having(np.take_along_axis(table, order, axis=1)))


def padded(book: Array, entries: int) -> Array:
    """A book of that many values, the last of them several times where there are fewer."""
    return np.concatenate([book, np.full(entries - len(book), book[-1])])

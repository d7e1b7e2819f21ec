"""How coarse the values of a constant are, and what it takes then."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from graphopt.storage import index_bits

__all__ = ["Level", "interpolated"]

# Bytes that the nodes of a code take, about.
_NODES = 500
_HALF = 2


@dataclasses.dataclass(frozen=True)
class Level:
    """How coarse the values of a constant are.

    Attributes:
        entries: Values of a book; 0 for any floats of 16 bits.
        block: Rows that share a book; 0 for all.
        unit: Consecutive elements of a row that a place in the book stands for.
    """

    entries: int
    block: int = 0
    unit: int = 1

    def nbytes(self, rows: int, columns: int, listed: int | None = None) -> float:
        """Bytes that a matrix takes then, about.

        Args:
            rows: Rows of the matrix.
            columns: Columns.
            listed: How many elements are not zero where these are listed, None where all are.
        """
        mask = 0.0 if listed is None else rows * columns / 8
        count = rows * columns if listed is None else listed
        if not self.entries:
            return mask + count * _HALF + _NODES
        books = rows // self.block if self.block else 1
        places = count / self.unit * index_bits(self.entries) / 8
        return mask + places + books * self.entries * self.unit * _HALF + _NODES


def interpolated(errors: Mapping[int, float], entries: int) -> float:
    """The error of a number of values, from the errors of others.

    Its logarithm is nearly linear in that of the number; beyond the largest it falls with the
    square of the number (Panter and Dite, 1951).

    Args:
        errors: By number of values.
        entries: Number of values.
    """
    known = sorted(errors)
    logs = np.log([max(errors[each], 1e-300) for each in known])
    inside = float(np.exp(np.interp(np.log(entries), np.log(known), logs)))
    return inside * min(known[-1] / entries, 1.0) ** 2

"""How many values each constant gets, such that outputs change least for so many bytes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.storage import index_bits

__all__ = ["Level", "allocate"]

Array = np.ndarray[Any, Any]

# Bytes that the nodes of a code take, about.
_NODES = 600
_HALF = 2


@dataclasses.dataclass(frozen=True)
class Level:
    """How coarse the values of a constant are.

    Attributes:
        entries: Values of a book; 0 for any floats of 16 bits.
        block: Rows that share a book; 0 for all.
    """

    entries: int
    block: int = 0

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
        indices = count * index_bits(self.entries) / 8
        return mask + indices + books * self.entries * _HALF + _NODES


def allocate(nbytes: Sequence[Array], noises: Sequence[Array], most: float) -> list[int] | None:
    """Choose a level for each constant such that the sum of the noises is least.

    At the optimum one more byte would save the same noise everywhere (Lagrange), which levels below
    the convex hull of bytes and noise never do.

    Args:
        nbytes: For each constant the bytes at its levels, ``[levels]``.
        noises: What these levels add to the outputs, as many.
        most: Bytes that all constants may take together.

    Returns:
        The level of each constant, or None if all take more at the least.
    """
    hulls = [_hull(size, noise) for size, noise in zip(nbytes, noises, strict=True)]
    chosen = [hull[0] for hull in hulls]
    left = most - sum(float(size[at]) for size, at in zip(nbytes, chosen, strict=True))
    if left < 0:
        return None
    steps = []
    for i, (hull, size, noise) in enumerate(zip(hulls, nbytes, noises, strict=True)):
        for a, b in itertools.pairwise(hull):
            more = float(size[b] - size[a])
            steps.append(((float(noise[a]) - float(noise[b])) / more, i, b, more))
    full: set[int] = set()
    for _, i, level, more in sorted(steps, key=lambda step: -step[0]):
        if i in full or more > left:
            full.add(i)
            continue
        chosen[i], left = level, left - more
    return chosen


def _hull(size: Array, noise: Array) -> list[int]:
    """Levels on the lower convex hull, from the fewest bytes on, each of less noise than before."""
    found: list[int] = []
    for at in np.lexsort((noise, size)).tolist():
        if found and noise[at] >= noise[found[-1]]:
            continue
        while len(found) > 1:
            a, b = found[-2:]
            # Whether the step to the last one saves less per byte than that to the new one.
            before = (noise[a] - noise[b]) * (size[at] - size[b])
            if before > (noise[b] - noise[at]) * (size[b] - size[a]):
                break
            found.pop()
        found.append(at)
    return found

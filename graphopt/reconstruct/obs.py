"""Which inputs of layers can be spared: backward elimination with compensation.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for blocks of columns: leaving out the columns of a
channel costs what the others cannot make up for, which the inverse Gram matrix tells exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Reader", "eliminate"]

Array = np.ndarray[Any, Any]

# Blocks that go at a time are this part of those left: of very many, several.
_PART = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Something linear that reads blocks of columns.

    Attributes:
        gram: Moments of its inputs, positive definite, ``[columns, columns]`` float64.
        weights: Its best weights, ``[columns, outputs]`` float64.
        blocks: Its columns of each block, ``[blocks, columns of a block]``.
        scale: What its squared error is multiplied by.
    """

    gram: Array
    weights: Array
    blocks: Array
    scale: float = 1.0


def eliminate(readers: Sequence[Reader]) -> tuple[Array, Array]:
    """Order blocks of columns by what leaving them out costs all their readers, the least first.

    Args:
        readers: Who reads the blocks, one or more; all with the same number of blocks.

    Returns:
        The order in which blocks go, ``[blocks]``, and the error after each, ``[blocks]``: what the
        best weights on the blocks that are left add to the mean squared errors, scaled and summed.
    """
    states = [_State(each) for each in readers]
    alive = np.arange(len(readers[0].blocks))
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(alive):
        costs = np.sum([state.costs(alive) for state in states], axis=0)
        first = np.argsort(costs, kind="stable")[: max(1, len(alive) // _PART)]
        joint = sum(state.remove(alive[first]) for state in states)
        share = costs[first] / max(float(costs[first].sum()), 1e-300)
        for block, part in zip(alive[first], share, strict=True):
            total += joint * float(part)
            order.append(int(block))
            errors.append(total)
        alive = np.delete(alive, first)
    return np.array(order, np.int64), np.array(errors)


class _State:
    """A reader without the blocks that are gone: its others have made up for them."""

    def __init__(self, reader: Reader) -> None:
        inverse = np.linalg.inv(reader.gram)
        self._inverse = (inverse + inverse.T) / 2
        self._weights = reader.weights.copy()
        self._blocks, self._scale = reader.blocks, reader.scale

    def costs(self, alive: Array) -> Array:
        """What leaving out each block costs."""
        index = self._blocks[alive]
        own = self._inverse[index[:, :, None], index[:, None, :]]
        w = self._weights[index]
        return np.asarray(self._scale * np.einsum("nko,nko->n", w, np.linalg.solve(own, w)))

    def remove(self, blocks: Array) -> float:
        """Leave blocks out; what it costs."""
        columns = self._blocks[blocks].reshape(-1)
        own = self._inverse[np.ix_(columns, columns)]
        outputs = self._weights.shape[1]
        right = np.concatenate([self._weights[columns], self._inverse[columns]], axis=1)
        step = np.linalg.solve(own, right)
        cost = self._scale * float(np.sum(self._weights[columns] * step[:, :outputs]))
        down = self._inverse[:, columns]
        self._weights -= down @ step[:, :outputs]
        self._inverse -= down @ step[:, outputs:]
        return cost

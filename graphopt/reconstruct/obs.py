"""Which inputs of a layer can be spared: backward elimination with compensation.

Optimal Brain Surgeon (Hassibi and Stork, 1993) for blocks of columns: leaving out the columns of a
channel costs what the others cannot make up for, which the inverse Gram matrix tells exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["eliminate"]

Array = np.ndarray[Any, Any]

# Blocks that go at a time are this part of those left: of very many, several.
_PART = 64


def eliminate(gram: Array, weights: Array, blocks: Array) -> tuple[Array, Array]:
    """Order blocks of columns by what leaving them out costs, the least first.

    Args:
        gram: Moments of the inputs, positive definite, ``[columns, columns]`` float64.
        weights: The best weights, ``[columns, outputs]`` float64.
        blocks: Columns of each block, ``[blocks, columns of a block]``.

    Returns:
        The order in which blocks go, ``[blocks]``, and the error after each, ``[blocks]``: what the
        best weights on the blocks that are left add to the mean squared error.
    """
    count = len(blocks)
    inverse = np.linalg.inv(gram)
    inverse = (inverse + inverse.T) / 2
    weights = weights.copy()
    alive = np.arange(count)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(alive):
        index = blocks[alive]
        each = inverse[index[:, :, None], index[:, None, :]]
        w = weights[index]
        costs = np.einsum("nko,nko->n", w, np.linalg.solve(each, w))
        first = np.argsort(costs, kind="stable")[: max(1, len(alive) // _PART)]
        columns = index[first].reshape(-1)
        own = inverse[np.ix_(columns, columns)]
        right = np.concatenate([weights[columns], inverse[columns]], axis=1)
        step = np.linalg.solve(own, right)
        outputs = weights.shape[1]
        joint = float(np.sum(weights[columns] * step[:, :outputs]))
        down = inverse[:, columns]
        weights -= down @ step[:, :outputs]
        inverse -= down @ step[:, outputs:]
        share = costs[first] / max(float(costs[first].sum()), 1e-300)
        for block, part in zip(alive[first], share, strict=True):
            total += joint * float(part)
            order.append(int(block))
            errors.append(total)
        alive = np.delete(alive, first)
    return np.array(order, np.int64), np.array(errors)

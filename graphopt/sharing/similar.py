"""Which vectors are nearly the same."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = ["Distance", "classes"]

Array = np.ndarray[Any, Any]
Distance = Literal["euclidean", "cosine"]


def classes(vectors: Array, most: float, distance: Distance = "euclidean") -> Array:
    """Put vectors into classes, each with the first class that it is close to.

    A class is known by its first vector, so that no two of a class are further from each other than
    twice the distance.

    Args:
        vectors: ``[vectors, elements]`` float.
        most: Largest distance to the first vector of a class.
        distance: ``euclidean``: norm of the difference in units of the larger norm of the two.
            ``cosine``: 1 minus the cosine of the angle between them.

    Returns:
        The class of each vector, ``[vectors]``, counted from 0.
    """
    norms = np.linalg.norm(vectors, axis=1)
    out = np.empty(len(vectors), np.int64)
    firsts: list[int] = []
    for i, vector in enumerate(vectors):
        known = np.array(firsts, np.int64)
        if distance == "cosine":
            product = norms[known] * norms[i]
            cosine = np.divide(
                vectors[known] @ vector, product, out=np.zeros(len(known)), where=product > 0
            )
            away = 1 - cosine
        else:
            off = np.linalg.norm(vectors[known] - vector, axis=1)
            larger = np.maximum(norms[known], norms[i])
            away = np.divide(off, larger, out=np.zeros(len(known)), where=larger > 0)
        near = np.flatnonzero(away <= most)
        if len(near):
            out[i] = near[np.argmin(away[near])]
        else:
            out[i] = len(firsts)
            firsts.append(i)
    return out

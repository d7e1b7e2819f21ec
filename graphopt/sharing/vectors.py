"""Few vectors for many: k-means in a few dimensions, as in product quantization."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["nearest_vectors", "vector_centres"]

Array = np.ndarray[Any, Any]

# Rounds of Lloyd's algorithm, and the share of the error that another one has to gain.
_ROUNDS, _GAIN = 40, 1e-3
# Vectors that are compared with all centres at a time.
_PIECE = 1 << 15


def vector_centres(vectors: Array, entries: int) -> Array:
    """Vectors that stand for others with a small squared error.

    Args:
        vectors: ``[vectors, elements]`` float, one or more.
        entries: How many there may be.

    Returns:
        ``[entries, elements]`` float64, or fewer where there are not as many different ones.

    References:
        Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search" (2011); Arthur
        and Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (2007), for the beginning.
    """
    some = np.asarray(vectors, np.float64)
    distinct = np.unique(some, axis=0)
    if len(distinct) <= entries:
        return distinct
    book, before = _beginning(some, entries), np.inf
    for _ in range(_ROUNDS):
        places, error = _closest(some, book)
        counts = np.bincount(places, minlength=entries)
        sums = np.stack([np.bincount(places, each, entries) for each in some.T], axis=1)
        used = counts > 0
        book = np.where(used[:, None], sums / np.maximum(counts, 1)[:, None], book)
        if error >= before * (1 - _GAIN):
            break
        before = error
    return book


def nearest_vectors(vectors: Array, book: Array) -> Array:
    """The place of the vector in a book closest to each, ``[vectors]``."""
    return _closest(vectors, book)[0]


def _closest(vectors: Array, book: Array) -> tuple[Array, float]:
    places, error = np.empty(len(vectors), np.int64), 0.0
    lengths = np.square(book).sum(axis=1) / 2
    for at in range(0, len(vectors), _PIECE):
        part = vectors[at : at + _PIECE]
        scores = lengths - part @ book.T
        found = scores.argmin(axis=1)
        places[at : at + _PIECE] = found
        error += float(np.square(part - book[found]).sum(dtype=np.float64))
    return places, error


def _beginning(vectors: Array, entries: int) -> Array:
    """Vectors far from each other: each is drawn by its squared distance to those before."""
    rng = np.random.default_rng(0)
    book = np.empty((entries, vectors.shape[1]))
    book[0] = vectors[rng.integers(len(vectors))]
    away = np.square(vectors - book[0]).sum(axis=1)
    for i in range(1, entries):
        total = np.cumsum(away)
        book[i] = vectors[min(np.searchsorted(total, rng.random() * total[-1]), len(vectors) - 1)]
        away = np.minimum(away, np.square(vectors - book[i]).sum(axis=1))
    return book

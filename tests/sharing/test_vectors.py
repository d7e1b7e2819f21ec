from __future__ import annotations

import numpy as np

from graphopt.sharing.vectors import nearest_vectors, vector_centres


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(12, 3)) * 10
    vectors = np.repeat(middles, 50, axis=0) + 0.1 * rng.normal(size=(600, 3))
    book = vector_centres(vectors, 12)
    off = vectors - book[nearest_vectors(vectors, book)]
    assert np.square(off).mean() < 0.01 * np.square(vectors).mean()


def test_few_vectors_are_themselves() -> None:
    vectors = np.array([[1.0, 2.0], [0.0, 5.0], [1.0, 2.0]])
    book = vector_centres(vectors, 4)
    np.testing.assert_array_equal(book, [[0, 5], [1, 2]])
    np.testing.assert_array_equal(nearest_vectors(vectors, book), [1, 0, 1])


def test_more_centres_are_closer() -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 2))
    errors = []
    for entries in (4, 16, 64):
        book = vector_centres(vectors, entries)
        assert len(book) == entries
        errors.append(np.square(vectors - book[nearest_vectors(vectors, book)]).mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]

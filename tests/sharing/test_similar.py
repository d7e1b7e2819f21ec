from __future__ import annotations

import numpy as np
import pytest

from graphopt.sharing.similar import classes


def test_distances() -> None:
    vectors = np.array([[1.0, 0.0], [1.05, 0.0], [3.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(classes(vectors, 0.1), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(classes(vectors, 0.1, "cosine"), [0, 0, 0, 1, 2])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_zeros(distance: str) -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    found = classes(vectors, 0.1, distance)  # type: ignore[arg-type]
    assert found[0] != found[1]


def test_the_nearest_class_counts() -> None:
    vectors = np.array([[1.0], [1.3], [1.2]])
    np.testing.assert_array_equal(classes(vectors, 0.2), [0, 1, 1])

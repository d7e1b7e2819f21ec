from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.sharing import kmeans
from graphopt.sharing.kmeans import centres, counted, gathered, nearest

Array = np.ndarray[Any, Any]


def error(points: Array, weights: Array, book: Array) -> float:
    return float(weights @ np.square(points - book[nearest(points, book)]))


def optimal(points: Array, weights: Array, entries: int) -> float:
    """The least error there is, by dynamic programming over all points."""
    mass, total, square = (
        np.concatenate([[0.0], np.cumsum(weights * points**k)]) for k in range(3)
    )
    n = len(points)
    i, j = np.meshgrid(np.arange(n), np.arange(1, n + 1), indexing="ij")
    inside = np.maximum(mass[j] - mass[i], 1e-300)
    cost = np.where(j > i, square[j] - square[i] - (total[j] - total[i]) ** 2 / inside, np.inf)
    best = cost[0]
    for _ in range(entries - 1):
        best = (np.concatenate([[np.inf], best[:-1]])[:, None] + cost).min(axis=0)
    return float(best[-1])


@pytest.mark.parametrize("entries", [2, 3, 6, 16, 64])
@pytest.mark.parametrize("kind", ["normal", "heavy", "two", "even"])
def test_as_good_as_can_be(kind: str, entries: int) -> None:
    rng = np.random.default_rng(0)
    numbers = {
        "normal": rng.normal(size=600),
        "heavy": rng.standard_t(3, 600),
        "two": np.concatenate([rng.normal(size=300), 5 + 0.01 * rng.normal(size=300)]),
        "even": rng.random(600),
    }[kind]
    points, weights = counted(numbers, rng.random(600))
    book = centres(points, weights, entries)
    assert len(book) == entries
    assert (np.diff(book) > 0).all()
    assert error(points, weights, book) <= 1.02 * optimal(points, weights, entries)


@pytest.mark.parametrize(
    ("numbers", "entries", "book"),
    [
        ([3.0], 4, [3.0]),
        ([2.0, 2.0, -1.0], 4, [-1.0, 2.0]),
        ([0.0, 0.0, 1.0, 1.0, 1.5], 2, [0.0, 3.5 / 3]),
        ([1e8, 1e8 + 1, 1e8 + 5, 1e8 + 6], 2, [1e8 + 0.5, 1e8 + 5.5]),
    ],
)
def test_few_numbers(numbers: list[float], entries: int, book: list[float]) -> None:
    np.testing.assert_allclose(centres(*counted(np.array(numbers)), entries), book)


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
def test_the_nearest_whatever_the_type(dtype: type) -> None:
    book = np.array([-120, -100, 90, 110, 127]).astype(dtype)
    values = np.array([-128, -109, -6, 0, 99, 101, 118, 119]).astype(dtype)
    np.testing.assert_array_equal(nearest(values, book), [0, 1, 1, 2, 2, 3, 3, 4])


def test_weights_of_zero_decide_nothing() -> None:
    points, weights = counted(np.arange(6.0), np.zeros(6))
    assert len(centres(points, weights, 3)) == 3
    points, weights = counted(np.arange(6.0), np.array([0.0, 0, 1, 1, 0, 0]))
    assert error(points, weights, centres(points, weights, 2)) == 0


def test_many_numbers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    exact = centres(*counted(numbers), 16)
    monkeypatch.setattr(kmeans, "_MANY", 100)
    monkeypatch.setattr(kmeans, "_PIECE", 7_000)
    points, weights = counted(numbers)
    assert len(points) < 20_000
    assert weights.sum() == 40_000
    np.testing.assert_allclose(weights @ points, numbers.sum(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(centres(points, weights, 16), exact, atol=0.03)
    other = gathered((part, None) for part in np.array_split(numbers, 3))
    np.testing.assert_array_equal(other[1], weights)

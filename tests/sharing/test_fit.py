from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.sharing.books import Books, Shared
from graphopt.sharing.fit import fit, plain

Array = np.ndarray[Any, Any]


def problem(
    groups: int = 1, rows: int = 12, columns: int = 30, seed: int = 0
) -> tuple[Array, Array]:
    """Weights, and a metric of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, 400, 6)) @ rng.normal(size=(groups, 6, columns))
    inputs += 0.3 * rng.normal(size=inputs.shape)
    metric = inputs.transpose(0, 2, 1) @ inputs / 400
    return rng.normal(size=(groups, rows, columns)), metric


def error(found: Array, goal: Array, metric: Array) -> float:
    off = found.reshape(goal.shape) - goal
    return float(np.sum(off * (off @ metric)))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("entries", "block"), [(2, 0), (4, 0), (4, 4), (16, 0), (16, 6)])
def test_fitted_values_are_much_better(groups: int, entries: int, block: int) -> None:
    goal, metric = problem(groups)
    found = fit(goal, metric, entries, block)
    rows = groups * 12
    for at in range(0, rows, block or rows):
        assert len(np.unique(found.values[at : at + (block or rows)])) <= entries
    simple = plain(goal.reshape(rows, -1), entries, block)
    assert error(found.values, goal, metric) < 0.35 * error(simple.values, goal, metric)


def test_descent_and_finer_books_gain() -> None:
    goal, metric = problem()
    metric = metric + np.diag(np.exp(np.random.default_rng(0).normal(size=30)))
    none, some = (error(fit(goal, metric, 4, rounds=n).values, goal, metric) for n in (0, 12))
    assert some < none
    finer = error(fit(goal, metric, 4, 4).values, goal, metric)
    assert finer < some


def test_values_are_what_least_squares_gives() -> None:
    goal, metric = problem(rows=3, columns=8)
    found = fit(goal, metric, 3)
    root = np.linalg.cholesky(metric[0])
    for table in (found.books.table + 1e-3, found.books.table - 1e-3, found.books.table * 1.01):
        other = Shared(found.places, found.books.having(table))
        assert error(found.values, goal, metric) < error(other.values, goal, metric)
    units = np.stack([(found.places == k).astype(float) for k in range(3)])
    a = np.stack([(unit @ root).reshape(-1) for unit in units], axis=1)
    best = np.linalg.lstsq(a, (goal[0] @ root).reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(np.sort(best), found.books.table[0], atol=1e-5)


@pytest.mark.parametrize("block", [0, 4])
def test_zeros_stay(block: int) -> None:
    goal, metric = problem()
    kept = np.random.default_rng(1).random((12, 30)) < 0.5
    kept[4:8] = kept[0]
    start = goal * kept
    found = fit(goal, metric, 4, block, kept, start)
    assert (found.values[~kept] == 0).all()
    # The entries are for the others.
    assert len(np.unique(found.values[:4][kept[:4]])) == 4
    simple = plain(start[0], 4, block, kept=kept)
    assert (simple.values[~kept] == 0).all()
    assert error(found.values, goal, metric) < 0.6 * error(simple.values, goal, metric)


def test_nothing_but_zeros() -> None:
    goal, metric = problem()
    found = fit(goal, metric, 4, 0, np.zeros((12, 30), bool), np.zeros_like(goal))
    assert not found.values.any()


def test_inputs_that_are_always_zero() -> None:
    goal, metric = problem()
    metric[:, 3] = metric[:, :, 3] = 0
    for some in (metric, np.zeros_like(metric)):
        assert np.isfinite(fit(goal, some + 1e-8 * np.eye(30), 4).values).all()


def test_fewer_different_weights_than_entries() -> None:
    goal, metric = problem()
    goal = np.sign(goal)
    np.testing.assert_allclose(fit(goal, metric, 16).values.reshape(goal.shape), goal, atol=1e-12)


def test_books_of_blocks() -> None:
    books = Books(np.array([[-1.0, 1.0], [0.0, 10.0]]), 4)
    weights = np.array([[-3.0, 0.4], [0.0, 2.0], [4.0, 6.0], [9.0, -1.0]])
    places = books.places(weights)
    np.testing.assert_array_equal(books.values(places), [[-1, 1], [-1, 1], [0, 10], [10, 0]])
    for column in range(2):
        np.testing.assert_array_equal(books.column(weights[:, column]), places[:, column])
    sums = books.sums(places, weights)
    np.testing.assert_array_equal(sums, [[-3.0, 2.4], [3.0, 15.0]])
    turned = Shared(1 - places, books.having(books.table[:, ::-1])).ascending()
    np.testing.assert_array_equal(turned.places, places)
    np.testing.assert_array_equal(turned.books.table, books.table)

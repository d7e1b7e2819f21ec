from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.reconstruct import Reader, eliminate, obs

Array = np.ndarray[Any, Any]


def reader(
    blocks: int, size: int = 1, outputs: int = 2, fixed: int = 0, seed: int = 0, scale: float = 1.0
) -> Reader:
    """Correlated inputs in blocks, whose columns are mixed up; some columns are in no block."""
    rng = np.random.default_rng(seed)
    columns = blocks * size + fixed
    x = rng.normal(size=(4 * columns, columns)) @ rng.normal(size=(columns, columns))
    gram = x.T @ x / len(x) + 1e-3 * np.eye(columns)
    order = rng.permutation(columns)[: blocks * size].reshape(blocks, size)
    return Reader(gram, rng.normal(size=(columns, outputs)), order, scale)


def loss(each: Reader, gone: Array) -> float:
    """What is lost where blocks are gone and the best weights are used on the others."""
    dead = each.blocks[gone].reshape(-1)
    left = np.setdiff1d(np.arange(len(each.gram)), dead)
    best = np.zeros_like(each.weights)
    right = each.gram[left] @ each.weights
    best[left] = np.linalg.solve(each.gram[np.ix_(left, left)], right)
    off = best - each.weights
    return each.scale * float(np.sum(off * (each.gram @ off)))


def greedy(readers: list[Reader]) -> tuple[list[int], list[float]]:
    """Backward elimination by trying everything."""
    order: list[int] = []
    errors: list[float] = []
    left = list(range(len(readers[0].blocks)))
    while left:
        losses = [sum(loss(each, np.array([*order, b])) for each in readers) for b in left]
        best = int(np.argmin(losses))
        order.append(left.pop(best))
        errors.append(losses[best])
    return order, errors


@settings(max_examples=30)
@given(
    blocks=st.integers(1, 7),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    fixed=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_order_and_errors_are_those_of_trying_everything(
    blocks: int, sizes: list[int], fixed: int, seed: int
) -> None:
    readers = [
        reader(blocks, size, outputs=i + 1, fixed=fixed, seed=seed + i, scale=10.0**i)
        for i, size in enumerate(sizes)
    ]
    order, errors = eliminate(readers)
    expected, losses = greedy(readers)
    assert order.tolist() == expected
    np.testing.assert_allclose(errors, losses, rtol=1e-5)


def test_what_is_given_stays_as_it_is() -> None:
    each = reader(5, 2)
    gram, weights = each.gram.copy(), each.weights.copy()
    eliminate([each])
    np.testing.assert_array_equal(each.gram, gram)
    np.testing.assert_array_equal(each.weights, weights)


def test_what_others_can_make_up_for_goes_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    x[:, 2] = x[:, 0] + 0.01 * rng.normal(size=500)  # much read, and easy to replace
    gram = x.T @ x / 500 + 1e-6 * np.eye(4)
    weights = np.array([[1.0], [0.1], [5.0], [1.0]])
    order, _ = eliminate([Reader(gram, weights, np.arange(4)[:, None])])
    assert order[0] in (0, 2)


def test_dead_columns_go_first_and_cost_nothing() -> None:
    each = reader(6, 2, seed=3)
    each.weights[each.blocks[[1, 4]].reshape(-1)] = 0
    gram = np.zeros_like(each.gram)
    np.fill_diagonal(gram, 1.0)  # nothing makes up for anything
    order, errors = eliminate([Reader(gram, each.weights, each.blocks)])
    assert order[:2].tolist() == [1, 4]
    np.testing.assert_allclose(errors[:2], 0, atol=1e-12)
    total = float(np.sum(each.weights**2))
    assert errors[-1] == pytest.approx(total)


def test_weights_of_zero_cost_nothing() -> None:
    each = reader(4)
    order, errors = eliminate([Reader(each.gram, np.zeros_like(each.weights), each.blocks)])
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(errors, 0)


def test_of_many_blocks_several_go_at_a_time() -> None:
    each = reader(300, outputs=1)
    order, errors = eliminate([each])
    assert sorted(order.tolist()) == list(range(300))
    assert (np.diff(errors) >= 0).all()
    # Four of 300 at first: after each round the error is that of what is left.
    for count in (4, 8, 12, 299, 300):
        assert errors[count - 1] == pytest.approx(loss(each, order[:count]), rel=1e-6)


def test_several_at_a_time_are_almost_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    each = reader(60, 2)
    _, one = eliminate([each])
    monkeypatch.setattr(obs, "_PART", 10)
    _, many = eliminate([each])
    for count in (20, 40):
        assert many[count - 1] < 1.5 * one[count - 1]


def test_the_order_is_better_than_that_of_the_smallest_weights() -> None:
    ratios = []
    for seed in range(16):
        each = reader(12, seed=seed)
        order, _ = eliminate([each])
        small = np.argsort(np.sum(each.weights[each.blocks] ** 2, axis=(1, 2)))
        ratios.append(loss(each, order[:6]) / loss(each, small[:6]))
    assert np.median(ratios) < 0.7


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_inputs_that_repeat_each_other(noise: float) -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(400, 10)), 3, axis=1)
    x += noise * rng.normal(size=x.shape)
    gram = x.T @ x / len(x) + 1e-8 * np.eye(30)
    weights = rng.normal(size=(30, 4))
    order, errors = eliminate([Reader(gram, weights, np.arange(30)[:, None])])
    # Two of three can go; the error of the ridge is all that they cost.
    assert errors[19] < 1e-5
    assert errors[20] > 0.1
    assert len({b // 3 for b in order[20:].tolist()}) == 10


def test_all_ways_to_leave_out_two_are_close() -> None:
    each = reader(8, outputs=3, seed=5)
    _, errors = eliminate([each])
    pairs = [loss(each, np.array(pair)) for pair in itertools.combinations(range(8), 2)]
    assert min(pairs) * (1 - 1e-9) <= errors[1] <= np.quantile(pairs, 0.2)

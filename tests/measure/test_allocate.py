"""Options of many parts: what pruning does not ask for. Goals in general are in tests/pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from graphopt.measure import aim, allocate

Places = tuple[int, ...]


def left(saved: Sequence[Sequence[float]]) -> Callable[[Sequence[int]], float]:
    return lambda places: 1.0 - sum(s[i] for s, i in zip(saved, places, strict=True))


def test_options_need_not_be_in_an_order() -> None:
    noise = [np.array([0.0, 3.0, 1.0, 2.0]), np.array([0.0, 0.2])]
    saved = [[0.0, 0.1, 0.3, 0.2], [0.0, 0.1]]
    prices = [np.array(s) for s in saved]
    assert allocate(noise, prices, left(saved), 0.9) == [0, 1]
    assert allocate(noise, prices, left(saved), 0.7) == [2, 0]
    assert allocate(noise, prices, left(saved), 0.6) == [2, 1]


def test_what_is_lost_for_nothing_is_not_chosen() -> None:
    noise, saved = [np.array([0.0, 0.1, 5.0])], [[0.0, 0.5, -0.5]]
    found = allocate(noise, [np.array(saved[0])], left(saved), 0.6)
    assert found == [1]
    assert allocate(noise, [np.array(saved[0])], left(saved), 1.0) == [0]


def test_out_of_reach_is_what_leaves_least() -> None:
    noise, saved = [np.array([0.0, 1.0, 2.0])] * 2, [[0.0, 0.4, 0.3]] * 2
    assert allocate(noise, [np.array(s) for s in saved], left(saved), 0.1) == [1, 1]


def test_parts_without_options_stay() -> None:
    assert allocate([np.zeros(1)], [np.zeros(1)], lambda _: 1.0, 0.5) == [0]
    assert allocate([], [], lambda _: 1.0, 0.5) == []


# Aiming at what is measured


def ladder(steps: int) -> Callable[[float], Places]:
    """The first of some steps that should leave no more than what is wanted."""
    return lambda wanted: (int(np.ceil((1.0 - wanted) * steps - 1e-9)),)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("goal", [0.9, 0.7, 0.55])
def test_what_is_measured_comes_close(factor: float, goal: float) -> None:
    found = aim(goal, ladder(1000), lambda c: 1.0 - factor * c[0] / 1000)
    assert any(0 <= goal - share <= 0.02 * goal for share in found.values())
    assert len(found) <= 8


def test_a_choice_is_measured_once() -> None:
    calls: list[Places] = []

    def measure(choice: Places) -> float:
        calls.append(choice)
        return 1.0 - 0.4 * choice[0]

    found = aim(0.7, ladder(2), measure)
    assert len(calls) == len(set(calls)) == len(found)
    assert min(found.values()) <= 0.7


def test_where_there_is_no_choice_nothing_is_measured() -> None:
    assert aim(0.5, lambda _: None, lambda _: 1.0) == {}


def test_noise_of_the_clock_does_not_go_on_for_ever() -> None:
    rng = np.random.default_rng(0)
    found = aim(0.5, ladder(10**6), lambda _: float(rng.uniform(0.3, 1.2)))
    assert 1 <= len(found) <= 8

"""Numbers of channels: the goal is met wherever it can be, with the least noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analyses import Group
from graphopt.pruning.allocate import cheapest, uniform
from graphopt.pruning.units import Unit

Array = np.ndarray[Any, Any]
Left = Callable[[Sequence[int]], float]


def unit(noises: Sequence[float], levels: Sequence[int] | None = None) -> Unit:
    """A group of as many channels as there are noises, one level for each."""
    given = tuple(levels or range(len(noises), 0, -1))
    group = Group("u", np.arange(given[0]), None, "channels")
    return Unit(group, (), False, given, noise=dict(zip(given, noises, strict=True)))


def of(units: Sequence[Unit], prices: Sequence[Array]) -> Left:
    """What is left where savings add up."""

    def left(counts: Sequence[int]) -> float:
        each = zip(units, prices, counts, strict=True)
        return 1.0 - math.fsum(float(p[u.levels.index(n)]) for u, p, n in each)

    return left


def cost(units: Sequence[Unit], counts: Sequence[int]) -> float:
    return math.fsum(u.noise[n] for u, n in zip(units, counts, strict=True))


def steps(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(low, high), min_size=1, max_size=5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Unit], list[Array]]:
    """Units whose noise grows, and what their levels save, together less than everything."""
    grown = draw(st.lists(steps(0.001, 1.0), min_size=1, max_size=3))
    units = [unit([0.0, *np.cumsum(each).tolist()]) for each in grown]
    saved = [draw(st.lists(st.floats(0.01, 0.05), min_size=len(g), max_size=len(g))) for g in grown]
    return units, [np.array([0.0, *np.cumsum(each).tolist()]) for each in saved]


def every(units: Sequence[Unit]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(u.levels for u in units)))


@given(cases(), st.floats(0.0, 1.0))
def test_a_goal_in_reach_is_met_and_nothing_could_be_given_back(
    case: tuple[list[Unit], list[Array]], share: float
) -> None:
    units, prices = case
    left = of(units, prices)
    least = left([u.levels[-1] for u in units])
    goal = 1.0 - share * (1.0 - least)
    found = cheapest(units, prices, left, goal)
    assert left(found) <= goal
    for i, u in enumerate(units):
        for n in u.levels[: u.levels.index(found[i])]:
            if u.noise[n] < u.noise[found[i]]:
                assert left([*found[:i], n, *found[i + 1 :]]) > goal


@given(cases(), st.floats(-2.0, 2.0))
def test_at_goals_that_a_price_reaches_no_other_choice_has_less_noise(
    case: tuple[list[Unit], list[Array]], exponent: float
) -> None:
    units, prices = case
    left, price = of(units, prices), 10.0**exponent
    goal = left(min(every(units), key=lambda c: cost(units, c) - price * (1.0 - left(c))))
    found = cheapest(units, prices, left, goal)
    best = min(cost(units, c) for c in every(units) if left(c) <= goal)
    assert cost(units, found) <= best * (1 + 1e-6) + 1e-12
    assert cost(units, found) <= cost(units, uniform(units, left, goal)) * (1 + 1e-6) + 1e-12


@given(cases(), st.floats(0.05, 0.95))
def test_out_of_reach_everything_is_at_its_least(
    case: tuple[list[Unit], list[Array]], part: float
) -> None:
    units, prices = case
    left = of(units, prices)
    least = [u.levels[-1] for u in units]
    assert cheapest(units, prices, left, left(least) * part) == least
    assert uniform(units, left, left(least) * part) == least


@given(steps(0.001, 1.0), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_stricter_goal_leaves_no_more(noises: list[float], one: float, other: float) -> None:
    units = [unit([0.0, *np.cumsum(noises).tolist()])]
    prices = [np.linspace(0.0, 0.9, len(noises) + 1)]
    left = of(units, prices)
    (strict,), (loose,) = (cheapest(units, prices, left, g) for g in sorted((one, other)))
    assert strict <= loose


def test_channels_go_where_they_are_missed_least() -> None:
    units = [unit([0, 0.5, 1.0, 2.0]), unit([0, 0.001, 0.002, 0.003])]
    prices = [np.array([0, 0.1, 0.2, 0.3])] * 2
    left = of(units, prices)
    assert cheapest(units, prices, left, 0.7) == [4, 1]
    assert uniform(units, left, 0.7) == [2, 2]


def test_equal_units_lose_the_same_but_for_what_is_given_back() -> None:
    units = [unit([0, 0.1, 0.3, 0.6]) for _ in range(3)]
    prices = [np.array([0, 0.1, 0.2, 0.3])] * 3
    assert cheapest(units, prices, of(units, prices), 0.7) == [3, 3, 3]
    assert sorted(cheapest(units, prices, of(units, prices), 0.8)) == [3, 3, 4]


@pytest.mark.parametrize("odd", [math.nan, math.inf, 1e300])
def test_noise_that_is_no_number_is_avoided_where_it_can_be(odd: float) -> None:
    units = [unit([0, odd, odd]), unit([0, 0.5, 0.9])]
    prices = [np.array([0, 0.2, 0.4])] * 2
    left = of(units, prices)
    assert cheapest(units, prices, left, 0.6) == [3, 1]
    assert left(cheapest(units, prices, left, 0.3)) <= 0.3 + 1e-9
    assert cheapest(units, prices, left, 0.1) == [1, 1]


def test_noise_falls_no_more_once_it_was_there() -> None:
    # What was measured with fewer channels may be less by chance; less would be no reason to go on.
    units = [unit([0, 0.5, 0.1, 0.6])]
    prices = [np.array([0, 0.1, 0.11, 0.3])]
    assert cheapest(units, prices, of(units, prices), 0.9) == [3]


def test_prices_that_are_not_of_the_goal_alone() -> None:
    """Of a level that is smaller and slower the price may be lower; the goal is still in reach."""
    units = [unit([0, 0.1, 0.2]), unit([0, 0.1, 0.2])]
    sizes = [np.array([0, 0.1, 0.2])] * 2
    prices = [np.array([0, 0.2, 0.1])] * 2
    left = of(units, sizes)
    assert left(cheapest(units, prices, left, 0.65)) <= 0.65
    assert left(cheapest(units, prices, left, 0.75)) <= 0.75


def test_a_block_that_goes_whole_is_a_level_like_others_but_not_for_uniform() -> None:
    units = [unit([0, 0.5, 0.6], levels=[4, 2, 0])]
    prices = [np.array([0, 0.2, 0.5])]
    left = of(units, prices)
    assert cheapest(units, prices, left, 0.6) == [0]
    assert uniform(units, left, 0.6) == [2]


@given(cases(), st.floats(0.3, 1.0))
def test_uniform_meets_goals_with_as_much_as_it_can(
    case: tuple[list[Unit], list[Array]], goal: float
) -> None:
    units, prices = case
    left = of(units, prices)
    found = uniform(units, left, goal)
    least = [u.levels[-1] for u in units]
    assert left(found) <= goal or found == least
    shares = [n / u.size for n, u in zip(found, units, strict=True)]
    spread = max(1 / (2 * u.size) for u in units)
    assert max(shares) - min(shares) <= 2 * spread + 1.0 / min(u.size for u in units)

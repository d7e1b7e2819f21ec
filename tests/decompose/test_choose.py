"""A form for each layer, for goals in size and in time: what is measured decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.decompose.choose import Chooser
from graphopt.decompose.options import Options
from graphopt.measure import Goal, What
from graphopt.pruning.sizes import MEASURES

Array = np.ndarray[Any, Any]
Measure = Callable[[Sequence[int]], float]

OPTIONS = 10


@dataclasses.dataclass
class Choice:
    """Something of size 1 with options that save more and more of it, and are louder and louder."""

    noise: Array
    saved: dict[str, Array]
    faster: Array

    @property
    def forms(self) -> tuple[None, ...]:
        return (None,) * len(self.noise)

    def __len__(self) -> int:
        return len(self.noise)


def choice(loud: float, faster: float, saved: float = 0.9) -> Choice:
    steps = np.arange(OPTIONS) / (OPTIONS - 1)
    return Choice(loud * steps**2, dict.fromkeys(MEASURES, saved * steps), faster * steps)


def chooser(
    given: Sequence[Choice], what: What, left: float, measure: Measure | None, **options: Any
) -> Chooser:
    asked = Options(Goal(what, left), ["input"], **options)
    total = 1.0 if what == "latency" else float(len(given))
    items: Any = given
    return Chooser(items, total, 0.0, asked, measure)


def clock(given: Sequence[Choice], factor: float = 1.0) -> Measure:
    """Choices save together this part of what they save one by one."""

    def measure(places: Sequence[int]) -> float:
        return 1 - factor * sum(c.faster[i] for c, i in zip(given, places, strict=True))

    return measure


def loud(given: Sequence[Choice], places: Sequence[int]) -> float:
    return float(sum(c.noise[i] for c, i in zip(given, places, strict=True)))


@pytest.mark.parametrize("what", MEASURES)
@pytest.mark.parametrize("left", [0.89, 0.59, 0.29])
def test_sizes_are_met_with_the_least_that_does(what: What, left: float) -> None:
    given = [choice(1.0, 0.0), choice(1.0, 0.0), choice(3.0, 0.0)]
    found = chooser(given, what, left, None)
    places = found.choose()
    assert left - 0.1 / 3 < found.share(places) <= left + 1e-9
    assert not found.missed
    assert places[2] <= max(places[:2]), "the loud one gives less"
    for i, place in enumerate(places):
        for less in range(place):
            fewer = [*places[:i], less, *places[i + 1 :]]
            assert found.share(fewer) > left, "nothing could be given back"


@pytest.mark.parametrize("what", [*MEASURES, "latency"])
def test_a_goal_out_of_reach_is_missed_by_the_least(what: What) -> None:
    given = [choice(1.0, 0.3), choice(1.0, 0.3)]
    found = chooser(given, what, 0.05, clock(given))
    assert found.choose() == [OPTIONS - 1] * 2
    assert found.missed


def test_what_saves_nothing_stays() -> None:
    given = [choice(1.0, 0.0), choice(0.001, 0.0, saved=0.0)]
    assert chooser(given, "macs", 0.8, None).choose()[1] == 0


def test_options_whose_noise_is_no_number_are_left_alone() -> None:
    given = [choice(1.0, 0.0), choice(1.0, 0.0)]
    given[1].noise[1:] = np.nan
    assert chooser(given, "macs", 0.6, None).choose()[1] == 0
    given[1].noise[1:] = np.inf
    assert chooser(given, "macs", 0.6, None).choose()[1] == 0


@pytest.mark.parametrize("factor", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("goal", [0.8, 0.6])
def test_a_latency_is_corrected_until_it_is_met(factor: float, goal: float) -> None:
    given = [choice(1.0, 0.35), choice(1.0, 0.35), choice(2.0, 0.1)]
    measure = clock(given, factor)
    found = chooser(given, "latency", goal, measure)
    places = found.choose()
    step = factor * 0.35 / (OPTIONS - 1)
    assert goal - step <= measure(places) <= goal * 1.02
    assert not found.missed


def test_work_is_saved_in_time_too() -> None:
    # The quiet one saves no time; of the loud one more has to go.
    given = [choice(0.1, 0.0), choice(1.0, 0.8)]
    measure = clock(given)
    without = chooser(given, "macs", 0.6, None).choose()
    assert measure(without) > 0.8
    found = chooser(given, "macs", 0.6, measure, payoff=0.8)
    places = found.choose()
    assert measure(places) <= 1 - 0.8 * 0.4
    assert found.share(places) <= 0.6 + 1e-9
    assert loud(given, places) > loud(given, without)
    assert not found.missed


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_both_are_met_where_each_wants_something_else(factor: float) -> None:
    """Some save work alone and some time alone: no one price of the two finds them."""
    given = [choice(1.0 + 0.1 * i, 0.0) for i in range(5)]
    given += [choice(1.0 + 0.1 * i, 0.15, saved=0.02) for i in range(5)]
    measure = clock(given, factor)
    found = chooser(given, "macs", 0.7, measure, payoff=0.9)
    places = found.choose()
    assert found.share(places) <= 0.7 + 1e-9
    assert measure(places) <= 1 - 0.9 * 0.3
    assert not found.missed
    assert any(places[:5])
    assert any(places[5:])


def test_where_time_is_not_to_be_had_the_work_alone_counts() -> None:
    given = [choice(1.0, 0.0), choice(1.0, 0.0)]
    calls = []

    def measure(places: Sequence[int]) -> float:
        calls.append(places)
        return 1.0

    found = chooser(given, "macs", 0.6, measure, payoff=0.5)
    assert found.choose() == chooser(given, "macs", 0.6, None).choose()
    assert not found.missed
    assert len(calls) <= 8


def test_forms_that_are_slower_are_not_chosen_for_a_latency() -> None:
    given = [choice(0.001, -0.3), choice(1.0, 0.5)]
    measure = clock(given)
    places = chooser(given, "latency", 0.7, measure).choose()
    assert places[0] == 0
    assert measure(places) <= 0.7 * 1.02


@pytest.mark.parametrize("what", ["params", "bytes"])
def test_other_sizes_are_not_timed(what: What) -> None:
    given = [choice(0.1, 0.0), choice(1.0, 0.8)]

    def measure(_places: Sequence[int]) -> float:
        raise AssertionError

    found = chooser(given, what, 0.6, measure)
    assert found.share(found.choose()) <= 0.6 + 1e-9


def test_shares() -> None:
    given = [choice(1.0, 0.4), choice(1.0, 0.4)]
    last = OPTIONS - 1
    assert chooser(given, "macs", 0.5, None).share([0, 0]) == 1.0
    assert chooser(given, "macs", 0.5, None).share([0, last]) == pytest.approx(0.55)
    assert chooser(given, "latency", 0.5, None).share([last, 0]) == pytest.approx(0.6)

"""Numbers of channels for goals in size and in time: what is measured decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from graphopt.analyses import Group
from graphopt.measure import Goal, What
from graphopt.pruning.choose import Chooser
from graphopt.pruning.criteria import Scores
from graphopt.pruning.options import Options
from graphopt.pruning.sizes import MEASURES, Sizes
from graphopt.pruning.units import Unit

LEVELS = (20, 18, 16, 14, 12, 10, 8, 6, 4, 2)


def unit(name: str, loud: float, saved: float) -> Unit:
    """Twenty channels: the noise without them grows, each saves a part of the time."""
    noise = {n: loud * (20 - n) ** 2 / 400 for n in LEVELS}
    group = Group(name, np.arange(20), None, "channels")
    times = {n: saved * (20 - n) / 20 for n in LEVELS}
    return Unit(group, (), False, LEVELS, noise=noise, saved=times)


class Sums:
    """Sizes that are the numbers of channels, all groups alike."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.channels = SimpleNamespace(groups=tuple(u.group for u in units))
        self.full = np.array([u.size for u in units], np.float64)
        self.before = dict.fromkeys(MEASURES, self.full.sum())

    def at(self, _what: str, alive: Any) -> float:
        return float(np.sum(alive))


def chooser(
    units: Sequence[Unit],
    what: What,
    left: float,
    measure: Callable[[Sequence[int]], float] | None,
    **options: Any,
) -> Chooser:
    asked = Options(Goal(what, left), **options)
    sizes, scores = cast(Sizes, Sums(units)), cast(Scores, None)
    return Chooser(units, sizes, asked, scores, measure)


def real(units: Sequence[Unit], factor: float) -> Callable[[Sequence[int]], float]:
    """A clock: units together save this part of what they save one by one."""

    def measure(left: Sequence[int]) -> float:
        return 1 - factor * sum(u.saved[n] for u, n in zip(units, left, strict=True))

    return measure


@pytest.mark.parametrize("factor", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("goal", [0.8, 0.6])
def test_a_latency_is_corrected_until_it_is_met(factor: float, goal: float) -> None:
    units = [unit("a", 1.0, 0.35), unit("b", 1.0, 0.35)]
    measure = real(units, factor)
    left = chooser(units, "latency", goal, measure).choose()
    step = factor * 0.035  # of one level
    assert goal - step <= measure(left) <= goal * 1.02


def test_a_latency_out_of_reach_is_the_least() -> None:
    units = [unit("a", 1.0, 0.1), unit("b", 1.0, 0.1)]
    left = chooser(units, "latency", 0.5, real(units, 1.0)).choose()
    assert left == [2, 2]


def test_work_is_saved_in_time_too() -> None:
    # The quiet group saves no time; of the loud one much has to go.
    units = [unit("quiet", 0.1, 0.0), unit("loud", 1.0, 0.8)]
    measure = real(units, 1.0)
    without = chooser(units, "macs", 0.6, None).choose()
    assert sum(without) <= 24
    assert measure(without) > 0.8
    left = chooser(units, "macs", 0.6, measure).choose()
    assert 0.9 * 24 <= sum(left) <= 24
    assert measure(left) <= 1 - 0.67 * 0.4
    all_of_it = chooser(units, "macs", 0.6, measure, payoff=0.9).choose()
    assert measure(all_of_it) <= 1 - 0.9 * 0.4


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_what_is_measured_decides_not_what_was_expected(factor: float) -> None:
    units = [unit(f"quiet{i}", 0.5 + 0.05 * i, 0.04) for i in range(5)]
    units += [unit(f"loud{i}", 1.0 + 0.1 * i, 0.12) for i in range(5)]
    measure = real(units, factor)
    goal = 1 - 0.67 * 0.4
    left = chooser(units, "macs", 0.6, measure).choose()
    assert measure(left) <= goal
    assert 0.6 - 0.15 * 0.4 <= sum(left) / 200 <= 0.6


@pytest.mark.parametrize("saved", [0.0, 0.2])
def test_where_time_would_take_much_more_the_work_alone_counts(saved: float) -> None:
    units = [unit("a", 1.0, saved), unit("b", 1.0, saved)]
    calls = []

    def measure(left: Sequence[int]) -> float:
        calls.append(list(left))
        return real(units, 1.0)(left)

    left = chooser(units, "macs", 0.6, measure).choose()
    assert left == [12, 12]
    assert len(calls) <= 8


def test_other_sizes_are_not_timed() -> None:
    units = [unit("quiet", 0.1, 0.0), unit("loud", 1.0, 0.8)]

    def measure(_left: Sequence[int]) -> float:
        raise AssertionError

    assert sum(chooser(units, "bytes", 0.6, measure).choose()) <= 24
    assert chooser(units, "macs", 0.6, measure, ranking="local").choose() == [12, 12]


def test_shares() -> None:
    units = [unit("a", 1.0, 0.4), unit("b", 1.0, 0.4)]
    one = chooser(units, "macs", 0.5, None)
    assert one.share([20, 10]) == 0.75
    assert one.size([20, 10], "macs") == 30
    assert chooser(units, "channels", 0.5, None).share([10, 10]) == 0.5
    assert chooser(units, "latency", 0.5, None).share([20, 10]) == pytest.approx(0.8)

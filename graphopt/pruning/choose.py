"""Choosing how many channels of each group are left, so that what was asked for is really met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.pruning.allocate import allocate, uniform
from graphopt.pruning.criteria import Criterion, Scores, normalized
from graphopt.pruning.options import Options
from graphopt.pruning.sizes import Sizes
from graphopt.pruning.units import Unit

__all__ = ["Chooser"]

Array = np.ndarray[Any, Any]

# A measured latency within this of the goal is the goal.
_CLOSE = 0.02
_ROUNDS = 8
# Where both size and time are to be saved: what time counts in the price of a channel, and how much
# more than asked for may go for its sake.
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_TIGHTER = (1.0, 0.95, 0.9)


class Chooser:
    """Numbers of channels for a goal in size, in time, or in both."""

    def __init__(
        self,
        units: Sequence[Unit],
        sizes: Sizes,
        options: Options,
        scores: Scores,
        measure: Callable[[Sequence[int]], float] | None,
    ) -> None:
        """Take what is known of the model.

        Args:
            units: The groups; with ``measure``, what they save of the time is known.
            sizes: Sizes of the model.
            options: What is asked for.
            scores: Criteria, for the global ranking.
            measure: Latency of the model with so many channels of each, in units of the original's;
                None where it cannot be measured.
        """
        self.units, self.sizes, self.options, self.scores = units, sizes, options, scores
        self.measure = measure
        order = {id(g): i for i, g in enumerate(sizes.channels.groups)}
        self._places = [order[id(u.group)] for u in units]
        goal = options.goal
        self._time: float | None = None
        if goal.what == "latency":
            self._time = goal.left
        elif measure is not None and goal.what == "macs" and options.ranking == "measured":
            self._time = 1.0 - options.payoff * (1.0 - goal.left)
        # What is saved together in units of what units save one by one.
        self._gain = 1.0

    def choose(self) -> list[int]:
        """Channels of each unit; where the goal is out of reach, the nearest to it."""
        if self._time is None or self.measure is None:
            return self._ranked()
        if self.options.goal.what == "latency":
            return self._timed(self._time, self.measure)
        return self._paying(self._time, self.measure)

    def _timed(self, goal: float, measure: Callable[[Sequence[int]], float]) -> list[int]:
        """Correct what units save together until what is measured is the goal."""
        seen: dict[tuple[int, ...], float] = {}
        for _ in range(_ROUNDS):
            left = self._ranked()
            if self.asked(left) > 1.0 + 1e-9:
                break
            key = tuple(left)
            again = key in seen
            if not again:
                seen[key] = measure(left)
            ratio, expected = seen[key], 1.0 - self._expected(left)
            if again or abs(ratio / goal - 1) <= _CLOSE or expected <= 0:
                break
            self._gain = max((1.0 - ratio) / expected, 0.05)
        met = [key for key, ratio in seen.items() if ratio <= goal * (1 + _CLOSE)]
        if met:
            slowest = max(met, key=seen.__getitem__)
            return list(slowest)
        fastest = min(seen, key=seen.__getitem__, default=tuple(self._ranked()))
        return list(fastest)

    def _paying(self, goal: float, measure: Callable[[Sequence[int]], float]) -> list[int]:
        """The least noise that saves the size asked for, and time in proportion.

        Where no choice saves that much time, the size was asked for and the time was not.
        """
        both = self._both(goal, measure)
        if both is not None:
            return both
        found: dict[tuple[int, ...], float] = {}
        for weight in _WEIGHTS:
            for tighter in _TIGHTER:
                left = tuple(self._ranked(weight, tighter))
                if self.share(left) <= self.options.goal.left + 1e-9:
                    found.setdefault(left, self._noise(left))
        ranked = sorted(found, key=found.__getitem__)
        for left in ranked:
            if measure(left) <= goal:
                return list(left)
        return list(ranked[0]) if ranked else self._ranked(0.0)

    def _both(self, goal: float, measure: Callable[[Sequence[int]], float]) -> list[int] | None:
        """Channels of each unit where time decides, as long as little more goes than asked for."""
        left_size = self.options.goal.left
        for _ in range(_ROUNDS):

            def worse(left: Sequence[int]) -> float:
                return max(self.share(left) / left_size, self._time_left(left) / goal)

            prices = [self._prices(i, 1.0) for i in range(len(self.units))]
            left = allocate(self.units, prices, worse, 1.0)
            expected = 1.0 - self._expected(left)
            if (
                worse(left) > 1 + 1e-9
                or self.share(left) < _TIGHTER[-1] * left_size
                or not expected
            ):
                return None
            ratio = measure(left)
            if ratio <= goal * (1 + _CLOSE):
                return left
            self._gain = max((1.0 - ratio) / expected, 0.05)
        return None

    def _noise(self, left: Sequence[int]) -> float:
        return math.fsum(u.noise.get(n, 0.0) ** 2 for u, n in zip(self.units, left, strict=True))

    def size(self, left: Sequence[int], what: str) -> float:
        """A size of the model with so many channels of each unit."""
        alive = self.sizes.full.copy()
        alive[self._places] = left
        name = "parameters" if what == "params" else what
        return self.sizes.at(name, alive)  # type: ignore[arg-type]

    def share(self, left: Sequence[int]) -> float:
        """The share of what the goal is about that is left."""
        what, full = self.options.goal.what, [u.size for u in self.units]
        if what == "latency":
            return self._expected(left)
        if what == "channels":
            return sum(left) / sum(full)
        return self.size(left, what) / self.size(full, what)

    def asked(self, left: Sequence[int]) -> float:
        """What is left in units of what may be."""
        goal = self.options.goal
        if goal.what != "latency":
            return self.share(left) / goal.left
        return self._time_left(left) / goal.left

    def _time_left(self, left: Sequence[int]) -> float:
        return 1.0 - self._gain * (1.0 - self._expected(left))

    def _expected(self, left: Sequence[int]) -> float:
        saved = [u.saved[n] for u, n in zip(self.units, left, strict=True)]
        return max(0.0, 1.0 - math.fsum(saved))

    def _ranked(self, weight: float = 1.0, tighter: float = 1.0) -> list[int]:
        """Levels that leave no more than may be left.

        Args:
            weight: What time counts in a price, against size.
            tighter: Factor of what may be left.
        """
        if self.options.ranking == "local":
            return uniform(self.units, self.asked, tighter)
        if self.options.ranking == "global":
            return self._by_score()
        prices = [self._prices(i, weight) for i in range(len(self.units))]
        return allocate(self.units, prices, self.asked, tighter)

    def _prices(self, index: int, weight: float) -> Array:
        """What each level of a unit saves, of size and time, in units of what has to be saved."""
        unit, goal = self.units[index], self.options.goal
        full = [u.size for u in self.units]
        found = np.zeros(len(unit.levels))
        if goal.what != "latency":
            levels = ([*full[:index], n, *full[index + 1 :]] for n in unit.levels)
            size = 1.0 - np.array([self.share(each) for each in levels])
            found += (1.0 if self._time is None else 1.0 - weight) * size / (1.0 - goal.left)
        if self._time is not None:
            saved = np.array([unit.saved[n] for n in unit.levels])
            found += weight * saved / (1.0 - self._time)
        return found

    def _by_score(self) -> list[int]:
        """Remove the channels of the lowest scores of all groups."""
        criterion = self.options.criterion
        name: Criterion = "l2" if criterion == "obs" else criterion
        ranked = [np.sort(normalized(self.scores.of(u.group, name))) for u in self.units]
        found = [u.size for u in self.units]
        for threshold in np.sort(np.concatenate(ranked)):
            if self.asked(found) <= 1.0:
                break
            above = [int((r > threshold).sum()) for r in ranked]
            found = [
                min((n for n in u.levels if n and n >= count), default=u.size)
                for u, count in zip(self.units, above, strict=True)
            ]
        return found

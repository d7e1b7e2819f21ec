"""Choosing how many channels of each group are left, so that what was asked for is really met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.measure import aim
from graphopt.pruning.allocate import cheapest, uniform
from graphopt.pruning.criteria import Criterion, Scores, normalized
from graphopt.pruning.options import Options
from graphopt.pruning.sizes import Measure, Sizes
from graphopt.pruning.units import Unit

__all__ = ["Chooser"]

Array = np.ndarray[Any, Any]

# A latency within this of the goal is the goal.
_CLOSE = 0.02
# How much more than asked for may go for the sake of time, as a share of what was asked for.
_BEYOND = 0.15


class Chooser:
    """Numbers of channels for a goal in size, in time, or in both.

    Attributes:
        missed: Whether what was chosen is all that can go, and not enough.
    """

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
        self._size = None if goal.what == "latency" else goal.left
        self._time: float | None = None
        if goal.what == "latency":
            self._time = goal.left
        elif measure is not None and goal.what == "macs" and options.ranking == "measured":
            self._time = 1.0 - options.payoff * (1.0 - goal.left)
        self._needs_time = self._time is not None
        self.missed = False
        # Units save less together than one by one; so less than the goal is wanted of their sum.
        self._wanted = self._time or 1.0

    def choose(self) -> list[int]:
        """Channels of each unit; where the goal is out of reach, the nearest to it."""
        found = None
        if self._time is not None and self.measure is not None:
            found = self._corrected(self._time, self.measure)
            # Time in proportion may not be to be had. It still has its part in the prices.
            self._needs_time = found is not None
        if found is None:
            found = self._ranked()
            self.missed = self.asked(found) > 1.0 + 1e-9
        return found

    def _corrected(
        self, goal: float, measure: Callable[[Sequence[int]], float]
    ) -> list[int] | None:
        """Ask for more or less until what is measured is the goal in time.

        Returns:
            None where that takes much more of the size than was asked for.
        """

        def choice(wanted: float) -> tuple[int, ...] | None:
            self._wanted = wanted
            left = tuple(self._ranked())
            return left if self.asked(left) <= 1.0 + 1e-9 else None

        seen = aim(goal, choice, measure)
        slack = 1 + _CLOSE if self._size is None else 1.0
        met = [key for key, ratio in seen.items() if ratio <= goal * slack]
        if met:
            slowest = max(met, key=seen.__getitem__)
            size = self._size
            if size is not None and size - self.share(slowest) > _BEYOND * (1.0 - size):
                return None
            return list(slowest)
        if self._size is not None:
            return None
        self.missed = True
        fastest = min(seen, key=seen.__getitem__, default=tuple(self._ranked()))
        return list(fastest)

    def size(self, left: Sequence[int], what: Measure) -> float:
        """A size of the model with so many channels of each unit."""
        alive = self.sizes.full.copy()
        alive[self._places] = left
        return self.sizes.at(what, alive)

    def share(self, left: Sequence[int]) -> float:
        """The share of what the goal is about that is left."""
        what = self.options.goal.what
        if what == "latency":
            return self._expected(left)
        if what == "channels":
            return sum(left) / sum(u.size for u in self.units)
        return self.size(left, what) / self.sizes.before[what]

    def asked(self, left: Sequence[int]) -> float:
        """What is left in units of what may be, of size and time the worse."""
        found = 0.0 if self._size is None else self.share(left) / self._size
        if self._time is not None and self._needs_time:
            found = max(found, self._expected(left) / self._wanted)
        return found

    def _expected(self, left: Sequence[int]) -> float:
        saved = [u.saved[n] for u, n in zip(self.units, left, strict=True)]
        return max(0.0, 1.0 - math.fsum(saved))

    def _ranked(self) -> list[int]:
        if self.options.ranking == "local":
            return uniform(self.units, self.asked, 1.0)
        if self.options.ranking == "global":
            return self._by_score()
        prices = [self._prices(i) for i in range(len(self.units))]
        return cheapest(self.units, prices, self.asked, 1.0)

    def _prices(self, index: int) -> Array:
        """What each level of a unit saves, of size and time, in units of what has to be saved."""
        unit = self.units[index]
        full = [u.size for u in self.units]
        found = np.zeros(len(unit.levels))
        if self._size is not None:
            levels = ([*full[:index], n, *full[index + 1 :]] for n in unit.levels)
            found += (1.0 - np.array([self.share(each) for each in levels])) / (1.0 - self._size)
        if self._time is not None:
            saved = np.array([unit.saved[n] for n in unit.levels])
            found += saved / (1.0 - self._time)
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

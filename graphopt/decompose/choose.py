"""Choosing a form for each layer so that what was asked for is really met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.decompose.items import Item
from graphopt.decompose.options import Options
from graphopt.measure import aim, allocate
from graphopt.pruning.sizes import MEASURES

__all__ = ["Chooser"]

Array = np.ndarray[Any, Any]

# A latency within this of the goal is the goal.
_CLOSE = 0.02
# What time may be worth where both size and time have to be saved; size is worth the rest.
_WORTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


class Chooser:
    """Forms for a goal in size, in time, or in both.

    Attributes:
        missed: Whether what was chosen is the most that forms save, and not enough.
    """

    def __init__(
        self,
        items: Sequence[Item],
        total: float,
        added: float,
        options: Options,
        measure: Callable[[Sequence[int]], float] | None,
    ) -> None:
        """Take what is known of the model.

        Args:
            items: What is chosen by itself.
            total: Size of the original, in what the goal is about.
            added: What fitting adds to that: biases.
            options: What is asked for.
            measure: Latency of the model with some options, in units of the original's; None where
                it cannot be measured, or is of no interest.
        """
        self.items, self.measure = items, measure
        self.total, self.added = total, added
        goal = options.goal
        self._what = goal.what
        self._size = None if goal.what == "latency" else goal.left
        self._time: float | None = None
        if goal.what == "latency":
            self._time = goal.left
        elif measure is not None and goal.what == "macs":
            self._time = 1.0 - options.payoff * (1.0 - goal.left)
        self._wanted = self._time
        self.missed = False

    def choose(self) -> list[int]:
        """The place of an option for each item; the nearest where the goal is out of reach."""
        found = None
        if self._time is not None and self.measure is not None:
            found = self._measured(self._time, self.measure)
        if found is None:
            self._wanted = None  # time in proportion is not to be had
            found = self._ranked()
            self.missed = self._asked(found) > 1.0 + 1e-9
        return found

    def _measured(self, goal: float, measure: Callable[[Sequence[int]], float]) -> list[int] | None:
        def choice(wanted: float) -> tuple[int, ...] | None:
            self._wanted = wanted
            places = tuple(self._ranked())
            return places if self._asked(places) <= 1.0 + 1e-9 else None

        seen = aim(goal, choice, measure)
        slack = 1 + _CLOSE if self._size is None else 1.0
        met = {key: share for key, share in seen.items() if share <= goal * slack}
        if met:
            return list(max((share, key) for key, share in met.items())[1])
        if self._size is not None:
            return None
        self.missed = True
        return list(min((share, key) for key, share in seen.items())[1]) if seen else self._ranked()

    def share(self, places: Sequence[int]) -> float:
        """The share of the goal's size or time that is left, items taken one by one."""
        if self._what not in MEASURES:
            return self._expected(places)
        saved = (p.saved[self._what][i] for p, i in zip(self.items, places, strict=True))
        return 1.0 + (self.added - math.fsum(saved)) / self.total

    def _expected(self, places: Sequence[int]) -> float:
        return 1.0 - math.fsum(p.faster[i] for p, i in zip(self.items, places, strict=True))

    def _asked(self, places: Sequence[int]) -> float:
        """What is left in units of what may be, of size and time the worse."""
        found = 0.0 if self._size is None else self.share(places) / self._size
        if self._wanted is not None:
            found = max(found, self._expected(places) / self._wanted)
        return found

    def _ranked(self) -> list[int]:
        """The least noise for what is asked for, whatever size and time are worth to each other."""
        noise = [item.noise for item in self.items]
        both = self._size is not None and self._wanted is not None
        found: list[tuple[bool, float, list[int]]] = []
        for worth in _WORTHS if both else (0.5,):
            prices = [self._prices(item, worth) for item in self.items]
            places = allocate(noise, prices, self._asked, 1.0)
            total = math.fsum(n[i] for n, i in zip(noise, places, strict=True))
            found.append((self._asked(places) > 1.0 + 1e-9, total, places))
        return min(found)[2]

    def _prices(self, item: Item, worth: float) -> Array:
        """What each option saves, of size and time, in units of what has to be saved.

        Args:
            item: What is chosen.
            worth: What time is worth, in (0, 1); size is worth the rest.
        """
        found = np.zeros(len(item))
        if self._size is not None and self._what in MEASURES:
            found += (1.0 - worth) * item.saved[self._what] / (self.total * (1.0 - self._size))
        if self._wanted is not None and self._time is not None:
            found += worth * item.faster / (1.0 - self._time)
        return found

"""How many channels each group keeps: the least noise for what has to be saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.measure import allocate
from graphopt.pruning.units import Unit

__all__ = ["cheapest", "uniform"]

Array = np.ndarray[Any, Any]
Left = Callable[[Sequence[int]], float]

# Noise above says only that nothing is left of the outputs.
_MOST = 1e9


def cheapest(units: Sequence[Unit], prices: Sequence[Array], left: Left, goal: float) -> list[int]:
    """Choose a level of every unit; see :func:`~graphopt.measure.allocate`.

    Args:
        units: The units, with noise of their levels.
        prices: Shares that the levels save, ``[levels]`` of each unit.
        left: What share is left where units have so many channels.
        goal: The share that may be left.

    Returns:
        Channels of each unit; all at their least where the goal is out of reach.
    """

    def channels(places: Sequence[int]) -> list[int]:
        return [unit.levels[place] for unit, place in zip(units, places, strict=True)]

    noise = [_curve(unit) for unit in units]
    return channels(allocate(noise, prices, lambda places: left(channels(places)), goal))


def uniform(units: Sequence[Unit], left: Left, goal: float) -> list[int]:
    """The same share of every unit, as large as the goal allows; the least where none does."""
    found: list[int] = []
    for share in np.linspace(1, 0, 201):
        found = [_nearest(unit, share * unit.size) for unit in units]
        if left(found) <= goal:
            break
    return found


def _nearest(unit: Unit, wanted: float) -> int:
    return min((n for n in unit.levels if n), key=lambda n: abs(n - wanted))


def _curve(unit: Unit) -> Array:
    """Noise of the levels, none less than that of one with more channels."""
    raw = np.array([max(unit.noise.get(n, 0.0), 0.0) for n in unit.levels])
    bounded = np.minimum(np.nan_to_num(raw, nan=_MOST), _MOST)
    return np.asarray(np.maximum.accumulate(bounded))

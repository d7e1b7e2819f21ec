"""How many channels each group keeps: the least noise for what has to be saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.pruning.units import Unit

__all__ = ["allocate", "uniform"]

Array = np.ndarray[Any, Any]
Left = Callable[[Sequence[int]], float]

# Noise above says only that nothing is left of the outputs.
_MOST = 1e9


def allocate(units: Sequence[Unit], prices: Sequence[Array], left: Left, goal: float) -> list[int]:
    """Choose a level of every unit.

    A Lagrange multiplier prices what is left; units choose each by itself (Shoham and Gersho,
    1988). Levels that one more step of the price would not have needed are given back, those first
    that cost most quality.

    Args:
        units: The units, with noise of their levels.
        prices: Shares that the levels save, ``[levels]`` of each unit.
        left: What share is left where units have so many channels.
        goal: The share that may be left.

    Returns:
        Channels of each unit; all at their least where the goal is out of reach.
    """
    noise = [_curve(unit) for unit in units]

    def at(price: float) -> list[int]:
        return [
            unit.levels[int(np.argmin(n - price * s))]
            for unit, n, s in zip(units, noise, prices, strict=True)
        ]

    low, high = 1e-9, 1e30
    if left(at(high)) > goal:
        # Prices may be of more than is asked for, and a level that is smaller need not be faster.
        found = min(at(high), [unit.levels[-1] for unit in units], key=left)
        return _given_back(units, noise, found, left, goal) if left(found) <= goal else found
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        if left(at(middle)) <= goal:
            high = middle
        else:
            low = middle
    return _given_back(units, noise, at(high), left, goal)


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


def _given_back(
    units: Sequence[Unit], noise: Sequence[Array], chosen: list[int], left: Left, goal: float
) -> list[int]:
    """Raise levels while the goal is still met."""
    found = list(chosen)
    places = [unit.levels.index(n) for unit, n in zip(units, found, strict=True)]
    gains = [
        (float(noise[i][places[i]] - noise[i][up]), i, up)
        for i in range(len(units))
        for up in range(places[i])
    ]
    for gain, i, up in sorted(gains, key=lambda x: -x[0]):
        if gain <= 0 or up >= places[i]:
            continue
        trial = [*found[:i], units[i].levels[up], *found[i + 1 :]]
        if left(trial) <= goal:
            found, places[i] = trial, up
    return found

"""One option for each of many parts, so that together they reach a goal with the least noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["aim", "allocate"]

Array = np.ndarray[Any, Any]

# Noise above says only that nothing is left of the outputs.
_MOST = 1e9
# What is measured within this of the goal is the goal.
_CLOSE = 0.02
_ROUNDS = 8


def allocate(
    noise: Sequence[Array],
    prices: Sequence[Array],
    left: Callable[[Sequence[int]], float],
    goal: float,
) -> list[int]:
    """Choose an option of every part.

    A Lagrange multiplier prices what is left; parts choose each by itself (Shoham and Gersho,
    1988). Choices that one more step of the price would not have needed are given back, those first
    that cost most quality.

    Args:
        noise: What the options of each part add to the outputs, ``[options]``; those of the first
            option, which saves nothing, are 0.
        prices: Shares that they save, ``[options]`` of each part.
        left: What share is left with the options of these places.
        goal: The share that may be left.

    Returns:
        The place of an option for each part. Where the goal is out of reach, whatever leaves least.
    """
    bounded = [np.minimum(np.nan_to_num(n, nan=_MOST), _MOST) for n in noise]

    def at(price: float) -> list[int]:
        return [int(np.argmin(n - price * s)) for n, s in zip(bounded, prices, strict=True)]

    low, high = 1e-9, 1e30
    if left(at(high)) > goal:
        # Prices may be of more than is asked for, and the last option need not save most of it.
        found = min(at(high), [len(n) - 1 for n in bounded], key=left)
        return _given_back(bounded, found, left, goal) if left(found) <= goal else found
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        if left(at(middle)) <= goal:
            high = middle
        else:
            low = middle
    return _given_back(bounded, at(high), left, goal)


def _given_back(
    noise: Sequence[Array],
    chosen: list[int],
    left: Callable[[Sequence[int]], float],
    goal: float,
) -> list[int]:
    """Take options of less noise while the goal is still met."""
    found = list(chosen)
    gains = [
        (float(n[place] - n[other]), i, other)
        for i, (n, place) in enumerate(zip(noise, chosen, strict=True))
        for other in range(len(n))
    ]
    for gain, i, other in sorted(gains, key=lambda x: -x[0]):
        if gain <= 0 or noise[i][other] >= noise[i][found[i]]:
            continue
        trial = [*found[:i], other, *found[i + 1 :]]
        if left(trial) <= goal:
            found = trial
    return found


def aim(
    goal: float,
    choose: Callable[[float], tuple[int, ...] | None],
    measure: Callable[[tuple[int, ...]], float],
) -> dict[tuple[int, ...], float]:
    """Ask for more or less until what is measured is the goal.

    Parts save less together than one by one, so that a sum says little of what will be measured.

    Args:
        goal: The share that may be left.
        choose: Makes a choice that should leave a share; None where it cannot.
        measure: The share that a choice really leaves.

    Returns:
        The shares of all that was measured.
    """
    seen: dict[tuple[int, ...], float] = {}
    wanted = goal
    slower: tuple[float, float] = (1.0, 1.0)
    faster: tuple[float, float] | None = None
    for _ in range(_ROUNDS):
        choice = choose(wanted)
        if choice is None:
            break
        if choice not in seen:
            seen[choice] = measure(choice)
        share = seen[choice]
        if 0 <= goal - share <= _CLOSE * goal:
            break
        if share > goal:
            slower = (wanted, share)
        else:
            faster = (wanted, share)
        wanted = _between(slower, faster, goal)
    return seen


def _between(slower: tuple[float, float], faster: tuple[float, float] | None, goal: float) -> float:
    """What to want so that the goal is measured, from pairs of what was wanted and measured."""
    if faster is None:
        wanted, ratio = slower
        return max(1.0 - (1.0 - wanted) * (1.0 - goal) / max(1.0 - ratio, 0.05), 0.01)
    (high, above), (low, below) = slower, faster
    # Not at an end, where the same choice would come again.
    share = min(max((goal - below) / max(above - below, 1e-9), 0.1), 0.9)
    return low + share * (high - low)

"""What a model may keep of its size or its time, and what came of asking for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from graphopt import ir

__all__ = ["WORDS", "Goal", "Outcome", "What", "one_goal"]

What = Literal["macs", "params", "bytes", "latency", "channels"]

# What sizes are called.
WORDS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes",
    "channels": "channels",
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """What may be left, as a share of the original's.

    Attributes:
        what: Of what: multiply-accumulates, parameters, bytes of weights, latency on the target, or
            channels of each group.
        left: The share, in (0, 1).
    """

    what: What
    left: float


def one_goal(given: Mapping[What, float | None]) -> Goal | None:
    """The goal that is given, or None if none is.

    Args:
        given: Shares by what they are of.

    Raises:
        ValueError: There are several, or a share is out of bounds.
    """
    goals = [Goal(what, left) for what, left in given.items() if left is not None]
    if len(goals) > 1:
        names = " and ".join(goal.what for goal in goals)
        raise ValueError(f"{names} are different goals; give one")
    for goal in goals:
        if not 0 < goal.left < 1:
            raise ValueError(
                f"{goal.what} is the fraction that remains, in (0, 1), not {goal.left}"
            )
    return goals[0] if goals else None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        model: The changed model, or None.
        reason: What it gains, or why there is none.
        details: Parts, sizes, quality and latency as plain data.
        missed: Whether there is none because a goal cannot be met.
        remarks: What else is to be known of it.
    """

    model: ir.Model | None
    reason: str
    details: dict[str, Any]
    missed: bool = False
    remarks: tuple[str, ...] = ()

"""Quality and latency of forms of a model, and which of them to take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from graphopt import ir
from graphopt.measure import Budget, Quality, Trial, race
from graphopt.runtime import Feeds
from graphopt.targets import Target

__all__ = ["Candidate", "best", "judge", "raced", "summary"]

# A form has to be this much faster than the original to be worth it: below that it is noise.
_GAIN = 0.98
# What of the speed may be given up for accuracy where there is no budget.
_SLACK = 1.05


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A form of the model and what was measured of it.

    Attributes:
        name: For people.
        model: The form.
        integer: Names of the nodes that compute on integers, of the static form.
        dynamic: The same of the dynamic form.
        ratio: Its time in units of the original's, the geometric mean over the inputs measured; NaN
            where the target cannot be measured here.
        slowest: The largest of these ratios.
        quality: How well its outputs agree with the original's, or None.
    """

    name: str
    model: ir.Model
    integer: frozenset[str] = frozenset()
    dynamic: frozenset[str] = frozenset()
    ratio: float = math.nan
    slowest: float = math.nan
    quality: Quality | None = None


def raced(
    original: ir.Model,
    candidates: Sequence[Candidate],
    inputs: Sequence[Feeds],
    *,
    target: Target,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[Candidate]:
    """The candidates with their ratios, see ``graphopt.measure.race``."""
    models = [c.model for c in candidates]
    found = race(original, models, inputs, target=target, threads=threads, seconds=seconds)
    return [
        dataclasses.replace(c, ratio=math.exp(math.fsum(map(math.log, r)) / len(r)), slowest=max(r))
        for c, r in zip(candidates, found, strict=True)
    ]


def judge(candidates: Iterable[Candidate], trial: Trial) -> list[Candidate]:
    """Compare the outputs of the candidates with the original's."""
    return [dataclasses.replace(c, quality=trial.quality(c.model)) for c in candidates]


def best(candidates: Sequence[Candidate], budget: Budget) -> tuple[Candidate | None, str]:
    """Choose a candidate: the fastest within the budget.

    Without a budget, the most accurate of those that are nearly as fast as the fastest. None of
    them where none is faster than the original on every input.

    Returns:
        The candidate or None, and the reason in words.
    """
    measured = [c for c in candidates if not math.isnan(c.ratio)]
    faster = [c for c in measured if c.slowest < _GAIN] if measured else list(candidates)
    if not faster:
        fastest = min(measured, key=lambda c: c.slowest, default=None)
        if fastest is None:
            return None, "none of its nodes would be faster on integers"
        return None, (
            f"its int8 form would not be faster than the original: {1 / fastest.slowest:.2f}x"
        )
    obstacles = [None if c.quality is None else budget.obstacle(c.quality) for c in faster]
    within = [c for c, why in zip(faster, obstacles, strict=True) if why is None]
    if not within:
        _, obstacle = max(
            zip(faster, obstacles, strict=True),
            key=lambda pair: -math.inf if pair[0].quality is None else pair[0].quality.sqnr_db,
        )
        return None, f"no int8 form keeps within the budget: {obstacle}"
    if not measured:
        return within[0], "its latency was not measured"
    limit = min(c.ratio for c in within) * _SLACK
    if budget != Budget():
        chosen = min(within, key=lambda c: c.ratio)
    else:
        near = [c for c in within if c.ratio <= limit]
        chosen = max(near, key=lambda c: 0.0 if c.quality is None else c.quality.sqnr_db)
    return chosen, f"{1 / chosen.ratio:.2f}x as fast as the original"


def summary(candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """The candidates as plain data."""
    rows = []
    for c in candidates:
        q = c.quality
        rows.append(
            {
                "name": c.name,
                "speedup": None if math.isnan(c.ratio) else 1 / c.ratio,
                "sqnr_db": None if q is None or math.isinf(q.sqnr_db) else q.sqnr_db,
                "cosine": None if q is None else q.cosine,
                "agreement": None if q is None else q.agreement,
                "samples": None if q is None else q.samples,
            }
        )
    return rows

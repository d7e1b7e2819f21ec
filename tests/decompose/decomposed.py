"""Decomposing a model as a whole, with time that is the work that a model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning.pruned import IMAGES, Data

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.calibration import from_batches
from graphopt.decompose import KINDS, Options, decompose
from graphopt.measure import Goal, Outcome, shaped
from graphopt.runtime import Feeds
from graphopt.targets import get

__all__ = ["Clock", "decomposed", "work"]


def work(model: ir.Model, feeds: Feeds) -> int:
    """Multiply-accumulates of a model on some inputs."""
    return Cost(shaped(model, feeds)).macs


@dataclasses.dataclass
class Clock:
    """Models take the time of their work, to a power.

    Attributes:
        power: The power.
        overhead: What any form takes besides, in units of the original's time.
        raced: Forms of the model that were measured.
        alone: Forms of layers that were measured by themselves.
    """

    power: float = 1.0
    overhead: float = 0.0
    raced: list[ir.Model] = dataclasses.field(default_factory=list)
    alone: list[ir.Model] = dataclasses.field(default_factory=list)

    def race(
        self, original: ir.Model, models: Sequence[ir.Model], inputs: Sequence[Feeds], **_: Any
    ) -> list[list[float]]:
        """As ``graphopt.measure.race``."""
        self.raced += models
        return [
            [(work(m, f) / work(original, f)) ** self.power + self.overhead for f in inputs]
            for m in models
        ]

    def seconds(self, models: Sequence[tuple[ir.Model, Feeds]], **_: Any) -> list[float]:
        """As ``graphopt.measure.seconds_of``; the model and a layer of it come first."""
        self.alone += [model for model, _ in models[2:]]
        return [1e-9 * work(model, feeds) for model, feeds in models]

    @property
    def measured(self) -> int:
        """How many forms were measured."""
        return len(self.raced) + len(self.alone)

    def clear(self) -> None:
        """Forget what was measured."""
        self.raced.clear()
        self.alone.clear()


def decomposed(
    model: ir.Model,
    what: str,
    left: float,
    data: Data | None = IMAGES,
    *,
    cache: Path | None = None,
    target: str = "portable",
    **options: Any,
) -> Outcome:
    """Decompose, where nothing is measured in time unless a test says how long things take."""
    samples = None if data is None else from_batches(data, model)
    given = Options(Goal(what, left), **{"kinds": KINDS, **options})  # type: ignore[arg-type]
    return decompose(model, get(target), samples, given, cache=cache)

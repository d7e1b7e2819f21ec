"""What decomposition is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphopt.decompose.forms import Kind
from graphopt.measure import Budget, Goal

__all__ = ["Options"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to decompose.

    Attributes:
        goal: What may be left.
        kinds: Forms that layers may take.
        payoff: Part of the multiply-accumulates saved that has to be saved in time, too, for such a
            goal, as far as that is possible and can be measured.
        whole: Let layers beside shortcuts go whole, too.
        skip: Patterns of names of layers that stay, or operators.
        budget: What the result has to keep.
        samples: How many to use, at most.
        threads: Threads of an operator when latency is measured.
        dry: Only list what could be done.
    """

    goal: Goal
    kinds: Sequence[Kind]
    payoff: float = 0.2
    whole: bool = False
    skip: Sequence[str] = ()
    budget: Budget = dataclasses.field(default_factory=Budget)
    samples: int = 512
    threads: int = 1
    dry: bool = False

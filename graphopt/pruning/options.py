"""What pruning is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from graphopt.measure import Budget, Goal
from graphopt.pruning.criteria import Criterion

__all__ = ["Options"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prune.

    Attributes:
        goal: What may be left.
        kind: Which groups.
        criterion: What tells which channels of a group go first; ``obs`` asks the layers that read
            them, and needs samples.
        ranking: How losses are spread over groups: by measured noise, by scores of all groups
            together, or the same share of each.
        payoff: Part of the multiply-accumulates saved that has to be saved in time, too, for such a
            goal, as far as that is possible and can be measured.
        least: Least share of a group that stays.
        multiple: What numbers of channels are multiples of; None chooses.
        skip: Patterns of names of tensors whose channels stay.
        whole: Let layers beside shortcuts go whole.
        recover: Fit the layers that stay.
        vary: Fit them on samples with other ids, too, where inputs look up embeddings.
        budget: What the result has to keep.
        samples: How many to use, at most.
        threads: Threads of an operator when latency is measured.
        dry: Only list what could be pruned, and what it would do.
    """

    goal: Goal
    kind: Literal["channels", "heads"] = "channels"
    criterion: Literal["obs"] | Criterion = "obs"
    ranking: Literal["measured", "global", "local"] = "measured"
    payoff: float = 0.67
    least: float = 0.1
    multiple: int | None = None
    skip: Sequence[str] = ()
    whole: bool = True
    recover: bool = True
    vary: bool = True
    budget: Budget = dataclasses.field(default_factory=Budget)
    samples: int = 512
    threads: int = 1
    dry: bool = False

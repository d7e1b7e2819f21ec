"""Which samples layers are fitted on, and which the result is judged on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphopt.calibration import Samples
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget
from graphopt.runtime import Feeds, batch_size

__all__ = ["check_budget", "first", "split"]

_ASIDE = 0.125
# Samples that changed predictions are counted on, at least.
_LEAST = 8


def split(data: Samples | None, samples: int) -> tuple[list[Feeds], list[Feeds]]:
    """Batches to fit on, and those kept aside to judge the result: an eighth of the samples.

    A batch is cut for that where the model takes batches of any size.

    Raises:
        CalibrationError: No batch holds anything.
    """
    if data is None:
        return [], []
    batches: list[Feeds] = []
    count = 0
    for feeds in data:
        if count >= samples:
            break
        if batch_size(feeds):
            batches.append(feeds)
            count += batch_size(feeds)
    if not batches:
        raise CalibrationError("all samples are empty; give some with elements (--data)")
    aside: list[Feeds] = []
    most = max(int(count * _ASIDE), 1)
    while len(batches) > 1 and batch_size(batches[-1]) <= most:
        most -= batch_size(batches[-1])
        aside.insert(0, batches.pop())
    if most and data.divisible and _rows(batches[-1]) > most:
        last = batches.pop()
        at = _rows(last) - most
        batches.append({name: array[:at] for name, array in last.items()})
        aside.insert(0, {name: array[at:] for name, array in last.items()})
    return batches, aside


def check_budget(budget: Budget, aside: Sequence[Feeds]) -> None:
    """Check that something can tell whether a budget is kept.

    Raises:
        NotApplicable: All samples are fitted to, or too few are left to count predictions.
    """
    if budget != Budget() and not aside:
        raise NotApplicable(
            "min-sqnr and max-drop need samples that nothing is fitted to; give more than one "
            "batch (--data)"
        )
    count = sum(map(batch_size, aside))
    if budget.drop is not None and count < _LEAST:
        raise NotApplicable(
            f"max-drop cannot be judged on the {count} samples that nothing is fitted to, an "
            f"eighth of all; give {math.ceil(_LEAST / _ASIDE)} or more (--data)"
        )


def _rows(feeds: Feeds) -> int:
    """Samples of a batch that can be cut, 0 for others."""
    sizes = {len(v) if isinstance(v, np.ndarray) and v.ndim else 0 for v in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def first(batches: Sequence[Feeds], samples: int) -> list[Feeds]:
    """The first batches, up to a number of samples."""
    found: list[Feeds] = []
    count = 0
    for feeds in batches:
        if count >= samples:
            break
        found.append(feeds)
        count += batch_size(feeds)
    return found

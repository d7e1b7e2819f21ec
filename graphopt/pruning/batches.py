"""Which samples layers are fitted on, and which the result is judged on."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.calibration import Samples
from graphopt.errors import CalibrationError
from graphopt.runtime import Feeds, batch_size

__all__ = ["first", "split"]

_ASIDE = 0.125


def split(data: Samples | None, samples: int) -> tuple[list[Feeds], list[Feeds]]:
    """Batches to fit on, and those kept aside to judge the result.

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
    kept = 0
    while len(batches) > 1 and kept + batch_size(batches[-1]) <= max(count * _ASIDE, 1):
        kept += batch_size(batches[-1])
        aside.insert(0, batches.pop())
    return batches, aside


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

"""Reading what a Slice does."""

from __future__ import annotations

import dataclasses

from graphopt import ir
from graphopt.passes.layout.axes import integers

__all__ = ["FAR", "Cut", "from_front", "read", "size"]

FAR = 2**31 - 1
"""Ends from here on mean "to the end": exporters write the largest integer of 32 or 64 bits."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Start, end and step along one axis."""

    start: int
    end: int
    step: int = 1


def read(node: ir.Node, rank: int | None) -> dict[int, Cut] | None:
    """What a Slice does, by axis; None where that is computed at run time.

    Axes count from the front where ``rank`` is known.
    """
    starts, ends = integers(node, "starts", 1, 10), integers(node, "ends", 2, 10)
    axes, steps = integers(node, "axes", 3, 10), integers(node, "steps", 4, 10)
    if starts is None or ends is None or axes is None or steps is None:
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    return {
        axis + rank if axis < 0 and rank is not None else axis: Cut(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def size(value: ir.Value | None, axis: int) -> int | None:
    """Size of a dimension where it is known."""
    shape = ir.dims(value)
    found = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return found if isinstance(found, int) else None


def from_front(cut: Cut, length: int | None) -> Cut | None:
    """The same cut with start and end counted from the front; None where that is not known."""
    if cut.step != 1:
        return None
    if length is None:
        return cut if cut.start >= 0 and cut.end >= 0 else None
    start, end = (max(0, v + length) if v < 0 else min(v, length) for v in (cut.start, cut.end))
    return Cut(start, end)

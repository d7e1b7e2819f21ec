"""Chains of slices into one."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.layout.axes import integers

__all__ = ["FuseSlices"]

_x = Var()
_inner = Op("Slice", _x, variadic=True)
_MOST = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Start, end and step along one axis."""

    start: int
    end: int
    step: int = 1


@rule(Op("Slice", _inner, variadic=True))
def fuse_slices(m: Match, rw: Rewriter) -> Replacement:
    """Two slices."""
    rank = ir.rank(m[_x])
    first, second = _cuts(m[_inner], rank), _cuts(m.root, rank)
    if first is None or second is None:
        return m.fail("starts, ends, axes or steps are not constant")
    if rank is None and any(axis < 0 for axis in (*first, *second)):
        return m.fail("the rank is not known")
    merged = dict(first)
    for axis, cut in second.items():
        if axis not in merged:
            merged[axis] = cut
            continue
        sizes = (_size(m[_x], axis), _size(m[_inner].outputs[0], axis))
        both = _compose(_positive(merged[axis], sizes[0]), _positive(cut, sizes[1]))
        if both is None:
            return m.fail("both cut the same axis, from its end or in steps")
        merged[axis] = both
    return _build(m, rw, merged)


def _cuts(node: ir.Node, rank: int | None) -> dict[int, _Cut] | None:
    """What a Slice does, by axis."""
    starts, ends = integers(node, "starts", 1, 10), integers(node, "ends", 2, 10)
    axes, steps = integers(node, "axes", 3, 10), integers(node, "steps", 4, 10)
    if starts is None or ends is None or axes is None or steps is None:
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    return {
        axis + rank if axis < 0 and rank is not None else axis: _Cut(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def _size(value: ir.Value, axis: int) -> int | None:
    shape = ir.dims(value)
    size = None if shape is None else shape[axis]
    return size if isinstance(size, int) else None


def _positive(cut: _Cut, size: int | None) -> _Cut | None:
    """The same cut with its ends counted from the front; None for steps and unknown sizes."""
    if cut.step != 1:
        return None
    if size is None:
        return cut if cut.start >= 0 and cut.end >= 0 else None
    start, end = (max(0, v + size) if v < 0 else min(v, size) for v in (cut.start, cut.end))
    return _Cut(start, end)


def _compose(first: _Cut | None, second: _Cut | None) -> _Cut | None:
    if first is None or second is None:
        return None
    start = min(first.start + second.start, _MOST)
    return _Cut(start, min(first.end, first.start + second.end, _MOST))


def _build(m: Match, rw: Rewriter, cuts: dict[int, _Cut]) -> Replacement:
    axes = sorted(cuts)
    starts, ends = [cuts[a].start for a in axes], [cuts[a].end for a in axes]
    steps = [cuts[a].step for a in axes]
    if ir.opset(m.root) < 10:
        return rw.op("Slice", m[_x], starts=starts, ends=ends, axes=axes)
    inputs = [
        rw.const(np.array(numbers, np.int64), name)
        for numbers, name in ((starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps"))
        if name != "steps" or any(s != 1 for s in steps)
    ]
    return rw.op("Slice", m[_x], *inputs)


class FuseSlices(RewritePass):
    """Merge slices.

    What it does: two Slice in a row become one. Along different axes they do not meddle with each
    other; along the same axis starts add up where both go in steps of one and their ends can be
    counted from the front.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Slice(Slice(x, [1], [9], [1]), [0], [4], [2]) -> Slice(x, [1,0], [9,4], [1,2])

    Declines when: starts, ends, axes or steps are not constant; axes count from the end and the
    rank is not known; both cut the same axis in steps, or from the end of an unknown size;
    something else uses the inner result.

    References: ONNX operator Slice (https://onnx.ai/onnx/operators/onnx__Slice.html).
    """

    name = "fuse-slices"
    exactness = Exactness.BITWISE
    rules = (fuse_slices,)

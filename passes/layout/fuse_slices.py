"""Chains of slices into one."""

from __future__ import annotations

import numpy as np

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.layout.cuts import Cut, from_front, read, size

__all__ = ["FuseSlices"]

_x = Var()
_inner = Op("Slice", _x, variadic=True)
_MOST = np.iinfo(np.int64).max


@rule(Op("Slice", _inner, variadic=True))
def fuse_slices(m: Match, rw: Rewriter) -> Replacement:
    """Two slices."""
    rank = ir.rank(m[_x])
    first, second = read(m[_inner], rank), read(m.root, rank)
    if first is None or second is None:
        return m.fail("starts, ends, axes or steps are not constant")
    if rank is None and any(axis < 0 for axis in (*first, *second)):
        return m.fail("the rank is not known")
    merged = dict(first)
    for axis, cut in second.items():
        if axis not in merged:
            merged[axis] = cut
            continue
        both = _compose(
            from_front(merged[axis], size(m[_x], axis)),
            from_front(cut, size(m[_inner].outputs[0], axis)),
        )
        if both is None:
            return m.fail("both cut the same axis, from its end or in steps")
        merged[axis] = both
    return _build(m, rw, merged)


def _compose(first: Cut | None, second: Cut | None) -> Cut | None:
    if first is None or second is None:
        return None
    start = min(first.start + second.start, _MOST)
    return Cut(start, min(first.end, first.start + second.end, _MOST))


def _build(m: Match, rw: Rewriter, cuts: dict[int, Cut]) -> Replacement:
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

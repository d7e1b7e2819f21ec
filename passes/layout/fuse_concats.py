"""Chains of Concat, Split and Slice."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.layout.axes import inner_is_spare, integers, normalized
from graphopt.passes.layout.cuts import FAR, Cut, from_front, read, size

__all__ = ["FuseConcats"]

_x = Var()
_split = Op("Split", _x, variadic=True, shared=True)
_concat = Op("Concat", variadic=True)
_inner_concat = Op("Concat", variadic=True, shared=True)


@rule(Op("Concat", _x), benefit=3)
def drop_concat(m: Match, rw: Rewriter) -> Replacement:
    """A Concat of one tensor."""
    return m[_x]


@rule(Op("Concat", _split, variadic=True), benefit=2)
def concat_of_split(m: Match, rw: Rewriter) -> Replacement:
    """All that a Split made, put together again."""
    if tuple(m.root.inputs) != tuple(m[_split].outputs):
        return m.fail("it does not put together all that the Split made")
    if _axis(m.root, m[_x]) != _axis(m[_split], m[_x]):
        return m.fail("the Split is along another axis")
    return m[_x]


@rule(_concat)
def concat_of_concat(m: Match, rw: Rewriter) -> Replacement:
    """A Concat among what is concatenated along the same axis."""
    if inner_is_spare(m.root) and _joins(m.root, next(iter(m.root.outputs[0].uses())).node):
        return None  # the last of a chain takes all others at once: one by one takes cubic time
    parts: list[ir.Value | None] = []
    pending = list(reversed(m.root.inputs))
    while pending:
        value = pending.pop()
        maker = value.producer() if value is not None else None
        if maker is not None and inner_is_spare(maker) and _joins(maker, m.root):
            pending.extend(reversed(maker.inputs))
        else:
            parts.append(value)
    return rw.op("Concat", *parts, like=m.root) if len(parts) > len(m.root.inputs) else None


def _joins(inner: ir.Node, outer: ir.Node) -> bool:
    """Whether both are a Concat, of the same graph and along the same axis."""
    return (
        inner.op_type == outer.op_type == "Concat"
        and not (inner.domain or outer.domain)
        and inner.graph is outer.graph
        and _axis(inner, inner.outputs[0]) == _axis(outer, outer.outputs[0])
    )


@rule(Op("Split", _inner_concat, variadic=True))
def split_of_concat(m: Match, rw: Rewriter) -> Replacement:
    """A Split into just what was put together."""
    split, concat = m.root, m[_inner_concat]
    joined = concat.outputs[0]
    axis = _axis(split, joined)
    if axis != _axis(concat, joined):
        return m.fail("the Concat is along another axis")
    if len(split.outputs) != len(concat.inputs):
        return m.fail("it splits into more or fewer parts")
    rank = ir.rank(joined)
    at = axis if rank is None or axis >= 0 else axis + rank
    sizes = integers(split, "split", 1, 13)
    if sizes is None:
        return m.fail("the sizes of the parts are not constant")
    wanted = sizes or [size(v, at) for v in split.outputs]
    for length, value in zip(wanted, concat.inputs, strict=False):
        if length is None or size(value, at) != length:
            return m.fail("the sizes of the parts differ or are not known")
    if not all(
        v is not None and rw.can_replace(out, v)
        for out, v in zip(split.outputs, concat.inputs, strict=True)
    ):
        return m.fail("a graph output needs a node to produce it")
    return concat.inputs


@rule(Op("Slice", _inner_concat, variadic=True))
def slice_of_concat(m: Match, rw: Rewriter) -> Replacement:
    """A Slice that takes just one of the parts that were put together."""
    concat = m[_inner_concat]
    joined = concat.outputs[0]
    axis = _axis(concat, joined)
    cuts = read(m.root, ir.rank(joined))
    if cuts is None or list(cuts) != [axis]:
        return m.fail("it does not slice along the axis of the Concat, or not only")
    cut = from_front(cuts[axis], size(joined, axis))
    if cut is None:
        return m.fail("it slices in steps, or from the end of an unknown size")
    return _part(concat.inputs, axis, cut) or m.fail("it does not take just one of the parts")


def _part(parts: Sequence[ir.Value | None], axis: int, cut: Cut) -> ir.Value | None:
    """The part that reaches from start to end."""
    offset = 0
    for i, value in enumerate(parts):
        length = size(value, axis)
        if offset == cut.start and cut.end == (offset + length if length is not None else -1):
            return value
        if length is None or offset >= cut.start:
            # The last one reaches to the end, whatever its size.
            last = i == len(parts) - 1 and offset == cut.start and cut.end >= FAR
            return value if last else None
        offset += length
    return None


def _axis(node: ir.Node, value: ir.Value) -> int:
    """The axis, from the front where the rank is known."""
    axis = int(ir.attr(node, "axis", 0))
    found = normalized((axis,), ir.rank(value))
    return axis if found is None else found[0]


class FuseConcats(RewritePass):
    """Merge Concat with Concat, Split and Slice.

    What it does: a Concat of one tensor goes away; one inside another along the same axis becomes
    part of it; a Concat of everything that a Split made gives back what was split; a Split into
    just the parts that were concatenated gives back the parts, and a Slice of just one of them that
    part.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Concat(a, Concat(b, c) {axis=1}) {axis=1} -> Concat(a, b, c) {axis=1}

    Declines when: axes differ; parts are missing, repeated or in another order; sizes differ or are
    not known; a Slice takes more or less than one part; something else uses an inner Concat; graph
    outputs would need nodes of their own.

    References: ONNX operators Concat, Split, Slice (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-concats"
    exactness = Exactness.BITWISE
    min_opset = 4
    rules = (
        drop_concat,
        concat_of_split,
        concat_of_concat,
        split_of_concat,
        slice_of_concat,
    )

"""Replace sequences of tensors by the tensors in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import Const, Exactness, Match, Op, RewritePass, Rewriter, Var, ir, rule

__all__ = ["EliminateSequences"]

x, at = Var(), Const()
made = Op("SequenceConstruct", variadic=True, shared=True)
inserted = Op("SequenceInsert", Op(("SequenceConstruct", "SequenceEmpty"), variadic=True), x)
split = Op("SplitToSequence", x, variadic=True, shared=True)


@rule(inserted)
def construct_inserted(m: Match, rw: Rewriter) -> ir.Value | None:
    """Appending to a sequence of known elements makes another one."""
    sequence = m.root.inputs[0]
    producer = None if sequence is None else sequence.producer()
    if producer is None:
        return m.fail("the sequence is computed elsewhere")
    return rw.op("SequenceConstruct", *producer.inputs, m[x])


@rule(Op("SequenceAt", made, at))
def element_of_construct(m: Match, rw: Rewriter) -> ir.Value | None:
    """The element at a known place."""
    elements, index = m[made].inputs, _number(m[at])
    if index is None or not -len(elements) <= index < len(elements):
        return m.fail("the index is out of range")
    return elements[index]


@rule(Op("SequenceLength", made))
def length_of_construct(m: Match, rw: Rewriter) -> ir.Value:
    """The number of known elements."""
    return rw.const(np.int64(len(m[made].inputs)), "length")


@rule(Op("ConcatFromSequence", made))
def concat_of_construct(m: Match, rw: Rewriter) -> ir.Value | None:
    """Known elements are concatenated as they are."""
    if ir.attr(m.root, "new_axis"):
        return m.fail("it stacks along a new axis")
    return rw.op("Concat", *m[made].inputs, axis=ir.attr(m.root, "axis"))


@rule(Op("SequenceAt", split, at))
def element_of_split(m: Match, rw: Rewriter) -> ir.Value | None:
    """One part of a tensor split into equal parts is a slice of it, or an element."""
    node, axis = m[split], ir.attr(m[split], "axis")
    index = _number(m[at])
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if index is None or index < 0:
        return m.fail("it counts from the end")
    if sizes is None and not ir.attr(node, "keepdims"):
        return rw.op("Gather", m[x], rw.const(np.int64(index), "index"), axis=axis)
    size = 1
    if sizes is not None:
        constant = ir.array(sizes)
        if constant is None or constant.ndim or not ir.attr(node, "keepdims"):
            return m.fail("the parts are not known to be equal")
        size = int(constant)
    have = ir.dims(m[x])
    dim = None if have is None else have[axis]
    if not isinstance(dim, int) or index * size >= dim:
        return m.fail("the index may be out of range")
    bounds = (index * size, (index + 1) * size, axis)
    starts, ends, axes = (rw.const(np.array([v], np.int64), "slice") for v in bounds)
    return rw.op("Slice", m[x], starts, ends, axes)


def _number(data: np.ndarray[Any, Any]) -> int | None:
    """An index, which may be a vector of one element, too."""
    return int(data.reshape(())) if data.size == 1 else None


class EliminateSequences(RewritePass):
    """Use tensors directly where a sequence only carries them from one node to another.

    What it does: SequenceAt of a SequenceConstruct is the element; SequenceLength of one is a
    constant; ConcatFromSequence of one a Concat; SequenceInsert at its end a larger one.
    SequenceAt of a SplitToSequence into equal parts is a Slice, or a Gather where the axis goes.

    Exactness: Bitwise. Data are moved only.

    Needs: Opset 13, where Slice and Gather take what the result needs.

    Options: None.

    Example: ``s = SequenceConstruct(a, b); c = SequenceAt(s, 1); y = Relu(c)`` -> ``y = Relu(b)``

    Declines when: An index is computed, may be out of range, or counts from the end of a split;
    parts are not known to be equal; elements are stacked along a new axis; a sequence is inserted
    into at another place than its end, or used by more than the insertion.

    References: onnxscript.optimizer, constant folding of sequences.
    """

    name = "eliminate-sequences"
    exactness = Exactness.BITWISE
    min_opset = 13
    rules = (
        construct_inserted,
        element_of_construct,
        length_of_construct,
        concat_of_construct,
        element_of_split,
    )

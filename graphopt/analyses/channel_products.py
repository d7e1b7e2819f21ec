"""Channels through convolutions, products of matrices and recurrent layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt import ir
from graphopt.analyses import channel_moves as moves
from graphopt.analyses.channel_classes import Ids
from graphopt.analyses.channel_flow import Factors, Flow, Handler, Operand, Stop, at

__all__ = ["PRODUCTS", "SOURCES"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class _Inputs(NamedTuple):
    """Which inputs of an operator are what; -1 where there are none."""

    a: int = 0
    b: int = 1
    bias: int = -1
    per_channel: tuple[int, ...] = ()  # of the second operand
    scalars: tuple[int, ...] = ()  # that have to be one number for all channels


_PLACES = {
    "Conv": _Inputs(bias=2),
    "ConvInteger": _Inputs(per_channel=(3,), scalars=(2,)),
    "ConvTranspose": _Inputs(bias=2),
    "Gemm": _Inputs(bias=2),
    "MatMul": _Inputs(),
    "MatMulInteger": _Inputs(per_channel=(3,), scalars=(2,)),
    "QLinearConv": _Inputs(b=3, bias=8, per_channel=(4, 5), scalars=(1, 2, 6, 7)),
    "QLinearMatMul": _Inputs(b=3, per_channel=(4, 5), scalars=(1, 2, 6, 7)),
}


def _conv(flow: Flow, node: ir.Node) -> None:
    places = _PLACES[node.op_type]
    flow.only(node, places.a)
    shape = flow.weight(node, places.b)
    _constants(flow, node, places)
    transposed = node.op_type == "ConvTranspose"
    groups, ones = int(ir.attr(node, "group", 1)), (1,) * (len(shape) - 2)
    inside = shape[0] if transposed else shape[1] * groups
    outside = shape[1] * groups if transposed else shape[0]
    into = _into(flow, node, places.a, inside)
    per_in, per_out = inside // groups, outside // groups
    made: Ids | None  # of the output axis of the weight, as a vector
    taken: Ids | None = None  # of its input axis
    if groups == 1:
        out = made = flow.fresh(outside)
        taken = into
    elif into is not None and groups >= per_in:
        # Whole groups go: as many of them as there are, and what is in each together.
        rows = into.reshape(groups, per_in)
        flow.pair(rows[:, :1], rows)
        out = rows[:, 0].repeat(per_out)
        made = None if transposed else out
        taken = into if transposed else None
    else:
        # The same of every group goes.
        one = flow.fresh(per_out)
        out = np.tile(one, groups)
        made = one if transposed else out
        if into is not None:
            rows = into.reshape(groups, per_in)
            flow.pair(rows[:1], rows)
            taken = into if transposed else rows[0]
    if taken is not None and not (made is None and transposed):
        assert into is not None
        flow.end(node, places.a, into.reshape(1, -1, *ones))
    first, second = (taken, made) if transposed else (made, taken)
    for ids, shaped in ((first, (-1, 1, *ones)), (second, (1, -1, *ones))):
        if ids is None:
            continue
        if ids is made or made is None:
            flow.maker(node, places.b, ids.reshape(shaped))
        else:
            flow.adopt(node, places.b, ids.reshape(shaped))
    _per_channel(flow, node, (places.bias, *places.per_channel), out)
    flow.make(node, [out.reshape(1, -1, *ones)])


def _into(flow: Flow, node: ir.Node, index: int, count: int) -> Ids | None:
    factors = flow.of(node, index)
    if not factors:
        return None
    axes = [a for a in range(factors[0].ndim) if a != 1]
    left = [f for f in flow.apart(factors, axes, node, "convolves over them") if f.shape[1] != 1]
    if len(left) > 1:
        raise Stop("reads what varies twice along its channels")
    if left and left[0].size != count:
        raise Stop("reads another number of channels than its weight has")
    return left[0].ravel() if left else None


def _constants(flow: Flow, node: ir.Node, places: _Inputs) -> None:
    for index in (places.bias, *places.per_channel):
        if index > 0 and at(node, index) is not None:
            flow.weight(node, index)
    for index in places.scalars:
        value = at(node, index)
        dims = flow.dims(value)
        if value is not None and (dims is None or any(n != 1 for n in dims)):
            raise Stop("has a scale per row")


def _per_channel(flow: Flow, node: ir.Node, indices: tuple[int, ...], out: Ids) -> None:
    for index in indices:
        shape = flow.fixed(at(node, index)) if index > 0 else None
        if shape is not None and len(shape) == 1 and shape[0] == len(out):
            flow.adopt(node, index, out)


def _matmul(flow: Flow, node: ir.Node) -> None:
    """Products of matrices, as elementwise products in the axes [..., rows, shared, columns]."""
    places = _PLACES[node.op_type]
    flow.only(node, places.a, places.b, *((places.bias,) if node.op_type == "Gemm" else ()))
    _constants(flow, node, places._replace(bias=-1))
    sizes = [flow.dims(node.inputs[i]) for i in (places.a, places.b)]
    if any(d is None or len(d) < 2 for d in sizes):
        raise Stop("reads something that is no matrix")
    ranks = [len(d) for d in sizes if d is not None]
    rank = max(ranks)
    row, shared, column = rank - 2, rank - 1, rank
    turned = [bool(ir.attr(node, n, 0)) for n in ("transA", "transB")]
    last = [(row, shared), (shared, column)]
    operands = []
    for i, (index, axes) in enumerate(zip((places.a, places.b), last, strict=True)):
        inner = axes[::-1] if turned[i] else axes
        batch = range(rank - ranks[i], rank - 2)
        operands.append(flow.operand(node, index, rank + 1, (*batch, *inner)))
    fixed = [flow.constant(node.inputs[i]) is not None for i in (places.a, places.b)]
    if all(fixed):
        return
    joints = flow.join(node, operands)
    heads = not any(fixed)
    made = []
    for joint in joints:
        vary = {a for a, n in enumerate(joint.shape) if n != 1}
        if vary == {shared}:
            for operand, known in zip(operands, fixed, strict=True):
                if not known:
                    shape = [joint.shape[a] for a in operand.axes]
                    flow.end(node, operand.index, joint.reshape(shape))
            continue
        left = flow.merged(joint, vary & {shared})
        if heads and any(a < row for a in vary):
            flow.heads.append(left.ravel())
        made.append(moves.squeeze(left, [shared]))
    for operand, axis in zip(operands, (row, column), strict=True):
        size = operand.dims[axis]
        plain = flow.fixed(node.inputs[operand.index]) is not None
        if plain and isinstance(size, int) and size > 1:
            made.append(_rows(flow, node, operand, axis, size, shared))
            if axis == column:
                _per_channel(flow, node, places.per_channel, made[-1].ravel())
    bias = at(node, places.bias) if node.op_type == "Gemm" else None
    if bias is not None:
        dims: list[int | str | None] = [None] * rank
        result = Operand(-1, tuple(made), tuple(dims), tuple(range(rank)), frozenset())
        made = list(flow.join(node, [result, flow.operand(node, places.bias, rank)]))
    flow.make(node, made)


def _rows(flow: Flow, node: ir.Node, operand: Operand, axis: int, size: int, shared: int) -> Ids:
    """What the free axis of a constant makes."""
    ids = flow.fresh(size)
    shape = [size if a == axis else 1 for a in operand.axes]
    flow.maker(node, operand.index, ids.reshape(shape))
    full = [size if a == axis else 1 for a in range(len(operand.dims))]
    return moves.squeeze(ids.reshape(full), [shared])


def _recurrent(flow: Flow, node: ir.Node) -> None:
    """Hidden units, the same ones in both directions."""
    flow.only(node, 0, 5, 6)
    gates, hidden = _GATES[node.op_type], flow.weight(node, 2)[-1]
    w = flow.weight(node, 1)
    for index in (3, 7):
        if at(node, index) is not None:
            flow.weight(node, index)
    for factor in flow.apart(flow.of(node), (0, 1), node, "goes over them step by step"):
        if factor.shape[2] != 1:
            flow.end(node, 0, factor)
            flow.adopt(node, 1, factor, (-1, -1, 2))
    if w[1] != gates * hidden:
        raise Stop("has a weight of another size than its gates")
    units = flow.fresh(hidden)
    for index in (1, 2):
        flow.maker(node, index, np.tile(units, gates).reshape(1, -1, 1))
    flow.end(node, 2, units.reshape(1, 1, -1))
    flow.adopt(node, 2, units.reshape(1, 1, -1))
    for index, count in ((3, 2 * gates), (7, 3)):
        if at(node, index) is not None:
            flow.adopt(node, index, np.tile(units, count).reshape(1, -1))
    state = units.reshape(1, 1, -1)
    for index in (5, 6):
        if at(node, index) is not None:
            _state(flow, node, index, state)
    flow.make(node, [units.reshape(1, 1, 1, -1)], 0)
    for index in (1, 2):
        flow.make(node, [state], index)


def _state(flow: Flow, node: ir.Node, index: int, state: Ids) -> None:
    """Units of an initial state are those of the layer."""
    value = at(node, index)
    known = flow.constant(value)
    if known is not None and 2 in known.axes:
        flow.adopt(node, index, state)
        return
    found: Factors = flow.apart(flow.of(node, index), (0, 1), node, "goes over them step by step")
    found = tuple(f for f in found if f.shape[2] != 1)
    for factor in found:
        flow.pair(state, factor)
    if not found:
        name = getattr(value, "name", None)
        flow.freeze([state], node, f"starts with {name!r}, which has to stay as it is")


SOURCES = frozenset(_PLACES) | frozenset(_GATES)
PRODUCTS: dict[str, Handler] = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"), _conv),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(_GATES, _recurrent),
}

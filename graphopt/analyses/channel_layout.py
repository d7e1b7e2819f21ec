"""Channels through operators that move data: index maps are what they do to arrays of ids."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import ir
from graphopt.analyses import channel_moves as moves
from graphopt.analyses.channel_classes import Ids
from graphopt.analyses.channel_elements import given
from graphopt.analyses.channel_flow import Factors, Flow, Handler, Operand, Stop, at, of_data

__all__ = ["LAYOUT", "pads", "sliced", "slices"]


def _transpose(flow: Flow, node: ir.Node) -> None:
    factors = flow.of(node)
    perm = ir.attr(node, "perm") or tuple(reversed(range(factors[0].ndim)))
    flow.make(node, [f.transpose(perm) for f in factors])


@of_data
def _reshape(flow: Flow, node: ir.Node, factors: Factors) -> None:
    before, after = flow.dims(node.inputs[0]), ir.dims(node.outputs[0])
    assert before is not None
    if node.op_type == "Flatten":
        axis = int(ir.attr(node, "axis", 1))
        axis = axis + len(before) if axis < 0 else axis
        parts = [
            moves.Block(axes, range(i, i + 1), all(isinstance(before[a], int) for a in axes))
            for i, axes in enumerate((range(axis), range(axis, len(before))))
        ]
        sizes: list[int | str | None] = [
            int(np.prod([before[a] for a in p.before], dtype=np.int64)) if p.known else None  # type: ignore[arg-type]
            for p in parts
        ]
    else:
        if ir.opset(node) < 5:
            raise Stop("has its shape as an attribute")
        if after is None:
            raise Stop("has an output of unknown rank")
        sizes = _refined(node, before, after)
        parts = moves.blocks(before, sizes)
    made = []
    for factor in factors:
        made += _reshaped(flow, node, factor, parts, before, sizes)
    flow.make(node, made)


def _refined(
    node: ir.Node, before: tuple[int | str | None, ...], after: tuple[int | str | None, ...]
) -> list[int | str | None]:
    """Sizes of the output of Reshape, with what its target says besides."""
    sizes = list(after)
    target = ir.array(at(node, 1))
    if target is not None and target.size == len(sizes):
        for axis, size in enumerate(target.tolist()):
            if size > 0:
                sizes[axis] = size
            elif size == 0 and not ir.attr(node, "allowzero", 0):
                sizes[axis] = before[axis]
    return sizes


def _reshaped(
    flow: Flow,
    node: ir.Node,
    factor: Ids,
    parts: list[moves.Block],
    before: tuple[int | str | None, ...],
    after: list[int | str | None],
) -> list[Ids]:
    refined = list(parts)
    sizes, now = list(before), list(after)
    for i, block in enumerate(parts):
        vary = [a for a in block.before if factor.shape[a] != 1]
        if block.known or not vary:
            continue
        first, new = block.before.start, block.after.start
        one, other = before[first], after[new] if len(block.after) else None
        if vary == [first] and isinstance(one, int) and isinstance(other, int):
            # A number of channels is cut into groups, whatever follows: [C, H, W] to [G, C/G*H*W],
            # or back.
            if one % other == 0:
                rows = factor.reshape(*factor.shape[:first], other, -1, *factor.shape[first + 1 :])
                factor = moves.squeeze(flow.merged(rows, [first + 1]), [first + 1])
                sizes[first] = now[new] = other
            elif other % one == 0:
                factor = factor.repeat(other // one, first)
                sizes[first] = other
            else:
                raise Stop("cuts them in a way that is not understood")
            refined[i : i + 1] = [
                moves.Block(range(first, first + 1), range(new, new + 1), True),
                moves.Block(
                    range(first + 1, block.before.stop), range(new + 1, block.after.stop), False
                ),
            ]
            break
        if len(vary) == sum(n != 1 for n in factor.shape):
            raise Stop("mixes them with axes of unknown size")
        factor = flow.merged(factor, vary)
    return [moves.reshape(factor, refined, sizes, now)]


def _squeeze(flow: Flow, node: ir.Node) -> None:
    factors = flow.of(node)
    axes = given(node, "axes", 1)
    if node.op_type == "Unsqueeze":
        assert axes is not None
        flow.make(node, [moves.expand(f, axes) for f in factors])
        return
    if axes is None:
        dims = ir.dims(node.inputs[0])
        if dims is None or not all(isinstance(n, int) for n in dims):
            raise Stop("removes axes that are not known")
        axes = tuple(a for a, n in enumerate(dims) if n == 1)
    flow.make(node, [moves.squeeze(f, axes) for f in factors])


def _expand(flow: Flow, node: ir.Node) -> None:
    flow.only(node, 0)
    factors = flow.of(node)
    rank = ir.rank(node.outputs[0])
    if rank is None:
        raise Stop("has an output of unknown rank")
    flow.make(node, [f.reshape((1,) * (rank - f.ndim) + f.shape) for f in factors])


def _tile(flow: Flow, node: ir.Node) -> None:
    if ir.opset(node) < 6:
        raise Stop("is an old form of Tile")
    flow.only(node, 0)
    factors = flow.of(node)
    if not factors:
        return
    repeats = ir.array(at(node, 1))
    for factor in factors:
        if repeats is None and any(n != 1 for n in factor.shape):
            raise Stop("computes how often it repeats them")
    times = [1] * factors[0].ndim if repeats is None else repeats.tolist()
    flow.make(
        node,
        [
            np.tile(f, [k if n != 1 else 1 for k, n in zip(times, f.shape, strict=True)])
            for f in factors
        ],
    )


def slices(node: ir.Node, rank: int) -> dict[int, slice | None]:
    """What Slice takes along which axes; None where that is computed.

    Raises:
        Stop: The axes are computed.
    """
    axes = given(node, "axes", 3)
    parts = [_bound(node, name, i) for name, i in (("starts", 1), ("ends", 2), ("steps", 4))]
    count = max(n for n, _ in parts)
    if axes is None and not count:
        raise Stop("computes along which axes it goes")
    if axes is None:
        axes = tuple(range(count))
    (_, starts), (_, ends), (known, steps) = parts
    found: dict[int, slice | None] = {}
    for i, axis in enumerate(axes):
        if starts is None or ends is None or (known and steps is None):
            found[axis % rank] = None
        else:
            found[axis % rank] = slice(starts[i], ends[i], 1 if steps is None else steps[i])
    return found


def _bound(node: ir.Node, name: str, index: int) -> tuple[int, tuple[int, ...] | None]:
    """How many bounds Slice has, 0 where that is unknown or it has none, and these."""
    value = at(node, index)
    if ir.opset(node) >= 10 and value is not None and ir.const(value) is None:
        shape = ir.static_shape(value)
        return (shape[0] if shape else 0), None
    found = given(node, name, index)
    return len(found or ()), found


def sliced(part: slice, size: int) -> slice:
    """A slice as Slice means it, for an axis of a size, as Python takes it."""
    start, end, step = part.start, part.stop, part.step
    if step > 0:
        return slice(start, end, step)
    start = min(start + size if start < 0 else start, size - 1)
    end = end + size if end < 0 else end
    return slice(start if start >= 0 else 0, end if end >= 0 else None, step)


@of_data
def _slice(flow: Flow, node: ir.Node, factors: Factors) -> None:
    parts = slices(node, factors[0].ndim)
    made = []
    for factor in factors:
        for axis, part in parts.items():
            size = factor.shape[axis]
            if size == 1:
                continue
            if part is None:
                raise Stop("computes which part of them it takes")
            factor = moves.picked(factor, axis, sliced(part, size))
        if not factor.size:
            raise Stop("takes nothing of them")
        made.append(factor)
    flow.make(node, made)


def _gather(flow: Flow, node: ir.Node) -> None:
    flow.freeze(flow.of(node, 1), node, "reads it as indices")
    axis = int(ir.attr(node, "axis", 0))
    indices = ir.array(at(node, 1))
    rank = ir.rank(node.inputs[1]) if indices is None else indices.ndim
    if rank is None:
        raise Stop("has indices of unknown rank")
    shape = flow.fixed(node.inputs[0])
    if shape is not None:
        if indices is None and len(shape) > 1:
            _embed(flow, node, shape, axis % len(shape), rank)
        return
    factors = flow.of(node)
    if not factors:
        return
    axis %= factors[0].ndim
    if indices is None:
        indices = np.zeros((1,) * rank, np.int64)
        factors = flow.apart(factors, [axis], node, "computes which of them it takes")
    flow.make(node, [moves.take(f, indices, axis) for f in factors])


def _embed(flow: Flow, node: ir.Node, shape: tuple[int, ...], axis: int, rank: int) -> None:
    """Rows of a table that computed indices choose: every other axis makes channels."""
    made = []
    for other, size in enumerate(shape):
        if other != axis and size > 1:
            ids = flow.fresh(size).reshape([size if a == other else 1 for a in range(len(shape))])
            flow.maker(node, 0, ids)
            made.append(moves.take(ids, np.zeros((1,) * rank, np.int64), axis))
    flow.make(node, made)


def _concat(flow: Flow, node: ir.Node) -> None:
    dims = [flow.dims(v) for v in node.inputs]
    rank = max((len(d) for d in dims if d is not None), default=0)
    axis = int(ir.attr(node, "axis", 1)) % rank
    operands = [flow.operand(node, i, rank) for i in range(len(dims))]
    along = [[f for f in o.factors if f.shape[axis] != 1] for o in operands]
    across = [
        dataclasses.replace(o, factors=tuple(f for f in o.factors if f.shape[axis] == 1))
        for o in operands
    ]
    made = list(flow.join(node, across))
    if any(along):
        made.append(_joined(flow, node, operands, along, axis))
    flow.make(node, made)


def _joined(
    flow: Flow, node: ir.Node, operands: list[Operand], along: list[list[Ids]], axis: int
) -> Ids:
    parts = []
    for operand, factors in zip(operands, along, strict=True):
        if len(factors) > 1:
            raise Stop("joins what varies twice along an axis")
        if factors:
            parts.append(factors[0])
            continue
        size = operand.dims[axis]
        if not isinstance(size, int):
            raise Stop("joins them with something of unknown size")
        ids = flow.fresh(size)
        shaped = ids.reshape([size if a == axis else 1 for a in range(len(operand.dims))])
        if axis in operand.losable:
            flow.adopt(node, operand.index, shaped)
        else:
            name = getattr(node.inputs[operand.index], "name", None)
            flow.freeze([ids], node, f"joins {name!r} with them, which has to stay as it is")
        parts.append(shaped)
    others = np.broadcast_shapes(*(moves.picked(p, axis, slice(0, 1)).shape for p in parts))
    full = [
        np.broadcast_to(p, [p.shape[axis] if a == axis else n for a, n in enumerate(others)])
        for p in parts
    ]
    return np.concatenate(full, axis)


@of_data
def _split(flow: Flow, node: ir.Node, factors: Factors) -> None:
    axis = int(ir.attr(node, "axis", 0)) % factors[0].ndim
    sizes = [(ir.dims(v) or {axis: None})[axis] for v in node.outputs]
    start = 0
    for i, size in enumerate(sizes):
        made = []
        for factor in factors:
            if factor.shape[axis] == 1:
                made.append(factor)
                continue
            if not isinstance(size, int):
                raise Stop("makes parts of unknown size")
            made.append(moves.picked(factor, axis, slice(start, start + size)))
        flow.make(node, made, i)
        start += size if isinstance(size, int) else 0


def pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """What Pad adds in front and behind, per axis.

    Raises:
        Stop: That is computed.
    """
    found, axes = given(node, "pads", 1), None
    if found is None:
        raise Stop("has no pads")
    if at(node, 3) is not None:
        axes = given(node, "axes", 3)
    order = range(rank) if axes is None else [a % rank for a in axes]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(order):
        before[axis], after[axis] = found[i], found[i + len(order)]
    return before, after


@of_data
def _pad(flow: Flow, node: ir.Node, factors: Factors) -> None:
    before, after = pads(node, factors[0].ndim)
    plain = ir.attr(node, "mode", "constant") == "constant"
    made = []
    for factor in factors:
        for axis, size in enumerate(factor.shape):
            front, back = before[axis], after[axis]
            if size == 1 or not (front or back):
                continue
            if not plain and (front > 0 or back > 0):
                raise Stop("repeats some of them")
            new = [flow.fresh(max(0, n)) for n in (front, back)]
            kept = moves.picked(factor, axis, slice(max(0, -front), size - max(0, -back)))
            factor = moves.pad(kept, axis, new[0], new[1])
        made.append(factor)
    flow.make(node, made)


def _depth_to_space(flow: Flow, node: ir.Node) -> None:
    """All channels that make one channel of more places go together."""
    area = int(ir.attr(node, "blocksize", 1)) ** 2
    first = ir.attr(node, "mode", "DCR") == "DCR"
    made = []
    for factor in flow.apart(flow.of(node), (2, 3), node, "moves them"):
        if factor.shape[1] == 1:
            made.append(factor)
            continue
        shape = (area, -1) if first else (-1, area)
        rows = factor.reshape(factor.shape[0], *shape, 1, 1)
        made.append(moves.squeeze(flow.merged(rows, [1 if first else 2]), [1 if first else 2]))
    flow.make(node, made)


def _space_to_depth(flow: Flow, node: ir.Node) -> None:
    area = int(ir.attr(node, "blocksize", 1)) ** 2
    factors = flow.apart(flow.of(node), (2, 3), node, "moves them")
    flow.make(node, [f if f.shape[1] == 1 else np.tile(f, (1, area, 1, 1)) for f in factors])


def _shape(flow: Flow, node: ir.Node) -> None:
    """Sizes of axes that lose nothing may be read at run time."""
    factors = flow.of(node)
    rank = factors[0].ndim
    used = _read(node, rank) if node.op_type == "Shape" else set(range(rank))
    for factor in factors:
        if any(factor.shape[a] != 1 for a in used):
            flow.freeze([factor], node, "computes with its shape at run time")


def _read(node: ir.Node, rank: int) -> set[int]:
    """The axes whose sizes are used of what Shape returns."""
    start, end = ir.attr(node, "start", 0), ir.attr(node, "end", rank)
    axes = np.arange(rank)[slice(start, end)]
    if node.outputs[0].is_graph_output():
        return set(axes.tolist())
    used: set[int] = set()
    for use in node.outputs[0].uses():
        user = use.node
        part = axes
        if user.op_type == "Gather" and use.idx == 0:
            indices = ir.array(at(user, 1))
            if indices is not None:
                part = axes[indices.ravel()]
        elif user.op_type == "Slice" and use.idx == 0:
            found = slices(user, 1).get(0) if ir.array(at(user, 1)) is not None else None
            if found is not None:
                part = axes[sliced(found, len(axes))]
        used |= set(part.tolist())
    return used


LAYOUT: dict[str, Handler] = {
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Shape", "Size"), _shape),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}

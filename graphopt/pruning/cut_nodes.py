"""Parameters of operators that depend on how many channels there are, and on which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses.channel_layout import pads, sliced, slices
from graphopt.pruning.losses import Losses
from graphopt.rewrite import Rewriter

__all__ = ["FIXES", "resized"]

Array = np.ndarray[Any, Any]
# (rewriter, node as it was analysed, node that is changed, losses)
Fix = Callable[[Rewriter, ir.Node, ir.Node, Losses], None]


def _conv(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """The number of groups, from how many channels there are and how many a group has."""
    groups = int(ir.attr(here, "group", 1))
    if groups == 1:
        return
    transposed = node.op_type == "ConvTranspose"
    kept = losses.at(node.outputs[0] if transposed else node.inputs[0]).get(1)
    if kept is None:
        return
    index = 3 if node.op_type == "QLinearConv" else 1
    shape = _shape(here.inputs[index])
    rw.set_attr(here, group=int(kept.sum()) // shape[1])


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Shape of a constant, or of what is behind one."""
    while value is not None and ir.const(value) is None:
        node = value.producer()
        value = None if node is None else node.inputs[0]
    data = ir.const(value)
    assert data is not None
    return tuple(data.shape.numpy())


def _recurrent(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    rw.set_attr(here, hidden_size=_shape(here.inputs[2])[-1])


def _group_norm(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    kept = losses.at(node.inputs[0]).get(1)
    if kept is not None:
        groups = int(ir.attr(node, "num_groups", 1))
        rw.set_attr(here, num_groups=groups * int(kept.sum()) // len(kept))


def _target(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """Shapes that Reshape and Expand are given."""
    sizes = {axis: int(k.sum()) for axis, k in losses.at(node.outputs[0]).items()}
    copied = list(ir.dims(node.inputs[0]) or (None,) * losses.rank(node.inputs[0]))
    for axis, kept in losses.at(node.inputs[0]).items():
        copied[axis : axis + 1] = [int(kept.sum())]
    value = here.inputs[1]
    assert value is not None
    with rw.at(here):
        new = resized(rw, node, value, sizes, copied)
    if new is not value:
        rw.set_input(here, 1, new)


def resized(
    rw: Rewriter,
    node: ir.Node,
    target: ir.Value,
    sizes: dict[int, int],
    copied: Sequence[int | str | None] = (),
) -> ir.Value:
    """The shape that a node is given, with other sizes.

    Args:
        rw: Rewriter, at the place of the node.
        node: Reshape, Expand or ConstantOfShape, with the shapes it was analysed with.
        target: The shape.
        sizes: New sizes of the output, by axis.
        copied: Sizes of the input of Reshape, which zeros in the target copy, as they are now.
    """
    data, rank = ir.array(target), ir.rank(node.outputs[0])
    assert rank is not None
    if data is None:
        return _overwritten(rw, target, sizes, rank) if sizes else target
    new, before = data.copy(), ir.dims(node.inputs[0]) or (None,) * len(copied)
    for i, entry in enumerate(data.tolist()):
        size = sizes.get(i + rank - len(data))
        if node.op_type == "Expand":
            if size is not None and entry != 1:
                new[i] = size
        elif entry > 0 and size is not None:
            new[i] = size
        elif entry == 0 and node.op_type == "Reshape" and not ir.attr(node, "allowzero", 0):
            wanted = before[i] if size is None else size
            if copied[i] != wanted:
                assert isinstance(wanted, int)
                new[i] = wanted
    return target if np.array_equal(new, data) else rw.const(new, target.name or "sizes")


def _overwritten(rw: Rewriter, value: ir.Value, sizes: dict[int, int], rank: int) -> ir.Value:
    """A computed shape with other sizes for some axes."""
    node = value.producer()
    if node is not None and node.op_type == "Concat" and len(node.inputs) == rank:
        parts = list(node.inputs)
        if all(ir.static_shape(parts[axis]) == (1,) for axis in sizes):
            for axis, size in sizes.items():
                parts[axis] = rw.const(np.array([size], np.int64), "size")
            return _typed(rw.op("Concat", *parts, like=node), rank)
    mask = np.array([axis in sizes for axis in range(rank)])
    new = np.array([sizes.get(axis, 0) for axis in range(rank)], np.int64)
    return _typed(rw.op("Where", rw.const(mask, "cut"), rw.const(new, "sizes"), value), rank)


def _typed(value: ir.Value, rank: int) -> ir.Value:
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([rank])
    return value


def _sizes(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """Sizes that Resize is given."""
    value = here.inputs[3] if len(here.inputs) > 3 else None
    sizes = {axis: int(k.sum()) for axis, k in losses.at(node.outputs[0]).items()}
    if value is None or not sizes:
        return
    axes = ir.attr(node, "axes") or ()
    rank = len(axes) or ir.rank(node.outputs[0]) or 0
    if axes:
        all_axes = ir.rank(node.outputs[0]) or 0
        order = [int(a) % all_axes for a in axes]
        sizes = {order.index(a): n for a, n in sizes.items() if a in order}
    data = ir.array(value)
    if data is None:
        with rw.at(here):
            rw.set_input(here, 3, _overwritten(rw, value, sizes, rank))
        return
    new = data.copy()
    for i, size in sizes.items():
        new[i] = size
    _parameter(rw, here, 3, new)


def _slice(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """Bounds in what is left; channels that are no longer evenly spaced are gathered."""
    lost = losses.at(node.inputs[0])
    rank = losses.rank(node.inputs[0])
    parts = slices(node, rank)
    axes = [a for a in parts if a in lost]
    if not axes:
        return
    changed: dict[int, slice] = {}
    for axis in axes:
        kept, part = lost[axis], parts[axis]
        assert part is not None
        taken = np.arange(len(kept))[sliced(part, len(kept))]
        places = (np.cumsum(kept) - 1)[taken[kept[taken]]]
        steps = np.unique(np.diff(places))
        if len(steps) > 1:
            with rw.at(here):
                source = rw.op("Gather", here.inputs[0], rw.const(places, "channels"), axis=axis)
                source.type = here.inputs[0].type  # type: ignore[union-attr]
            rw.set_input(here, 0, source)
            changed[axis] = slice(0, len(places), 1)
        else:
            step = int(steps[0]) if len(steps) else 1
            start, last = int(places[0]), int(places[-1])
            end = last + 1 if step > 0 else last - 1
            changed[axis] = slice(start, end if end >= 0 else -len(kept) - 1, step)
    _bounds(rw, node, here, list(parts), changed)


def _bounds(
    rw: Rewriter, node: ir.Node, here: ir.Node, axes: list[int], changed: dict[int, slice]
) -> None:
    columns = {
        "starts": (1, {a: s.start for a, s in changed.items()}),
        "ends": (2, {a: s.stop for a, s in changed.items()}),
        "steps": (4, {a: s.step for a, s in changed.items()}),
    }
    for name, (index, new) in columns.items():
        if name in node.attributes:
            found = list(ir.attr(node, name))
            rw.set_attr(here, **{name: [new.get(a, found[i]) for i, a in enumerate(axes)]})
        elif ir.opset(node) >= 10:
            value = here.inputs[index] if index < len(here.inputs) else None
            data = ir.array(value) if value is not None else np.ones(len(axes), np.int64)
            if data is None:
                assert value is not None
                with rw.at(here):
                    rw.set_input(
                        here,
                        index,
                        _overwritten(
                            rw, value, {axes.index(a): n for a, n in new.items()}, len(axes)
                        ),
                    )
                continue
            fresh = np.array([new.get(a, int(data[i])) for i, a in enumerate(axes)], data.dtype)
            if not np.array_equal(fresh, data):
                if index == 4 and (len(here.inputs) < 4 or here.inputs[3] is None):
                    _parameter(rw, here, 3, np.array(axes, np.int64))
                _parameter(rw, here, index, fresh)


def _squeeze(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """Axes that go, where these are all of size 1: a last channel makes one more of these."""
    if "axes" in node.attributes or len(node.inputs) > 1:
        return
    axes = [a for a, n in enumerate(ir.dims(node.inputs[0]) or ()) if n == 1]
    if ir.opset(node) < 13:
        rw.set_attr(here, axes=axes)
    else:
        _parameter(rw, here, 1, np.array(axes, np.int64))


def _split(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    rank = losses.rank(node.inputs[0])
    axis = int(ir.attr(node, "axis", 0)) % rank
    if axis not in losses.at(node.inputs[0]):
        return
    sizes = []
    for value in node.outputs:
        kept = losses.at(value).get(axis)
        dims = ir.dims(value)
        assert dims is not None
        size = dims[axis] if kept is None else int(kept.sum())
        assert isinstance(size, int)
        sizes.append(size)
    if ir.opset(node) < 13:
        rw.set_attr(here, split=sizes)
        return
    _parameter(rw, here, 1, np.array(sizes, np.int64))
    rw.set_attr(here, num_outputs=None)


def _pad(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    """How many of the new channels stay, in front and behind."""
    rank = losses.rank(node.inputs[0])
    before, after = pads(node, rank)
    inside, outside = losses.at(node.inputs[0]), losses.at(node.outputs[0])
    dims = ir.dims(node.inputs[0]) or ir.dims(node.outputs[0]) or ()
    for axis in {*inside, *outside}:
        front, back = before[axis], after[axis]
        if not front and not back:
            continue
        source, result = inside.get(axis), outside.get(axis)
        size = dims[axis] if source is None else len(source)
        assert isinstance(size, int)
        if front > 0 and result is not None:
            before[axis] = int(result[:front].sum())
        elif front < 0 and source is not None:
            before[axis] = -int(source[:-front].sum())
        if back > 0 and result is not None:
            after[axis] = int(result[len(result) - back :].sum())
        elif back < 0 and source is not None:
            after[axis] = -int(source[size + back :].sum())
    if "pads" in node.attributes:
        rw.set_attr(here, pads=before + after)
        return
    _parameter(rw, here, 1, np.array(before + after, np.int64))
    if len(here.inputs) > 3:
        rw.set_input(here, 3, None)


def _gather(rw: Rewriter, node: ir.Node, here: ir.Node, losses: Losses) -> None:
    lost = losses.at(node.inputs[0])
    rank = ir.rank(node.inputs[0])
    indices = ir.array(node.inputs[1])
    if not lost or rank is None or indices is None:
        return
    axis = int(ir.attr(node, "axis", 0)) % rank
    if axis not in lost:
        return
    kept, outside = lost[axis], losses.at(node.outputs[0])
    new = (np.cumsum(kept) - 1)[np.where(indices < 0, indices + len(kept), indices)]
    for i in range(indices.ndim):
        if axis + i in outside:
            new = new.compress(outside[axis + i], i)
    _parameter(rw, here, 1, new.astype(indices.dtype))


def _parameter(rw: Rewriter, here: ir.Node, index: int, data: Array) -> None:
    old = here.inputs[index] if index < len(here.inputs) else None
    with rw.at(here):
        rw.set_input(here, index, rw.const(data, (old and old.name) or "sizes"))


FIXES: dict[str, Fix] = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"), _conv),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Reshape", "Expand"), _target),
    "Gather": _gather,
    "GroupNormalization": _group_norm,
    "Pad": _pad,
    "Resize": _sizes,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
}

"""What is made of constants alone, apart from sizes, and can lose elements as a constant can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from graphopt import ir
from graphopt.analyses.channel_classes import Ids

__all__ = ["Constant", "carried", "constant", "is_move", "sources"]

# What these make of constants has an element for each of theirs.
_SAME = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
_MOVES = frozenset({
    "ConstantOfShape", "Expand", "Gather", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor made of constants.

    Attributes:
        dims: Its sizes, as far as they are known.
        axes: Axes along which it can lose elements.
        plain: Whether it is a constant, in another type at most.
    """

    dims: tuple[int | str | None, ...]
    axes: frozenset[int]
    plain: bool


def constant(
    value: ir.Value, inner: Callable[[ir.Value | None], Constant | None]
) -> Constant | None:
    """What is known of a value that is made of constants, None for others.

    Args:
        value: Any value.
        inner: The same for what its node reads.
    """
    tensor = ir.const(value)
    if tensor is not None:
        shape = tuple(tensor.shape.numpy())
        return Constant(shape, frozenset(range(len(shape))), True)
    node = value.producer()
    if node is None or not is_move(node):
        return None
    if node.op_type == "ConstantOfShape":
        dims = ir.dims(value)
        return None if dims is None else Constant(dims, _static(dims), False)
    data = inner(node.inputs[0])
    if data is None:
        return None
    if node.op_type in _SAME:
        others = [inner(v) for v in node.inputs[1:] if v is not None]
        # Of scales per block it is not known which elements they belong to after a cut.
        if any(c is None or len(c.dims) > 1 for c in others):
            return None
        return data
    dims = ir.dims(value)
    if dims is None:
        return None
    axes = {a for a, b in carried(node, data.dims).items() if b is None or b in data.axes}
    return Constant(dims, frozenset(axes) & _static(dims), False)


def _static(dims: tuple[int | str | None, ...]) -> frozenset[int]:
    return frozenset(a for a, n in enumerate(dims) if isinstance(n, int))


def carried(node: ir.Node, before: tuple[int | str | None, ...]) -> dict[int, int | None]:
    """For axes of what a node makes of a constant those of the constant.

    Args:
        node: An operator that keeps or moves data.
        before: Sizes of its data input.

    Returns:
        By axis of the output that of the input; None where the node was told the size. Axes along
        which elements cannot be left out are not there.
    """
    rank = len(before)
    same: dict[int, int | None] = {a: a for a in range(rank)}
    out = ir.rank(node.outputs[0]) or 0
    match node.op_type:
        case "ConstantOfShape":
            return dict.fromkeys(range(out))
        case "Expand":
            shift = out - rank
            return {
                a: a - shift if a >= shift and before[a - shift] != 1 else None for a in range(out)
            }
        case "Gather":
            axis = int(ir.attr(node, "axis", 0)) % rank
            new = out - rank + 1
            return {a if a < axis else a + new - 1: a for a in range(rank) if a != axis}
        case "Slice":
            axes = _numbers(node, "axes", 3)
            if axes is None:
                return {}
            return {a: a for a in same if a not in {k % rank for k in axes}}
        case "Transpose":
            perm = ir.attr(node, "perm") or tuple(reversed(range(rank)))
            return dict(enumerate(perm))
        case "Squeeze":
            axes = _numbers(node, "axes", 1)
            if axes is None:
                return {}
            return dict(enumerate(a for a in range(rank) if a not in {k % rank for k in axes}))
        case "Unsqueeze":
            axes = _numbers(node, "axes", 1)
            if axes is None:
                return {}
            new_axes = {k % out for k in axes}
            return dict(zip((a for a in range(out) if a not in new_axes), range(rank), strict=True))
    return same


def is_move(node: ir.Node) -> bool:
    """Whether a node makes a constant of a constant."""
    return not node.domain and node.op_type in _SAME | _MOVES


def sources(
    value: ir.Value | None, factors: tuple[Ids, ...]
) -> Iterator[tuple[ir.Value, tuple[Ids, ...]]]:
    """Constants that a value is made of, with the labels of each."""
    if value is None:
        return
    node = value.producer()
    if ir.const(value) is not None or node is None:
        yield value, factors
        return
    if node.op_type == "ConstantOfShape":
        return
    before = ir.dims(node.inputs[0]) or ()
    axes = carried(node, before)
    moved = []
    for factor in factors:
        axis = axes.get(int(np.argmax(factor.shape)))
        if axis is not None:
            shape = [1] * len(before)
            shape[axis] = -1
            moved.append(factor.reshape(shape))
    yield from sources(node.inputs[0], tuple(moved))
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        axis = int(ir.attr(node, "axis", 1)) % max(len(before), 1)
        along = tuple(f.reshape(-1) for f in moved if f.shape[axis] > 1)
        for each in node.inputs[1:]:  # scales and zero points
            yield from sources(each, along if ir.rank(each) == 1 else ())


def _numbers(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    found = ir.attr(node, name)
    if found is None and index < len(node.inputs):
        data = ir.array(node.inputs[index])
        found = None if data is None else data.ravel().tolist()
    return None if found is None else tuple(found)

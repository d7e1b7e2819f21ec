"""What operators that move data do to an array of ids, which has size 1 where it does not vary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from graphopt.analyses.channel_classes import Ids

__all__ = ["Block", "blocks", "expand", "lift", "pad", "picked", "reshape", "squeeze", "take"]

Dim = int | str | None
Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """Neighbouring axes of a tensor that a Reshape turns into neighbouring axes of another.

    Attributes:
        before: Axes of its input.
        after: Axes of its output.
        known: Whether they hold the same number of elements for sure, each of them a number.
    """

    before: range
    after: range
    known: bool


def blocks(before: Sequence[Dim], after: Sequence[Dim]) -> list[Block]:
    """The smallest blocks that a Reshape keeps apart; symbols are atoms, None is unlike all.

    Row-major order keeps apart what lies before and behind a place where products of sizes from
    the front, or from the back, are equal. What stays between is one block that is not known.
    """
    front = _matched(before, after)
    i = front[-1].before.stop if front else 0
    j = front[-1].after.stop if front else 0
    back = [
        Block(_mirrored(b.before, len(before)), _mirrored(b.after, len(after)), b.known)
        for b in reversed(_matched(before[i:][::-1], after[j:][::-1]))
    ]
    m = back[0].before.start if back else len(before)
    n = back[0].after.start if back else len(after)
    middle = [Block(range(i, m), range(j, n), False)] if m > i or n > j else []
    return [*front, *middle, *back]


def _mirrored(axes: range, rank: int) -> range:
    return range(rank - axes.stop, rank - axes.start)


def _matched(before: Sequence[Dim], after: Sequence[Dim]) -> list[Block]:
    """Blocks from the front, as far as sizes tell."""
    found: list[Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        one = before[i] if i < len(before) else None
        other = after[j] if j < len(after) else None
        m, n = i, j
        if one is not None and one == other:
            m, n = i + 1, j + 1
        elif one == 1:
            m = i + 1
        elif other == 1:
            n = j + 1
        else:
            a: Dim = one
            b: Dim = other
            m, n = i + 1, j + 1
            while isinstance(a, int) and isinstance(b, int) and a != b:
                if a < b:
                    size = before[m] if m < len(before) else None
                    a = a * size if isinstance(size, int) else None
                    m += 1
                else:
                    size = after[n] if n < len(after) else None
                    b = b * size if isinstance(size, int) else None
                    n += 1
            if not isinstance(a, int) or a != b or a == 0:
                return found
        found.append(Block(range(i, m), range(j, n), True))
        i, j = m, n
    return found


def reshape(ids: Ids, parts: Sequence[Block], before: Sequence[Dim], after: Sequence[Dim]) -> Ids:
    """Ids of the output of a Reshape, of ids that vary within known blocks only."""
    full, shape = list(ids.shape), []
    for block in parts:
        if any(ids.shape[a] != 1 for a in block.before):
            for a in block.before:
                size = before[a]
                full[a] = size if isinstance(size, int) else ids.shape[a]
            if len(block.before) == len(block.after) == 1:
                shape.append(full[block.before[0]])
            else:
                shape += [size for a in block.after if isinstance(size := after[a], int)]
        else:
            shape += [1] * len(block.after)
    return np.broadcast_to(ids, full).reshape(shape)


def take(ids: Ids, indices: Array, axis: int) -> Ids:
    """Ids of the output of Gather."""
    if ids.shape[axis] == 1:
        return ids.reshape(*ids.shape[:axis], *(1,) * indices.ndim, *ids.shape[axis + 1 :])
    return ids.take(indices, axis)


def picked(ids: Ids, axis: int, where: slice | Ids) -> Ids:
    """Ids of a part along an axis."""
    if ids.shape[axis] == 1:
        return ids
    index: list[slice | Ids] = [slice(None)] * ids.ndim
    index[axis] = where
    return ids[tuple(index)]


def pad(ids: Ids, axis: int, before: Ids, after: Ids) -> Ids:
    """Ids with others in front and behind along an axis, which do not vary along other axes."""
    parts = [before, after]
    for i, new in enumerate(parts):
        shape = [1] * ids.ndim
        shape[axis] = len(new)
        full = list(ids.shape)
        full[axis] = len(new)
        parts[i] = np.broadcast_to(new.reshape(shape), full)
    return np.concatenate([parts[0], ids, parts[1]], axis)


def squeeze(ids: Ids, axes: Sequence[int]) -> Ids:
    """Ids without axes of size 1."""
    gone = {a % ids.ndim for a in axes}
    return ids.reshape([n for a, n in enumerate(ids.shape) if a not in gone])


def expand(ids: Ids, axes: Sequence[int]) -> Ids:
    """Ids with new axes of size 1, counted in the result."""
    rank = ids.ndim + len(axes)
    new = {a % rank for a in axes}
    sizes = iter(ids.shape)
    return ids.reshape([1 if a in new else next(sizes) for a in range(rank)])


def lift(ids: Ids, axes: Sequence[int], rank: int) -> Ids:
    """Ids of a tensor as ids of one of another rank, whose axes ``axes`` are those of the first."""
    shape = [1] * rank
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    for i in order:
        shape[axes[i]] = ids.shape[i]
    assert math.prod(shape) == ids.size
    return ids.transpose(order).reshape(shape)

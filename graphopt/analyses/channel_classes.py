"""Classes of channels: equalities of ids resolved all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["Ids", "connected", "rectangular", "varying"]

Ids = np.ndarray[Any, np.dtype[np.int64]]


def connected(count: int, pairs: Sequence[tuple[Ids, Ids]]) -> Ids:
    """The smallest element that each of ``count`` is connected with by pairs, itself included.

    Larger roots are hooked to smaller ones and paths halved until nothing changes, each time for
    all pairs at once.
    """
    roots = np.arange(count)
    if not pairs:
        return roots
    a = np.concatenate([p[0] for p in pairs])
    b = np.concatenate([p[1] for p in pairs])
    while True:
        one, other = roots[a], roots[b]
        if (one == other).all():
            return roots
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(above := roots[roots], roots):
            roots = above


def varying(ids: Ids) -> list[int]:
    """The axes along which an array of ids is not constant."""
    found = []
    for axis, size in enumerate(ids.shape):
        if size > 1 and (ids != ids.take([0], axis)).any():
            found.append(axis)
    return found


def rectangular(count: int, pairs: list[tuple[Ids, Ids]], factors: Iterable[Ids]) -> Ids:
    """Classes such that every factor varies along one axis at most, so that tensors stay tensors.

    Where channels lie along several axes, as those of heads do, the axis with the most classes
    left (the longest of such) keeps them, and they are merged over the others.

    Args:
        count: Number of ids.
        pairs: Ids that are equal, element by element.
        factors: Arrays of ids.

    Returns:
        The class of every id: the smallest id in it.
    """
    classes = connected(count, pairs)
    pending = [f for f in factors if sum(n > 1 for n in f.shape) > 1]
    while pending:
        more: list[tuple[Ids, Ids]] = []
        touched = np.zeros(count, bool)
        left = []
        for factor in pending:
            ids = classes[factor]
            axes = varying(ids)
            if len(axes) < 2:
                continue
            left.append(factor)
            if touched[ids].any():  # what is merged first may have settled it
                continue
            touched[ids] = True
            lines = max((_lines(ids, axis) for axis in axes), key=lambda x: (x[0], len(x[1])))[1]
            more.append((np.broadcast_to(lines[:, :1], lines.shape).ravel(), lines.ravel()))
        if more:
            above = connected(count, more)
            classes = above[classes]
        pending = left
    return classes


def _lines(ids: Ids, axis: int) -> tuple[int, Ids]:
    """How many classes are left if those at one place of an axis are merged, and these, in rows."""
    lines = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    used, local = np.unique(lines, return_inverse=True)
    local = local.reshape(lines.shape)
    first = np.broadcast_to(local[:, :1], local.shape)
    return len(np.unique(connected(len(used), [(first.ravel(), local.ravel())]))), lines

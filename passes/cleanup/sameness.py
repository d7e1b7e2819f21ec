"""When a value is certainly like another, or a constant does nothing to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir

__all__ = ["is_positive_zero", "keeps_shape", "same_shape", "small_ints", "uniform"]

_SMALL = 1024  # a shape, axes or repeats have no more elements than that


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two tensors have equal shapes: every dim the same number or the same symbol."""
    one, two = ir.dims(a), ir.dims(b)
    return one is not None and one == two and None not in one


def keeps_shape(value: ir.Value | None, other: Sequence[int]) -> bool:
    """Whether broadcasting a tensor with one of shape ``other`` leaves the tensor's shape."""
    have = ir.dims(value)
    if have is None:
        return len(other) == 0
    if len(other) > len(have):
        return False
    return all(o in (1, d) for o, d in zip(reversed(other), reversed(have), strict=False))


def small_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The elements of a small integer constant, or None for anything else."""
    tensor = ir.const(value)
    if tensor is None or not tensor.dtype.is_integer() or tensor.size > _SMALL:
        return None
    return tuple(int(i) for i in tensor.numpy().reshape(-1))


def uniform(array: np.ndarray[Any, Any], number: float) -> bool:
    """Whether there are elements and all of them equal ``number``."""
    # Weights differ in the first element, so that the rest of them is not read from disk.
    return array.size > 0 and bool(array.flat[0] == number) and bool((array == number).all())


def is_positive_zero(array: np.ndarray[Any, Any]) -> bool:
    """Whether all elements are zeros, and none is -0.0."""
    return uniform(array, 0) and not any(array.tobytes())

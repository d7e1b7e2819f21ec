"""The narrowest type that holds the very same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt import ir

__all__ = ["bits_of", "narrowest", "pieces"]

Array = np.ndarray[Any, Any]

_PIECE = 1 << 20
_BFLOAT16 = np.dtype(ir.DataType.BFLOAT16.numpy())
# In the order in which they are tried.
_TYPES = tuple(
    np.dtype(each)
    for each in (np.uint8, np.int8, np.float16, _BFLOAT16, np.uint16, np.int16, np.int32,
                 np.float32)
)  # fmt: skip


def bits_of(array: Array) -> Array:
    """The elements as unsigned integers of the same bits."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def pieces(array: Array) -> Iterator[Array]:
    """An array from one end to the other, in views of one axis."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def narrowest(array: Array) -> np.dtype[Any]:
    """The type of fewest bytes that keeps every bit of every element, the array's own if none does.

    NaN is kept in its own type: what a conversion makes of its bits is up to who converts.
    """
    dtype: np.dtype[Any]
    for dtype in _TYPES:
        if _may_hold(dtype, array.dtype) and _holds(dtype, array):
            return dtype
    dtype = array.dtype
    return dtype


def _may_hold(dtype: np.dtype[Any], given: np.dtype[Any]) -> bool:
    if given == np.bool_ or dtype.itemsize >= given.itemsize:
        return False
    real = given.kind == "f" or given == _BFLOAT16
    # Integers of 16 bits in floats are rarer than floats of 16 bits.
    return dtype.itemsize == 1 or (dtype.kind in "iu") != real


def _holds(dtype: np.dtype[Any], array: Array) -> bool:
    for piece in pieces(array):
        head = piece[:256]
        if not (_same(dtype, head) and _same(dtype, piece)):
            return False
    return True


def _same(dtype: np.dtype[Any], numbers: Array) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        back = numbers.astype(dtype).astype(numbers.dtype)
    exact = np.array_equal(bits_of(back), bits_of(numbers))
    # NaN is the one number that differs from itself.
    return bool(exact and (numbers == numbers).all())

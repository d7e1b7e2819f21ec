"""Which of few different numbers each element of an array is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.storage.narrow import pieces

__all__ = ["different", "index"]

Array = np.ndarray[Any, Any]

_SMALL = 1 << 14  # elements that are sorted at once
_MOST = 1 << 16  # numbers that places of 16 bits tell apart
_HASHED = 512  # numbers that are found by a hash without collisions
_SLOTS = 16  # bits of the hash
_TRIES = 64


def different(numbers: Array) -> Array:
    """The different numbers of an array in ascending order, by sorting it.

    That takes a fraction of the time of ``numpy.unique``, which hashes.
    """
    ordered = np.sort(numbers, axis=None)
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    found: Array = ordered[first]
    return found


def index(numbers: Array, pays: Callable[[int], bool]) -> tuple[Array, Array] | None:
    """The different numbers of an array, and which of them each element is.

    Args:
        numbers: Unsigned integers, ``[count]``.
        pays: Whether so many different numbers are any use.

    Returns:
        The numbers, ``[different]``, and places among them, uint16 ``[count]``; None where there
        are too many.
    """
    if len(numbers) <= _SMALL:
        table, places = np.unique(numbers, return_inverse=True)
        return (table, places.astype(np.uint16)) if pays(len(table)) else None
    table = different(numbers[:: len(numbers) // _SMALL | 1])
    found = np.empty(len(numbers), np.uint16)
    look_up = _finder(table)
    for part, out in zip(pieces(numbers), pieces(found), strict=True):
        while True:
            if len(table) > _MOST or not pays(len(table)):
                return None
            out[:] = look_up(part)
            others = part[table[out] != part]
            if not len(others):
                break
            # Some of them are enough to see that there are too many.
            table = np.concatenate([table, different(others[:_SMALL])])
            look_up = _finder(table)
    return table, found


def _finder(table: Array) -> Callable[[Array], Array]:
    """Places of numbers in a table; any place for those that are not in it."""
    bits = 8 * table.dtype.itemsize
    if bits <= _SLOTS:
        slots = np.zeros(1 << bits, np.uint16)
        slots[table] = np.arange(len(table))
        return lambda part: slots[part]
    if len(table) <= _HASHED:
        rng = np.random.default_rng(0)
        shift = table.dtype.type(bits - _SLOTS)
        for _ in range(_TRIES):
            factor = table.dtype.type(int(rng.integers(2 ** (bits - 1))) | 1)
            hashed = table * factor >> shift
            if len(np.unique(hashed)) == len(table):
                slots = np.zeros(1 << _SLOTS, np.uint16)
                slots[hashed] = np.arange(len(table))
                return lambda part: slots[part * factor >> shift]
    order = np.argsort(table)
    ordered = table[order]

    def search(part: Array) -> Array:
        return order[np.minimum(np.searchsorted(ordered, part), len(order) - 1)]

    return search

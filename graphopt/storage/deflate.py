"""What arrays take in a compressed file."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["deflated_nbytes"]

Array = np.ndarray[Any, Any]

_LEVEL = 6
_PIECE = 1 << 22


def deflated_nbytes(*arrays: Array) -> int:
    """Bytes of arrays after compression by zlib, at level 6 and in pieces of 4 MiB.

    Args:
        *arrays: Of any type.
    """
    pieces: list[Array] = []
    for array in arrays:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pieces.extend(data[at : at + _PIECE] for at in range(0, data.size, _PIECE))
    if len(pieces) < 2:
        return sum(map(_size, pieces))
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(_size, pieces))


def _size(piece: Array) -> int:
    return len(zlib.compress(piece.data, _LEVEL))

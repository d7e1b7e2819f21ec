"""Arrays that codes are made for."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def thinned(shape: tuple[int, ...], zeros: float, *, seed: int = 0, half: bool = False) -> Array:
    """Random floats, some of them zero; those of 16 bits where asked for."""
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < zeros, 0.0, rng.normal(size=shape))
    return array.astype(np.float16 if half else np.float32).astype(np.float32)


def clustered(shape: tuple[int, ...], entries: int, *, zeros: float = 0.0, seed: int = 0) -> Array:
    """Random floats of so many values, some of them zero."""
    rng = np.random.default_rng(seed)
    book = rng.normal(size=entries).astype(np.float32)
    array = book[rng.integers(0, entries, shape)]
    return np.where(rng.random(shape) < zeros, np.float32(0), array)


def clustered_rows(shape: tuple[int, int], entries: int, blocks: int, *, zeros: float = 0) -> Array:
    """Random floats of so many values in each of several blocks of rows."""
    rows = shape[0] // blocks
    parts = [clustered((rows, shape[1]), entries, zeros=zeros, seed=i) for i in range(blocks)]
    return np.concatenate(parts)


def quantized(shape: tuple[int, int], entries: int, unit: int, *, parts: bool = True) -> Array:
    """Rows of vectors of so many kinds, of others in each place where ``parts`` says so."""
    rng = np.random.default_rng(0)
    rows, columns = shape[0], shape[1] // unit
    books = rng.normal(size=(columns if parts else 1, entries, unit)).astype(np.float32)
    places = rng.integers(0, entries, (rows, columns))
    which = np.arange(columns) if parts else np.zeros(columns, int)
    return books[which, places].reshape(shape)


def all_kinds() -> dict[str, Array]:
    """One array for each kind of code, small."""
    rng = np.random.default_rng(0)
    two_four = thinned((12, 8, 4), 0.0)
    rank = np.argsort(np.argsort(np.abs(two_four), axis=2), axis=2)
    kept = rng.random((12, 8, 1, 1)) < 0.5
    few = rng.normal(size=(4, 18)).astype(np.float32)
    again = few[rng.integers(0, 4, 32)]
    return {
        "varied": thinned((16, 12), 0.0),
        "half": thinned((16, 12), 0.5, half=True),
        "few": thinned((16, 36), 0.95),
        "2:4": np.where(rank < 2, np.float32(0), two_four),
        "blocks": np.where(kept, thinned((12, 8, 3, 3), 0.0), np.float32(0)),
        "book": clustered((12, 9, 3, 3), 5),
        "wide book": clustered((12, 9, 3, 3), 70),
        "large book": clustered((40, 48), 300),
        "book of zeros": clustered((12, 8, 3, 3), 6, zeros=0.5),
        "book of few": clustered((30, 36), 16, zeros=0.95),
        "rows": clustered_rows((24, 40), 4, 6),
        "rows with zeros": clustered_rows((24, 40), 4, 6, zeros=0.6),
        "columns": np.ascontiguousarray(clustered_rows((24, 40), 4, 6).T),
        "parts": quantized((64, 24), 7, 4),
        "vectors": quantized((32, 24), 7, 2, parts=False),
        "channels": again,
        "sparse vectors": np.where(
            rng.random((32, 1)) < 0.5, few[rng.integers(0, 4, 32)], 0
        ).astype(np.float32),
        "one value": np.full((12, 7), 0.3, np.float32),
        "repeated": np.repeat(thinned((12, 1, 5), 0.0), 7, axis=1),
        "minus zero": np.where(rng.random((16, 16)) < 0.5, np.float32(-0.0), np.float32(0)),
        "integers": rng.integers(-100, 100, (16, 12)).astype(np.float32),
    }

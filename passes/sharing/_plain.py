"""Few values for numbers by themselves, whatever reads them, in the memory of a piece of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.passes.sharing._constants import Constant, pieces
from graphopt.sharing.books import padded
from graphopt.sharing.kmeans import centres, counted, gathered, nearest
from graphopt.sharing.level import Level
from graphopt.sharing.problems import halved
from graphopt.sharing.vectors import nearest_vectors, vector_centres

__all__ = ["errors", "tensor_of"]

Array = np.ndarray[Any, Any]

# Numbers that are sorted; of more, neighbours are counted together.
_FEW = 1 << 18
# Vectors that books are found from.
_SAMPLE = 1 << 16
_HIGHEST = float(np.finfo(np.float16).max)


def errors(constant: Constant, levels: Sequence[Level]) -> Array:
    """Squared error of levels of some entries in units of the energy, ``[levels]``."""
    found = np.zeros(len(levels))
    for i, level in enumerate(levels):
        if level.unit > 1:
            book = _vectors(constant, level)
            found[i] = sum(_off(units, book) for units in _units(constant, level))
    for block in {level.block for level in levels}:
        energy = 0.0
        for points, weights in _points(constant, block):
            energy += float(weights @ np.square(points))
            for i, level in enumerate(levels):
                if level.block == block and level.unit == 1:
                    found[i] += _error(points, weights, constant, level.entries)
    return found / max(energy, 1e-300)


def tensor_of(constant: Constant, level: Level) -> ir.TensorProtocol:
    """The constant with few values, computed whenever it is read.

    So that no more than one of many large constants is in memory.
    """
    before = constant.tensor
    dtype, listed = before.dtype, constant.listed is not None
    if not level.entries:
        if constant.whole or _most(before) > _HIGHEST:
            return before
        return _lazy(before, lambda part, _at: part.astype(np.float16).astype(part.dtype), 1)
    if level.unit > 1:
        book = _vectors(constant, level)
        return _lazy(
            before,
            lambda part, _at: book[nearest_vectors(part.reshape(-1, level.unit), book)].reshape(-1),
            level.unit,
        )
    table = np.stack([
        padded(_book(*each, constant, level.entries), level.entries)
        for each in _points(constant, level.block)
    ]).astype(dtype.numpy())  # fmt: skip
    size = level.block * constant.columns

    def replaced(part: Array, at: int) -> Array:
        if not size:
            out = table[0][nearest(part, table[0])]
        else:
            books = table[at // size : (at + len(part)) // size]
            blocks = part.reshape(len(books), size)
            out = np.concatenate([b[nearest(p, b)] for b, p in zip(books, blocks, strict=True)])
        return np.where(part == 0, part, out) if listed else out

    return _lazy(before, replaced, max(size, 1))


def _units(constant: Constant, level: Level) -> Iterator[Array]:
    return (part.reshape(-1, level.unit) for part in pieces(constant.tensor, level.unit))


def _vectors(constant: Constant, level: Level) -> Array:
    """A book of vectors, found from some that are spread over the constant."""
    count = constant.tensor.size // level.unit
    step = -(-count // _SAMPLE)
    some = np.concatenate([units[::step] for units in _units(constant, level)])
    return halved(vector_centres(some, level.entries)).astype(constant.tensor.dtype.numpy())


def _off(units: Array, book: Array) -> float:
    return float(np.square(units - book[nearest_vectors(units, book)], dtype=np.float64).sum())


def _lazy(before: ir.TensorProtocol, change: Any, multiple: int) -> ir.TensorProtocol:
    def made() -> ir.TensorProtocol:
        out, at = np.empty(before.size, before.dtype.numpy()), 0
        for part in pieces(before, multiple):
            out[at : at + len(part)] = change(part, at)
            at += len(part)
        return ir.Tensor(out.reshape(before.shape.numpy()))

    return ir.LazyTensor(made, before.dtype, ir.Shape(tuple(before.shape.numpy())))


def _points(constant: Constant, block: int) -> Iterator[tuple[Array, Array]]:
    """The numbers that share a book, book by book."""
    tensor, listed = constant.tensor, constant.listed is not None

    def chosen(part: Array) -> Array:
        return part[part != 0] if listed else part

    if block:
        size = block * constant.columns
        for part in pieces(tensor, size):
            for each in part.reshape(-1, size):
                some = chosen(each)
                yield counted(some if some.size else each[:1])
    elif tensor.size <= _FEW:
        yield counted(np.concatenate([chosen(part) for part in pieces(tensor)]))
    else:
        yield gathered((chosen(part), None) for part in pieces(tensor))


def _book(points: Array, weights: Array, constant: Constant, entries: int) -> Array:
    found = centres(points, weights, entries)
    if not constant.whole:
        return halved(found)
    limits = np.iinfo(constant.tensor.dtype.numpy())
    return np.unique(np.clip(np.rint(found), limits.min, limits.max))


def _error(points: Array, weights: Array, constant: Constant, entries: int) -> float:
    book = _book(points, weights, constant, entries)
    return float(weights @ np.square(points - book[nearest(points, book)]))


def _most(tensor: ir.TensorProtocol) -> float:
    return max(float(np.abs(part).max(initial=0)) for part in pieces(tensor))

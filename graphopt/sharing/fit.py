"""Weights of few values such that what a layer computes changes least.

An error ``d`` in the weights of one output adds ``d G d`` to its mean squared error, where ``G``,
the metric, are the moments of what the layer reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.sharing.books import Books, Shared, padded
from graphopt.sharing.kmeans import centres, counted

__all__ = ["ROUNDS", "fit", "plain"]

Array = np.ndarray[Any, Any]

# Columns whose errors are passed on to all later columns at once, as one matrix product.
_BLOCK = 128
# Rounds of descent, and the share of the error that another one has to gain.
ROUNDS, _GAIN = 12, 0.01
# Steps towards the best entries for given places.
_STEPS = 16
# Share of the mean moment that is added to the diagonal where errors are passed on.
_DAMPING = 0.01


def plain(
    weights: Array,
    entries: int,
    block: int = 0,
    importance: Array | None = None,
    kept: Array | None = None,
) -> Shared:
    """Weights moved to the nearest of few values, which are what k-means finds.

    Args:
        weights: ``[rows, columns]`` float, finite.
        entries: Values of a book.
        block: Rows that share a book, a divisor of their number; 0 for all.
        importance: How much the square of an error counts, in the shape of ``weights``.
        kept: Which weights may be other than zero, bool, in the shape of ``weights``; all if None.
    """
    rows = block or len(weights)
    table = []
    for at in range(0, len(weights), rows):
        part = slice(at, at + rows)
        mass = None if importance is None else importance[part]
        some = weights[part]
        if kept is not None:
            some = some[kept[part]]
            mass = None if mass is None else mass[kept[part]]
        found = centres(*counted(some, mass), entries) if some.size else np.zeros(1)
        table.append(padded(found, entries))
    books = Books(np.stack(table), len(weights))
    return Shared(books.places(weights, kept), books)


def fit(
    goal: Array,
    metric: Array,
    entries: int,
    block: int = 0,
    kept: Array | None = None,
    start: Array | None = None,
    rounds: int = ROUNDS,
) -> Shared:
    """Weights of few values that are close to others in a metric.

    K-means gives the first values. Then weights take the nearest value column by column, those of
    the largest moments first, and the columns to come make up for the error (GPTQ); the best values
    for these places follow by least squares, and coordinate descent over places and least squares
    over values take turns.

    Args:
        goal: The best weights of any values, ``[groups, rows of a group, columns]`` float64.
        metric: ``[groups, columns, columns]`` float64, positive definite.
        entries: Values of a book.
        block: Rows, counted over all groups, that share a book; 0 for all.
        kept: Which weights may be other than zero, bool ``[rows, columns]``; all if None.
        start: Weights whose values are clustered instead of the goal's, in its shape; with zeros
            elsewhere than in ``kept``.
        rounds: Of descent, at most.

    Returns:
        Places and books of ``[rows of all groups, columns]``.

    References:
        Frantar et al., "GPTQ" (2022), for passing errors on; Han et al., "Deep Compression" (2016),
        for values by k-means; Egiazarian et al., "AQLM" (2024), for values by least squares in
        turns with places.
    """
    groups, rows, columns = goal.shape
    order = np.argsort(-np.einsum("gcc->c", metric), kind="stable")
    back = np.argsort(order)
    goal, metric = goal[:, :, order], metric[:, order][:, :, order]
    kept = None if kept is None else kept[:, order]
    first = goal if start is None else start[:, :, order]
    root = _inverse_root(metric)
    # A weight whose error the others can make up for counts little.
    alone = np.repeat(np.square(np.einsum("gcc->gc", root)) ** -1.0, rows, axis=0)
    importance = np.broadcast_to(alone, (groups * rows, columns))
    nearest = plain(first.reshape(-1, columns), entries, block, importance, kept)
    passed = Shared(_compensated(goal, nearest.books, root, kept), nearest.books)
    better = min(passed, nearest, key=lambda each: _error(each, goal, metric))
    found = _refitted(better, goal, metric)
    least = _error(found, goal, metric)
    for _ in range(rounds):
        new = _refitted(_descended(found, goal, metric, kept), goal, metric)
        error = _error(new, goal, metric)
        if error < least:
            found = new
        if not error < least * (1 - _GAIN):
            break
        least = error
    return Shared(found.places[:, back], found.books)


def _error(found: Shared, goal: Array, metric: Array) -> float:
    off = found.values.reshape(goal.shape) - goal
    return float(np.vdot(off, off @ metric))


def _compensated(goal: Array, books: Books, root: Array, kept: Array | None) -> Array:
    """Places column by column; later columns make up for the errors of earlier ones."""
    groups, rows, columns = goal.shape
    w, places = goal.copy(), np.empty((groups * rows, columns), np.int64)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        part, u = w[:, :, start:stop], root[:, start:stop, start:stop]
        errors = np.empty_like(part)
        for j in range(stop - start):
            at = start + j
            column = part[:, :, j].reshape(-1)
            places[:, at] = books.column(column, None if kept is None else kept[:, at])
            value = books.values(places[:, at]).reshape(groups, rows)
            errors[:, :, j] = (part[:, :, j] - value) / u[:, j, None, j]
            part[:, :, j:] -= errors[:, :, j, None] * u[:, j, None, j:]
        w[:, :, stop:] -= errors @ root[:, start:stop, stop:]
    return places


def _descended(found: Shared, goal: Array, metric: Array, kept: Array | None) -> Shared:
    """Places that are best for one column after the other, all others being as they are."""
    groups, rows, columns = goal.shape
    places, books = found.places.copy(), found.books
    now = found.values.reshape(goal.shape)
    slope = (now - goal) @ metric
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        own, part = metric[:, start:stop, start:stop], slope[:, :, start:stop].copy()
        moves = np.empty_like(part)
        for j in range(stop - start):
            at = start + j
            best = now[:, :, at] - part[:, :, j] / own[:, j, None, j]
            places[:, at] = books.column(best.reshape(-1), None if kept is None else kept[:, at])
            moves[:, :, j] = books.values(places[:, at]).reshape(groups, rows) - now[:, :, at]
            part[:, :, j:] += moves[:, :, j, None] * own[:, j, None, j:]
        slope += moves @ metric[:, start:stop]
    return Shared(places, books)


def _refitted(found: Shared, goal: Array, metric: Array) -> Shared:
    """The best values for given places, by conjugate gradients for each book."""
    books, places = found.books, found.places
    diagonal = np.repeat(np.einsum("gcc->gc", metric), goal.shape[1], axis=0)
    scale = books.sums(places, diagonal)
    scale = np.where(scale > 0, scale, 1.0)

    def moments(weights: Array) -> Array:
        return books.sums(places, weights.reshape(goal.shape) @ metric)

    table = books.table
    left = moments(goal - found.values.reshape(goal.shape))
    near = left / scale
    step, gain = near, (left * near).sum(axis=1)
    enough = 1e-12 * gain
    for _ in range(min(table.shape[1], _STEPS)):
        moved = moments(Shared(places, books.having(step)).values)
        size = (step * moved).sum(axis=1)
        length = np.divide(gain, size, out=np.zeros_like(gain), where=size > 0)[:, None]
        table, left = table + length * step, left - length * moved
        near = left / scale
        new = (left * near).sum(axis=1)
        if (new <= enough).all():
            break
        step = near + np.divide(new, gain, out=np.zeros_like(gain), where=gain > 0)[:, None] * step
        gain = new
    return Shared(places, books.having(table)).ascending()


def _inverse_root(metric: Array) -> Array:
    """Upper Cholesky factors of the inverses of damped metrics."""
    index = np.arange(metric.shape[1])
    mean = np.einsum("gcc->g", metric)[:, None] / len(index)
    damped = metric.copy()
    damped[:, index, index] += _DAMPING * np.where(mean > 0, mean, 1.0)
    inverse = np.linalg.inv(damped)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return np.asarray(np.linalg.cholesky(inverse).transpose(0, 2, 1))

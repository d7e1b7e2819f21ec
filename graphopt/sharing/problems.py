"""Sharing in one layer: its problem without the bias, which follows the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.reconstruct.problem import Problem
from graphopt.sharing.books import Shared
from graphopt.sharing.fit import ROUNDS, fit
from graphopt.sharing.level import Level

__all__ = ["ZEROS", "halved", "kept_by", "shared_layer", "with_bias"]

Array = np.ndarray[Any, Any]

# Share of zeros from which on they stay what they are.
ZEROS = 0.25
# Share of the norm of weights that 16-bit floats may lose: rounding takes 0.0003.
_LOSS = 1e-3


def kept_by(weights: Array) -> Array | None:
    """Which weights are not zero, where so many are that they stay so; None otherwise."""
    zero = weights == 0
    return np.asarray(~zero) if weights.size and zero.mean() >= ZEROS else None


def halved(weights: Array) -> Array:
    """Numbers as 16-bit floats hold them; as they are where that would lose more than rounding."""
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16).astype(np.float64)
        lost = np.linalg.norm(half - weights)
    return half if lost <= _LOSS * np.linalg.norm(weights) else weights


def shared_layer(
    problem: Problem, level: Level, rounds: int = ROUNDS, same: Array | None = None
) -> Array:
    """The best weights of few values, without the bias, ``[groups, columns, outputs]`` float64.

    Args:
        problem: The layer's problem.
        level: How many values.
        rounds: Of descent, at most.
        same: Classes of output channels that get the same weights, ``[outputs]``, counted from 0;
            of a layer of one group, whose weights then have a book for all.
    """
    if same is not None:
        return _of_classes(problem, level, rounds, same)
    layer = problem.layer
    if not level.entries:
        start = layer.matrix()
        kept = kept_by(start)
        weights = start if kept is not None else _goal(problem)
        return halved(weights).transpose(0, 2, 1)
    found = _fit(problem, level, rounds)
    table = halved(found.books.table)
    values = Shared(found.places, found.books.having(table)).values
    return values.reshape(len(problem.gram), -1, values.shape[1]).transpose(0, 2, 1)


def with_bias(problem: Problem, weights: Array) -> Array:
    """Weights in the form of ``Problem.optimum``: the bias makes up for the mean that they miss."""
    columns = weights.shape[1]
    out = problem.optimum.copy()
    if columns < out.shape[1]:
        means = problem.gram[:, columns, :columns] / problem.gram[:, columns, columns, None]
        out[:, columns] += np.einsum("gc,gco->go", means, out[:, :columns] - weights)
    out[:, :columns] = weights
    return out


def _of_classes(problem: Problem, level: Level, rounds: int, same: Array) -> Array:
    """All of a class are one channel, whose best weights are the mean of theirs."""
    sizes = np.bincount(same)
    goal = np.zeros((1, len(sizes), problem.layer.columns))
    np.add.at(goal[0], same, _goal(problem)[0])
    goal /= sizes[:, None]
    if not level.entries:
        values = halved(goal[0])
    else:
        found = fit(goal, _metric(problem), level.entries, rounds=rounds)
        values = Shared(found.places, found.books.having(halved(found.books.table))).values
    return np.ascontiguousarray(values[same].T[None])


def _fit(problem: Problem, level: Level, rounds: int) -> Shared:
    start = problem.layer.matrix()
    kept = kept_by(start.reshape(-1, start.shape[-1]))
    return fit(
        _goal(problem), _metric(problem), level.entries, level.block, kept,
        None if kept is None else start, rounds,
    )  # fmt: skip


def _goal(problem: Problem) -> Array:
    columns = problem.layer.columns
    return np.ascontiguousarray(problem.optimum[:, :columns].transpose(0, 2, 1))


def _metric(problem: Problem) -> Array:
    """Moments of the inputs, around their mean if a bias makes up for it."""
    columns = problem.layer.columns
    inner = problem.gram[:, :columns, :columns]
    if columns == problem.gram.shape[1]:
        return inner
    across, ones = problem.gram[:, columns, :columns], problem.gram[:, columns, columns]
    return inner - across[:, :, None] * (across / ones[:, None])[:, None, :]

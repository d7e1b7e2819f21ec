"""Zeros in weights such that outputs change least: which weights go, and what the others become.

What a linear operator's inputs are like matters through their Gram matrix ``G`` alone: a change
``d`` of the weights of one output adds ``d G d`` to its mean squared error. Where a bias makes up
for the mean, ``G`` is the covariance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["Zeros", "allocate", "magnitude", "optimal", "path", "refit"]

Array = np.ndarray[Any, Any]

# Share of the weights that go in one round, after which the others are optimal again.
_STEP = 1 / 32
# Bytes that the inverses of some rows may take; further rows come later, with zeros of their own.
_BYTES = 256 << 20
# Products that elimination and refitting may take; beyond it one inverse serves all rows.
_WORK = 2e11
# Columns of which the zeros are chosen at once, where one inverse serves all rows.
_COLUMNS = 128
# Steps between no zeros and the most, when they are shared out between matrices.
_GRID = 400


@dataclasses.dataclass(frozen=True)
class Zeros:
    """Which zeros a matrix of weights is to have.

    Attributes:
        ratio: Fraction of the weights, rounded to whole blocks; of each group where there are any.
        group: Columns of a group, each of which has its share of zeros, as in N:M sparsity; None
            where zeros may be anywhere.
        block: Rows and columns of the blocks that are zero as a whole.
    """

    ratio: float
    group: int | None = None
    block: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds, or two exclude each other.
        """
        if not 0 <= self.ratio < 1:
            raise ValueError(f"the ratio of zeros is in [0, 1), not {self.ratio}")
        if min(self.block) < 1 or (self.group is not None and self.group < 2):
            raise ValueError(f"no groups of {self.group} or blocks of {self.block} are possible")
        if self.group is not None and self.block != (1, 1):
            raise ValueError("zeros come in groups or in blocks, not both")

    def why_not(self, rows: int, columns: int) -> str | None:
        """Why a matrix cannot have such zeros; None if it can."""
        if self.group is not None and columns % self.group:
            return f"its {columns} columns are no groups of {self.group}"
        if rows % self.block[0] or columns % self.block[1]:
            return (
                f"its {rows} x {columns} weights are no blocks of {self.block[0]} x {self.block[1]}"
            )
        return None

    def check(self, weight: Array) -> None:
        """Raise ValueError if a matrix cannot have such zeros."""
        why = self.why_not(*weight.shape)
        if why is not None:
            raise ValueError(why)


def magnitude(weight: Array, zeros: Zeros) -> Array:
    """The weights with the smallest of them, or the blocks of least energy, set to zero.

    Args:
        weight: ``[out, in]`` float.
        zeros: Which zeros; of all rows together unless they come in groups.

    Raises:
        ValueError: The matrix is no multiple of the groups or blocks.
    """
    zeros.check(weight)
    r, c = zeros.block
    energy = np.square(weight.astype(np.float64)).reshape(weight.shape[0] // r, r, -1, c)
    gone = _lowest(energy.sum(axis=(1, 3)), zeros, zeros.ratio)
    return np.where(np.repeat(np.repeat(gone, r, axis=0), c, axis=1), 0.0, weight)


def optimal(weight: Array, gram: Array, zeros: Zeros, damping: float = 1e-4) -> Array:
    """The weights with zeros where these, made up for by all others, change outputs least.

    Weights go in rounds, each time those whose loss is least, rows competing with each other; what
    is left of a row is what least squares gives (Optimal Brain Surgeon). A matrix for which that
    would take minutes has its zeros chosen column by column with an inverse that all rows share
    (SparseGPT), and is then refitted.

    Args:
        weight: ``[out, in]`` float.
        gram: ``[in, in]``, mean products of pairs of inputs. It may be singular.
        zeros: Which zeros.
        damping: Share of the mean of the diagonal that is added on the diagonal.

    Returns:
        ``[out, in]`` float64.

    Raises:
        ValueError: The matrix is no multiple of the groups or blocks.

    References:
        Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon"
        (1992); Frantar and Alistarh, "Optimal Brain Compression" (2022), "SparseGPT" (2023).
    """
    (found,) = path(weight, gram, (zeros.ratio,), zeros, damping)
    return found


def path(
    weight: Array,
    gram: Array,
    ratios: Sequence[float],
    zeros: Zeros,
    damping: float = 1e-4,
) -> list[Array]:
    """What :func:`optimal` gives for several ratios, in little more time than for the largest.

    Args:
        weight: ``[out, in]`` float.
        gram: ``[in, in]``, mean products of pairs of inputs.
        ratios: Fractions of zeros, ascending; with groups, up to that of ``zeros``.
        zeros: Groups or blocks that the zeros come in.
        damping: Share of the mean of the diagonal that is added on the diagonal.

    Returns:
        ``[out, in]`` float64 for each ratio.

    Raises:
        ValueError: The matrix is no multiple of the groups or blocks.
    """
    zeros.check(weight)
    damped = _damped(gram, damping)
    bands, columns = weight.shape[0] // zeros.block[0], weight.shape[1]
    if bands * columns**3 <= _WORK:
        parts = [list(_eliminated(c, damped, ratios, zeros)) for c in _chunks(weight, zeros)]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]
    out = []
    for ratio in ratios:
        found = _columnwise(weight.astype(np.float64), damped, zeros, ratio)
        if bands * (columns * (1 - ratio)) ** 3 <= _WORK:
            found = refit(weight, gram, found != 0, damping)
        out.append(found)
    return out


def allocate(
    sizes: Sequence[int], noises: Array, ratios: Sequence[float], total: float
) -> list[float]:
    """Share zeros out between matrices so that the sum of their noises is least.

    At the optimum one more zero costs the same noise in each of them (Lagrange).

    Args:
        sizes: Number of weights of each matrix.
        noises: What each of the ratios costs in each matrix, ``[matrices, ratios]``, rising.
        ratios: Fractions of zeros that the noises are known at, ascending, above 0.
        total: Fraction of all weights that is to be zero, at most the last of ``ratios``.

    Returns:
        A ratio for each matrix.

    Raises:
        ValueError: There are not as many noises as matrices and ratios, or ``total`` is too large.
    """
    if np.shape(noises) != (len(sizes), len(ratios)):
        raise ValueError(f"noises of shape {np.shape(noises)} for {len(sizes)} x {len(ratios)}")
    if not 0 <= total <= ratios[-1]:
        raise ValueError(f"the total is in [0, {ratios[-1]}], not {total}")
    grid = np.linspace(0.0, ratios[-1], _GRID + 1)
    weights = np.asarray(sizes, np.float64)
    noise = np.stack([_curve(each, ratios, grid) for each in np.maximum(noises, 1e-300)])
    gain = grid * weights[:, None]
    low, high = -700.0, 700.0  # logarithms of the noise that a zero may cost
    for _ in range(200):
        middle = (low + high) / 2
        picked = (noise - np.exp(middle) * gain).argmin(axis=1)
        if grid[picked] @ weights < total * weights.sum():
            low = middle
        else:
            high = middle
    below, above = ((noise - np.exp(e) * gain).argmin(axis=1) for e in (low, high))
    few, many = grid[below], grid[above]
    room = float((many - few) @ weights)
    share = (total * float(weights.sum()) - float(few @ weights)) / room if room else 0.0
    return [float(r) for r in few + np.clip(share, 0.0, 1.0) * (many - few)]


def _curve(noise: Array, ratios: Sequence[float], grid: Array) -> Array:
    """Noise between and below the ratios it is known at: its logarithm is nearly linear."""
    logs = np.log(np.maximum.accumulate(noise))
    slope = (logs[1] - logs[0]) / (ratios[1] - ratios[0]) if len(logs) > 1 else 0.0
    inside = np.interp(grid, ratios, logs)
    out = np.exp(np.where(grid < ratios[0], logs[0] - slope * (ratios[0] - grid), inside))
    return np.where(grid == 0, 0.0, out)


def refit(weight: Array, gram: Array, kept: Array, damping: float = 1e-4) -> Array:
    """The weights of least error among those that are zero in given places.

    Args:
        weight: What they stand for, ``[out, in]`` float.
        gram: ``[in, in]``, mean products of pairs of inputs.
        kept: ``[out, in]`` bool, False where they are zero.
        damping: Share of the mean of the diagonal that is added on the diagonal.

    Returns:
        ``[out, in]`` float64.
    """
    damped = _damped(gram, damping)
    goal = weight.astype(np.float64) @ damped
    out = np.zeros(weight.shape)
    same: dict[bytes, list[int]] = {}
    for i, row in enumerate(kept):
        same.setdefault(np.packbits(row).tobytes(), []).append(i)
    for rows in same.values():
        s = np.flatnonzero(kept[rows[0]])
        at = np.ix_(np.array(rows), s)
        out[at] = np.linalg.solve(damped[np.ix_(s, s)], goal[at].T).T
    return out


def _eliminated(
    weight: Array, damped: Array, ratios: Sequence[float], zeros: Zeros
) -> Iterator[Array]:
    each, before = _Elimination(weight, damped, zeros), 0.0
    for ratio in ratios:
        rounds = max(1, round((ratio - before) / _STEP))
        for i in range(rounds):
            each.reach(before + (ratio - before) * (i + 1) / rounds)
        before = ratio
        yield each.weight


class _Elimination:
    """Rows of a matrix that lose blocks of weights, those of least loss first.

    Rows of a block lose the same columns, so that they share an inverse: that of the Gram matrix of
    the columns that are left.
    """

    def __init__(self, weight: Array, damped: Array, zeros: Zeros) -> None:
        self.zeros = zeros
        r, c = zeros.block
        rows, columns = weight.shape
        inverse = np.linalg.inv(damped)
        inverse = (inverse + inverse.T) / 2
        self._weights = [np.asarray(w, np.float64) for w in weight.reshape(rows // r, r, columns)]
        self._inverses = [inverse] * (rows // r)
        self._alive = np.ones((rows // r, columns // c), bool)

    @property
    def weight(self) -> Array:
        """``[out, in]``: what the rows are now."""
        c = self.zeros.block[1]
        out = np.zeros((len(self._weights), self.zeros.block[0], self._alive.shape[1] * c))
        for band, alive, weights in zip(out, self._alive, self._weights, strict=True):
            band[:, np.repeat(alive, c)] = weights
        return out.reshape(-1, out.shape[2])

    def reach(self, ratio: float) -> None:
        """Remove weights until this fraction is zero."""
        scores = np.full(self._alive.shape, -1.0)
        for i, alive in enumerate(self._alive):
            scores[i, alive] = self._scores(i)
        # What is gone already has the lowest score of all.
        gone = _lowest(scores, self.zeros, ratio)
        for i, band in enumerate(gone):
            new = band[self._alive[i]]
            if new.any():
                self._remove(i, new)
            self._alive[i] &= ~band

    def _scores(self, i: int) -> Array:
        """What removing each block that is left adds to the error."""
        c = self.zeros.block[1]
        weights, inverse = self._weights[i], self._inverses[i]
        if c == 1:
            return np.asarray(np.square(weights).sum(axis=0) / np.diag(inverse))
        n = len(inverse) // c
        own = np.einsum("icid->icd", inverse.reshape(n, c, n, c))
        w = weights.reshape(len(weights), n, c).transpose(1, 2, 0)
        return np.asarray((w * np.linalg.solve(own, w)).sum(axis=(1, 2)))

    def _remove(self, i: int, new: Array) -> None:
        out = np.repeat(new, self.zeros.block[1])
        gone, left = np.flatnonzero(out), np.flatnonzero(~out)
        weights, inverse = self._weights[i], self._inverses[i]
        across, own = inverse[np.ix_(left, gone)], inverse[np.ix_(gone, gone)]
        moved = np.linalg.solve(own, np.concatenate([weights[:, gone].T, across.T], axis=1))
        rows = len(weights)
        self._weights[i] = weights[:, left] - (across @ moved[:, :rows]).T
        smaller = inverse[np.ix_(left, left)]
        smaller -= across @ moved[:, rows:]
        self._inverses[i] = smaller


def _columnwise(weight: Array, damped: Array, zeros: Zeros, ratio: float) -> Array:
    """Choose zeros some columns at a time; later columns make up for the errors of earlier ones."""
    inverse = np.linalg.inv(damped)
    root = np.linalg.cholesky((inverse + inverse.T) / 2).T
    r, c = zeros.block
    # Groups are chosen one by one, when the errors of all earlier ones are known.
    step = zeros.group or max(1, _COLUMNS // c) * c
    w, columns = weight.copy(), weight.shape[1]
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        part, u = w[:, start:stop], root[start:stop, start:stop]
        scores = np.square(part / np.diag(u)).reshape(len(w) // r, r, -1, c).sum(axis=(1, 3))
        gone = np.repeat(np.repeat(_lowest(scores, zeros, ratio), r, axis=0), c, axis=1)
        errors = np.zeros_like(part)
        for j in range(stop - start):
            errors[:, j] = np.where(gone[:, j], part[:, j], 0.0) / u[j, j]
            part[:, j:] -= errors[:, j : j + 1] * u[j : j + 1, j:]
        part[gone] = 0.0
        w[:, stop:] -= errors @ root[start:stop, stop:]
    return w


def _lowest(scores: Array, zeros: Zeros, ratio: float) -> Array:
    """Which blocks have the lowest scores, that many of all, but not too many of a group."""
    size = zeros.group or scores.size
    groups = scores.reshape(-1, size)
    most = round(size * zeros.ratio) if zeros.group else size
    full = zeros.ratio if zeros.group else 1.0
    count = round(len(groups) * most * (ratio / full)) if full else 0
    order = np.argsort(groups, axis=1, kind="stable")
    open_to = np.full(groups.shape, np.inf)
    picked = order[:, :most]
    np.put_along_axis(open_to, picked, np.take_along_axis(groups, picked, axis=1), axis=1)
    gone = np.zeros(scores.size, bool)
    gone[np.argsort(open_to, axis=None, kind="stable")[:count]] = True
    return gone.reshape(scores.shape)


def _chunks(weight: Array, zeros: Zeros) -> Iterator[Array]:
    """Rows whose inverses fit into memory together."""
    size = zeros.block[0]
    rows = max(1, int(_BYTES / 8 / weight.shape[1] ** 2)) * size
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows]


def _damped(gram: Array, damping: float) -> Array:
    """The Gram matrix, such that it has an inverse."""
    mean = float(np.diag(gram).mean())
    # Inputs that are always zero leave their weights to chance.
    return np.asarray(gram, np.float64) + (damping * mean if mean > 0 else 1.0) * np.eye(len(gram))

"""Weights as products of smaller tensors, fitted in the metric of what a layer reads."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Metric", "Product"]

Array = np.ndarray[Any, Any]

# Steps of conjugate gradients for one factor. More fit it better to factors that are to change yet.
_STEPS = 12
# Share of the pull on a factor that need not be followed.
_EXACT = 1e-8
# Ridge of the last factor, as a share of the mean moment: features may depend on each other.
_RIDGE = 1e-8


class Metric:
    """The squared error that weights of one group make in what the layer computes.

    The bias follows the weights, so that only the moments around the means count.

    Attributes:
        gram: Moments of the inputs around their means, ``[columns, columns]`` float64.
        target: The best weights, ``[columns, outputs]`` float64.
    """

    def __init__(self, gram: Array, target: Array, *, bias: bool) -> None:
        """Take the moments and the best weights of a group.

        Args:
            gram: As ``Problem.gram`` has it for the group.
            target: As ``Problem.optimum`` has it.
            bias: Whether their last column is that of the bias.
        """
        columns = len(gram) - int(bias)
        inner, self.target = gram[:columns, :columns], target[:columns]
        self._mean = np.zeros(columns)
        if bias:
            self._mean = gram[columns, :columns] / gram[columns, columns]
            inner = inner - np.outer(self._mean, gram[columns, :columns])
        self.gram = inner
        self._bias = target[columns:]
        self.pull = self.gram @ self.target

    def error(self, weights: Array) -> float:
        """Mean squared error beyond that of the target, summed over outputs."""
        off = weights - self.target
        return float(np.einsum("co,co->", off, self.gram @ off))

    def with_bias(self, weights: Array) -> Array:
        """The weights, and the bias that goes with them, if there is one, as the last row."""
        if not len(self._bias):
            return weights
        return np.concatenate([weights, self._bias + self._mean @ (self.target - weights)])


class Product:
    """A tensor that is a sum of products of others, as ``einsum`` writes it.

    Attributes:
        terms: Indices of each factor; ``c`` are input channels, ``o`` outputs, which only the last
            factor has, ``k`` and ``l`` elements of the kernel.
        whole: Indices of the tensor, those of columns first, then ``o``.
        factors: The factors.
    """

    def __init__(self, terms: Sequence[str], whole: str, factors: Sequence[Array]) -> None:
        self.terms, self.whole = tuple(terms), whole
        self.factors = [np.asarray(f, np.float64) for f in factors]
        self._sizes = {
            index: n
            for term, factor in zip(terms, self.factors, strict=True)
            for index, n in zip(term, factor.shape, strict=True)
        }

    def weights(self) -> Array:
        """The tensor as a matrix, ``[columns, outputs]``."""
        found = np.einsum(f"{','.join(self.terms)}->{self.whole}", *self.factors, optimize=True)
        return np.asarray(found).reshape(-1, self._sizes["o"])

    def fit(self, metric: Metric, sweeps: int) -> Product:
        """Fit the factors to weights, one after the other (alternating least squares).

        Args:
            metric: What the error is measured in.
            sweeps: How often all factors are fitted; the last one is in any case.
        """
        self._fit_last(metric)
        for _ in range(sweeps):
            for i in range(len(self.terms) - 1):
                self._fit(i, metric)
            self._fit_last(metric)
        return self

    def _fit_last(self, metric: Metric) -> None:
        """The last factor: linear in features that the others make of the columns."""
        basis = self._basis()
        moments = basis.T @ metric.gram @ basis
        # Where all features are zero, any number does.
        moments[np.diag_indices_from(moments)] += _RIDGE * np.trace(moments) / len(moments) or 1.0
        found = np.linalg.solve(moments, basis.T @ metric.pull)
        self.factors[-1] = found.reshape(self.factors[-1].shape)

    def _basis(self) -> Array:
        """What the other factors make of the last one, ``[columns, elements per output]``."""
        *others, last = self.terms
        rows = last[:-1]
        columns = self.whole[:-1]
        free = iter(sorted(set(string.ascii_lowercase) - set("".join(self.terms)) - {"o"}))
        renamed, same = "", []
        for index in rows:
            if index not in columns:
                renamed += index
                continue
            # The factor has an element of its own for each of these.
            twin = next(free)
            renamed += twin
            same.append((f"{index}{twin}", np.eye(self._sizes[index])))
        terms = [*others, *(term for term, _ in same)]
        arrays = [*self.factors[:-1], *(array for _, array in same)]
        found = np.einsum(f"{','.join(terms)}->{columns}{renamed}", *arrays, optimize=True)
        return np.asarray(found).reshape(metric_columns(self._sizes, columns), -1)

    def _fit(self, place: int, metric: Metric) -> None:
        """One factor by conjugate gradients (Hestenes and Stiefel, 1952), from what it is."""
        others = [f for i, f in enumerate(self.factors) if i != place]
        terms = [t for i, t in enumerate(self.terms) if i != place]
        mine = self.terms[place]
        outward = f"{','.join([mine, *terms])}->{self.whole}"
        inward = f"{','.join([self.whole, *terms])}->{mine}"
        start = self.factors[place]
        shape = [self._sizes[i] for i in self.whole]
        out_path = np.einsum_path(outward, start, *others, optimize="greedy")[0]
        in_path = np.einsum_path(inward, np.empty(shape), *others, optimize="greedy")[0]

        def spread(factor: Array) -> Array:
            found = np.einsum(outward, factor, *others, optimize=out_path)
            return np.asarray(found).reshape(-1, shape[-1])

        def gather(weights: Array) -> Array:
            return np.asarray(np.einsum(inward, weights.reshape(shape), *others, optimize=in_path))

        found = start.copy()
        left = gather(metric.pull - metric.gram @ spread(found))
        step, size = left.copy(), float(np.vdot(left, left))
        # Below this what is left is rounding, which goes far where the moments are singular.
        least = _EXACT**2 * float(np.sum(gather(metric.pull) ** 2))
        for _ in range(_STEPS):
            if size <= least:
                break
            image = gather(metric.gram @ spread(step))
            length = size / max(float(np.vdot(step, image)), 1e-300)
            found += length * step
            left -= length * image
            new = float(np.vdot(left, left))
            step = left + new / size * step
            size = new
        self.factors[place] = found


def metric_columns(sizes: dict[str, int], indices: str) -> int:
    """Number of columns that indices count."""
    return int(np.prod([sizes[i] for i in indices]))

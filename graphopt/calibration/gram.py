"""Second moments of what linear operators read, and the ranges of single batches.

The error that rounding weights makes in the output of a linear operator depends on the Gram matrix
of its inputs alone, so that the inputs themselves need not be kept.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from graphopt.calibration.observers import Observer, extremes
from graphopt.errors import CalibrationError
from graphopt.runtime.values import Array

__all__ = ["BatchRanges", "Gram", "Patches", "spread"]

_Float64 = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class Patches:
    """How a convolution cuts its input ``[samples, channels, *spatial]`` into what it multiplies.

    A transposed one moves over its input with zeros put between the elements, its kernel reversed
    (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).

    Attributes:
        kernel: Size of the kernel along each spatial axis.
        strides: Steps between positions.
        pads: Zeros before each spatial axis, then those behind each, as ONNX orders them; fewer
            than none cut elements off.
        dilations: Distances between elements of the kernel.
        groups: Number of groups of channels.
        stretch: Distances of elements of the input, zeros between them, if the convolution is
            transposed; otherwise nothing.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    stretch: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The fields as text, which :meth:`parse` reads."""
        return ";".join(
            ",".join(map(str, part))
            for part in (
                self.kernel, self.strides, self.pads, self.dilations, (self.groups,), self.stretch,
            )
        )  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> Patches:
        """Read what :attr:`text` is."""
        kernel, strides, pads, dilations, (groups,), between = (
            tuple(int(n) for n in part.split(",") if n) for part in text.split(";")
        )
        return cls(kernel, strides, pads, dilations, groups, between)

    def cut(self, array: Array, rows: int) -> Array:
        """The patches of a batch, ``[positions, groups, channels of a group * kernel elements]``.

        Args:
            array: ``[samples, channels, *spatial]``.
            rows: Positions to use at most; they are spread evenly.

        Raises:
            CalibrationError: The array does not have the rank, or is smaller than the kernel.
        """
        n = len(self.kernel)
        if array.ndim != n + 2 or array.shape[1] % self.groups:
            raise CalibrationError(
                f"has shape {list(array.shape)}, which a kernel {list(self.kernel)} in "
                f"{self.groups} groups does not fit"
            )
        strides, dilations = self.strides or (1,) * n, self.dilations or (1,) * n
        padded = self._padded(array)
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True))
        if any(have < span for have, span in zip(padded.shape[2:], spans, strict=True)):
            raise CalibrationError(f"has shape {list(array.shape)}, smaller than the kernel")
        axes = tuple(range(2, n + 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        turn = -1 if self.stretch else 1
        steps = [*strides, *(turn * step for step in dilations)]
        windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]
        windows = np.moveaxis(windows, 1, n + 1)  # samples, positions, channels, kernel
        picked = np.unravel_index(
            spread(math.prod(windows.shape[: n + 1]), rows), windows.shape[: n + 1]
        )
        return np.asarray(windows[picked]).reshape(len(picked[0]), self.groups, -1)

    def _padded(self, array: Array) -> Array:
        """The input with zeros around its elements and between them."""
        n = len(self.kernel)
        pads, steps = self.pads or (0,) * (2 * n), self.stretch or (1,) * n
        sizes, targets, sources = [], [slice(None)] * 2, [slice(None)] * 2
        for length, step, before, behind in zip(
            array.shape[2:], steps, pads[:n], pads[n:], strict=True
        ):
            size = max((length - 1) * step + 1 + before + behind, 0)
            # Element i comes to lie at before + i * step, if that is inside.
            first = max(-(before // step), 0)
            last = max(min(length, -((before - size) // step)), first)
            sizes.append(size)
            targets.append(slice(before + first * step, before + last * step, step))
            sources.append(slice(first, last))
        padded = np.zeros((*array.shape[:2], *sizes), array.dtype)
        padded[tuple(targets)] = array[tuple(sources)]
        return padded


class Gram(Observer):
    """Second moments of the vectors that a linear operator multiplies by its weights.

    Args:
        axis: Axis of a matrix product that is summed over; elements along the others are rows.
        patches: How a convolution cuts its input, instead of ``axis``.
        rows: Rows of a batch that are used at most, spread evenly over it.
        limit: Columns up to which products of all pairs are kept; beyond that only squares are.

    Attributes:
        count: Number of rows seen.
        sum: ``[groups, columns]`` float64.
        squares: Sums of squares, ``[groups, columns]`` float64.
        peak: Largest absolute values, ``[groups, columns]`` float64.
        products: Sums of products of pairs, ``[groups, columns, columns]`` float64; empty beyond
            ``limit``.
    """

    def __init__(
        self, axis: int = -1, patches: Patches | None = None, rows: int = 1024, limit: int = 4608
    ) -> None:
        if rows < 1 or limit < 0:
            raise CalibrationError(f"needs a row at least, and a limit: not {rows} and {limit}")
        self.axis, self.rows, self.limit = axis, rows, limit
        # A cache of observers keeps strings, but no objects.
        self._patches = None if patches is None else patches.text
        self.count = 0
        self.sum: _Float64 = np.empty((0, 0))
        self.squares: _Float64 = np.empty((0, 0))
        self.peak: _Float64 = np.empty((0, 0))
        self.products: _Float64 = np.empty((0, 0, 0))

    @property
    def mean(self) -> _Float64:
        """Mean of each column, ``[groups, columns]``."""
        return np.asarray(self.sum / max(1, self.count))

    def moments(self, group: int = 0, *, peaks: float = 0.0) -> _Float64 | None:
        """Mean products of pairs of columns, ``[columns, columns]``.

        None beyond the limit, and where a product was too large for float32.

        Args:
            group: Group of a convolution.
            peaks: Share of the squared largest value of each column that is added on the diagonal.
                Rare large values hardly show in the mean; rounding that trusts the mean alone
                leaves all error to their columns, and fails where the next sample has one.
        """
        if not self.products.size or not np.isfinite(self.products[group]).all():
            return None
        found: _Float64 = self.products[group] / max(1, self.count)
        found[np.diag_indices_from(found)] += peaks * self.peak[group] ** 2
        return found

    def update(self, array: Array) -> None:
        """See the base class."""
        if not array.size:
            return
        extremes(array)
        x = self._rows(array.astype(np.float32, copy=False))
        # float32 within a batch: its rounding is far below what sampling leaves open.
        products: Array = np.empty((0, 0, 0))
        if x.shape[2] <= self.limit:
            with np.errstate(over="ignore", invalid="ignore"):  # see ``moments``
                products = np.stack([g.T @ g for g in x.transpose(1, 0, 2)])
        self._add(
            len(x),
            x.sum(axis=0, dtype=np.float64),
            np.einsum("rgc,rgc->gc", x, x, dtype=np.float64, casting="same_kind"),
            np.abs(x).max(axis=0).astype(np.float64),
            products.astype(np.float64),
        )

    def merge(self, other: Gram) -> None:
        """See the base class."""
        mine = (self.axis, self._patches, self.limit)
        if (other.axis, other._patches, other.limit) != mine:
            raise CalibrationError("only Gram matrices of the same configuration can be merged")
        if other.count:
            self._add(other.count, other.sum, other.squares, other.peak, other.products)

    def _rows(self, array: Array) -> Array:
        if self._patches is not None:
            return Patches.parse(self._patches).cut(array, self.rows)
        if not -array.ndim <= self.axis < array.ndim:
            raise CalibrationError(f"has no axis {self.axis}, its shape is {list(array.shape)}")
        flat: Array = np.moveaxis(array, self.axis, -1).reshape(-1, 1, array.shape[self.axis])
        return flat if len(flat) <= self.rows else flat[spread(len(flat), self.rows)]

    def _add(
        self,
        count: int,
        total: _Float64,
        squares: _Float64,
        peak: _Float64,
        products: _Float64,
    ) -> None:
        if not self.count:
            self.sum, self.squares, self.peak = total, squares, peak
            self.products = products.copy()
        elif total.shape != self.sum.shape:
            was, now = list(self.sum.shape), list(total.shape)
            raise CalibrationError(f"has {now} groups and columns, it had {was} before")
        else:
            self.sum, self.squares = self.sum + total, self.squares + squares
            self.peak = np.maximum(self.peak, peak)
            with np.errstate(invalid="ignore"):
                self.products += products
        self.count += count


class BatchRanges(Observer):
    """Smallest and largest value of each channel in each batch, for the first batches.

    Where scales are chosen when a batch is seen, a value that is large in one batch costs precision
    in that one only, so that ranges over all batches say too little.

    Args:
        axis: The axis of the channels, as in NumPy.
        keep: Number of batches that are kept.

    Attributes:
        min: ``[batches, channels]`` float32.
        max: ``[batches, channels]`` float32.
    """

    def __init__(self, axis: int = -1, keep: int = 256) -> None:
        if keep < 1:
            raise CalibrationError(f"needs a batch at least, not {keep}")
        self.axis, self.keep = axis, keep
        self.min: Array = np.empty((0, 0), np.float32)
        self.max: Array = np.empty((0, 0), np.float32)

    def update(self, array: Array) -> None:
        """See the base class."""
        if not -array.ndim <= self.axis < array.ndim:
            raise CalibrationError(f"has no axis {self.axis}, its shape is {list(array.shape)}")
        if not array.size:
            return
        extremes(array)
        flat = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])
        self._add(flat.min(0, keepdims=True), flat.max(0, keepdims=True))

    def merge(self, other: BatchRanges) -> None:
        """See the base class."""
        if (other.axis, other.keep) != (self.axis, self.keep):
            raise CalibrationError("only ranges of the same configuration can be merged")
        if len(other.min):
            self._add(other.min, other.max)

    def _add(self, low: Array, high: Array) -> None:
        if len(self.min) and self.min.shape[1] != low.shape[1]:
            raise CalibrationError(
                f"has {low.shape[1]} channels, it had {self.min.shape[1]} before"
            )
        if len(self.min) < self.keep:
            first = not len(self.min)
            self.min = low if first else np.concatenate([self.min, low])
            self.max = high if first else np.concatenate([self.max, high])
            self.min = self.min[: self.keep].astype(np.float32, copy=False)
            self.max = self.max[: self.keep].astype(np.float32, copy=False)


def spread(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of up to ``most`` of ``count`` elements, spread evenly."""
    if count <= most:
        return np.arange(count)
    # Equal steps would fall on the same column of an image again and again.
    steps = np.arange(most)
    return ((steps + steps * 0.6180339887498949 % 1.0) * count / most).astype(np.int64)

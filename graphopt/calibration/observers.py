"""Observers: what is remembered of the values that went through one tensor.

An observer takes a bounded amount of memory however many arrays it sees, and two of them can be
merged, so that pieces of the data may be observed by several processes, and again where one is
lost.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np
from typing_extensions import Self

from graphopt.errors import CalibrationError
from graphopt.runtime.values import Array

__all__ = ["ChannelStats", "Finite", "MinMax", "MovingAverage", "Observer", "extremes"]

_Float64 = np.ndarray[Any, np.dtype[np.float64]]


class Observer(abc.ABC):
    """Base class of observers.

    An instance that has seen nothing is a configuration: collecting copies it for every piece of
    the data and merges the copies in the order of the data. Attributes are arrays, numbers, strings
    and None, and instances can be pickled; memory depends on the tensor at most, never on how much
    was seen.
    """

    @abc.abstractmethod
    def update(self, array: Array) -> None:
        """Take in the value of the tensor for one batch.

        Args:
            array: The value, of any shape, which may differ from batch to batch. It is not kept.

        Raises:
            CalibrationError: It cannot be observed; the message goes on after the tensor's name.
        """

    @abc.abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what ``other``, of equal configuration, has seen after this one.

        Raises:
            CalibrationError: What the two have seen does not go together.
        """


class MinMax(Observer):
    """Smallest and largest value.

    Attributes:
        min: Smallest value so far; infinity before the first.
        max: Largest value so far; -infinity before the first.
        count: Number of elements seen.
    """

    def __init__(self) -> None:
        self.min, self.max, self.count = np.inf, -np.inf, 0

    def update(self, array: Array) -> None:
        """See the base class."""
        if array.size:
            low, high = extremes(array)
            self.min, self.max = min(self.min, low), max(self.max, high)
            self.count += array.size

    def merge(self, other: MinMax) -> None:
        """See the base class."""
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self.count += other.count


class Finite(Observer):
    """Whether all elements are finite numbers.

    Attributes:
        finite: None was NaN or infinite so far.
    """

    def __init__(self) -> None:
        self.finite = True

    def update(self, array: Array) -> None:
        """See the base class."""
        self.finite = self.finite and bool(np.isfinite(array).all())

    def merge(self, other: Finite) -> None:
        """See the base class."""
        self.finite = self.finite and other.finite


class MovingAverage(MinMax):
    """Exponential moving average of the smallest and largest value of each batch.

    The first batch starts it; each later one counts with ``weight``. It depends on the order of the
    batches. What pieces of the data contribute is an affine map, so that pieces can be observed
    separately and merged in order.

    Args:
        weight: Share of a new batch, above 0 and up to 1. PyTorch's and ONNX Runtime's default is
            0.01.

    Attributes:
        low: The average of the smallest values.
        high: The average of the largest values.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, section 3.1.
    """

    def __init__(self, weight: float = 0.01) -> None:
        if not 0 < weight <= 1:
            raise CalibrationError(f"the weight of a moving average is in (0, 1], not {weight}")
        super().__init__()
        self.weight = weight
        self.low = self.high = 0.0  # the average, if this piece comes first
        self._shift_low = self._shift_high = 0.0  # else old average * decay + shift
        self._decay = 1.0

    def update(self, array: Array) -> None:
        """See the base class."""
        if not array.size:
            return
        first, w = not self.count, self.weight
        low, high = extremes(array)
        self.low = low if first else (1 - w) * self.low + w * low
        self.high = high if first else (1 - w) * self.high + w * high
        self._shift_low = (1 - w) * self._shift_low + w * low
        self._shift_high = (1 - w) * self._shift_high + w * high
        self._decay *= 1 - w
        super().update(array)

    def merge(self, other: MinMax) -> None:
        """See the base class."""
        if not isinstance(other, MovingAverage) or other.weight != self.weight:
            raise CalibrationError("only moving averages of the same weight can be merged")
        if not other.count:
            return
        decay = other._decay
        first = not self.count
        self.low = other.low if first else decay * self.low + other._shift_low
        self.high = other.high if first else decay * self.high + other._shift_high
        self._shift_low = decay * self._shift_low + other._shift_low
        self._shift_high = decay * self._shift_high + other._shift_high
        self._decay *= decay
        super().merge(other)


class ChannelStats(Observer):
    """Smallest and largest value, sum and sum of squares of each channel.

    Args:
        axis: The axis of the channels, as in NumPy.

    Attributes:
        min: ``[channels]`` float64.
        max: ``[channels]`` float64.
        sum: ``[channels]`` float64.
        squares: Sums of squares, ``[channels]`` float64.
        count: Number of elements seen of each channel.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.count = 0
        self.min: _Float64 = np.empty(0)
        self.max: _Float64 = np.empty(0)
        self.sum: _Float64 = np.empty(0)
        self.squares: _Float64 = np.empty(0)

    @property
    def mean(self) -> _Float64:
        """Mean of each channel."""
        return np.asarray(self.sum / max(1, self.count))

    @property
    def variance(self) -> _Float64:
        """Variance of each channel, that of the elements seen."""
        return np.asarray(np.maximum(self.squares / max(1, self.count) - self.mean**2, 0))

    def update(self, array: Array) -> None:
        """See the base class."""
        if not -array.ndim <= self.axis < array.ndim:
            raise CalibrationError(f"has no axis {self.axis}, its shape is {list(array.shape)}")
        if not array.size:
            return
        extremes(array)
        axis = self.axis % array.ndim
        before, after = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
        v = array.reshape(before, array.shape[axis], after)
        if v.dtype.kind not in "fiu":
            v = v.astype(np.float32)  # einsum knows none of the others
        self._add(
            v.min(axis=(0, 2)).astype(np.float64),
            v.max(axis=(0, 2)).astype(np.float64),
            v.sum(axis=(0, 2), dtype=np.float64),
            np.einsum("ijk,ijk->j", v, v, dtype=np.float64, casting="same_kind"),
            before * after,
        )

    def merge(self, other: ChannelStats) -> None:
        """See the base class."""
        if other.axis != self.axis:
            raise CalibrationError(f"channels are along axis {self.axis}, not {other.axis}")
        if other.count:
            self._add(other.min, other.max, other.sum, other.squares, other.count)

    def _add(
        self, low: _Float64, high: _Float64, total: _Float64, squares: _Float64, count: int
    ) -> None:
        if not self.count:
            self.min, self.max = low.copy(), high.copy()
            self.sum, self.squares = total.copy(), squares.copy()
        elif len(low) != len(self.min):
            raise CalibrationError(f"has {len(low)} channels, it had {len(self.min)} before")
        else:
            np.minimum(self.min, low, out=self.min)
            np.maximum(self.max, high, out=self.max)
            self.sum += total
            self.squares += squares
        self.count += count


def extremes(array: Array) -> tuple[float, float]:
    """Smallest and largest element of an array that is not empty.

    Raises:
        CalibrationError: An element is NaN or infinite.
    """
    low, high = float(array.min()), float(array.max())  # NaN wins either
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    what = "NaN" if np.isnan(low) else f"{low if np.isinf(low) else high}"
    raise CalibrationError(f"holds {what}")

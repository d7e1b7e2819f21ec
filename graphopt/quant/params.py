"""Scales and zero points: from ranges and weights, and the arithmetic of quantization.

The arithmetic is that of ONNX QuantizeLinear and DequantizeLinear: ``q = round(x / scale) + zero
point``, saturated, ties to even; ``x = (q - zero point) * scale``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from graphopt.targets import Format

__all__ = ["QParams", "from_range", "from_weight"]

Array = np.ndarray[Any, Any]

# Scales below this make products of scales, as a bias has them, denormal.
_SMALLEST = float(np.finfo(np.float32).tiny) * 2.0**24


@dataclasses.dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of a tensor.

    Attributes:
        scale: float32, a scalar or one per channel.
        zero_point: Of the format's type and the shape of ``scale``.
        format: How elements are stored.
        axis: Axis of the channels; None for a single scale.
    """

    scale: Array
    zero_point: Array
    format: Format
    axis: int | None = None

    def quantize(self, array: Array) -> Array:
        """Round floating-point numbers to integers of the format."""
        low, high = self.format.limits
        scale, zero = self._along(self.scale, array), self._along(self.zero_point, array)
        with np.errstate(over="ignore"):  # what is too large is saturated
            # Where float32 divides, as ONNX does, float64 would break ties differently.
            rounded = np.rint(np.asarray(array, np.float32) / scale)
        integers: Array = np.clip(rounded + zero, low, high).astype(self.format.dtype)
        return integers

    def dequantize(self, integers: Array) -> Array:
        """Numbers that integers stand for, float32."""
        scale, zero = self._along(self.scale, integers), self._along(self.zero_point, integers)
        return (integers.astype(np.float32) - zero) * scale

    @property
    def range(self) -> tuple[Array, Array]:
        """Smallest and largest number that can be represented, each of the shape of the scale."""
        zero = self.zero_point.astype(np.float64)
        low, high = ((limit - zero) * self.scale for limit in self.format.limits)
        return low, high

    def _along(self, values: Array, like: Array) -> Array:
        found = values.astype(np.float32)
        if self.axis is None:
            return found
        return found.reshape([-1 if i == self.axis % like.ndim else 1 for i in range(like.ndim)])


def from_range(low: float, high: float, form: Format) -> QParams:
    """Scale and zero point with which a range fits the format.

    The range is widened to include 0, which is represented exactly, and to be symmetric where the
    format is.

    Args:
        low: Lower end.
        high: Upper end.
        form: Format with one scale per tensor; its granularity is ignored.

    Raises:
        ValueError: An end is NaN or infinite.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference" (2018), section 2.1.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a range has finite ends, not {low} and {high}")
    first, last = form.limits
    low, high = min(low, 0.0), max(high, 0.0)
    if form.symmetric:
        bound = max(-low, high)
        middle = (first + last + 1) // 2 if first == 0 else 0
        scale = bound / min(last - middle, middle - first)
        zero = middle
    else:
        scale = (high - low) / (last - first)
        zero = first
        if scale > 0:
            zero = int(np.clip(np.rint(first - low / scale), first, last))
    scale = scale if scale > _SMALLEST else 1.0  # all there was is 0
    return QParams(np.asarray(scale, np.float32), np.asarray(zero, form.dtype), form)


def from_weight(weight: Array, form: Format, axis: int | None) -> QParams:
    """Scales that a constant weight fits exactly, symmetric or not as the format is.

    Args:
        weight: Float array.
        form: Its granularity tells whether there is one scale or one per channel.
        axis: Axis of the output channels, or None for a single scale.
    """
    if axis is None or form.granularity == "tensor":
        return from_range(float(weight.min(initial=0)), float(weight.max(initial=0)), form)
    axis %= weight.ndim
    others = tuple(i for i in range(weight.ndim) if i != axis)
    lows, highs = weight.min(axis=others, initial=0), weight.max(axis=others, initial=0)
    each = [from_range(float(a), float(b), form) for a, b in zip(lows, highs, strict=True)]
    scale = np.array([p.scale for p in each], np.float32)
    zero = np.array([p.zero_point for p in each], form.dtype)
    return QParams(scale, zero, form, axis)

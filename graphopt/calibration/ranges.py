"""From what was observed of a tensor to the range that its quantized form covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from graphopt.calibration.entropy import entropy_range
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.mse import mse_range
from graphopt.calibration.observers import MinMax, MovingAverage, Observer
from graphopt.errors import CalibrationError, ConfigError

__all__ = ["METHODS", "find_range", "observer_for"]

Range: TypeAlias = tuple[float, float]


def observer_for(method: str, **options: Any) -> Observer:
    """The observer that a method needs.

    Args:
        method: A name of :data:`METHODS`.
        options: Options of the method.

    Raises:
        ConfigError: There is no such method, or it has no such option.
    """
    _check(method, options)
    if method == "minmax":
        return MinMax()
    if method == "moving-average":
        return MovingAverage(**options)
    return Histogram()


def find_range(
    observed: Observer | Sequence[Observer],
    method: str,
    *,
    levels: int,
    symmetric: bool,
    **options: Any,
) -> Range:
    """Find the range of values worth representing.

    The methods are:

    - ``minmax``: All values that occurred.
    - ``moving-average``: The average of the batches' ranges, of a :class:`MovingAverage`, which
      takes the option ``weight``.
    - ``percentile``: All but the outermost values. Option ``percentile``, 99.999 by default: the
      share that remains, in percent; half of the rest is left out on each side, or with
      ``symmetric`` all of it from the largest magnitudes.
    - ``entropy``: The least information lost, by the Kullback-Leibler divergence of the quantized
      distribution (Migacz, "8-bit Inference with TensorRT", GTC 2017).
    - ``mse``: The least expected squared error of quantization; both ends are searched separately.
    - ``distribution``: The range that would be optimal for a Laplace or normal distribution of the
      same mean and spread (Banner et al., "Post training 4-bit quantization of convolutional
      networks for rapid-deployment", NeurIPS 2019: ACIQ). Option ``shape``: ``laplace``, ``gauss``
      or ``auto`` (default), which takes the one whose ratio of mean absolute to standard deviation
      is nearer.

    Args:
        observed: What was observed of the tensor; of several, the one that suits the method.
        method: See above.
        levels: Number of integers of the quantized type, such as 256, or 255 for a symmetric one.
        symmetric: Whether the range is to be symmetric around zero.
        options: Options of the method.

    Returns:
        Lower and upper end, within the values observed unless ``symmetric``. ``mse`` includes zero;
        the others do where the values do. Both are 0 where nothing but zeros was seen.

    Raises:
        ConfigError: There is no such method or option, or its value is out of bounds.
        CalibrationError: Nothing was observed, or by an observer that does not suit the method.
    """
    _check(method, options)
    if levels < 2:
        raise ConfigError(f"a quantized type has 2 levels at least, not {levels}")
    seen = _suiting([observed] if isinstance(observed, Observer) else observed, method)
    if not seen.count:
        raise CalibrationError("no value was observed: the tensor was empty in every batch")
    if method == "minmax":
        low, high = seen.min, seen.max
    elif method == "moving-average":
        assert isinstance(seen, MovingAverage)
        low, high = seen.low, seen.high
    else:
        assert isinstance(seen, Histogram)
        search = _SEARCHES[method]
        low, high = search(seen, levels, symmetric, **options)
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    return float(low), float(high)


def _check(method: str, options: dict[str, Any]) -> None:
    if method not in METHODS:
        raise ConfigError(f"{method!r} is no calibration method: {', '.join(METHODS)}")
    unknown = [o for o in options if o not in METHODS[method]]
    if unknown:
        known = ", ".join(METHODS[method]) or "none"
        raise ConfigError(
            f"the calibration method {method!r} has no option {unknown[0]!r}: {known}"
        )


def _suiting(observed: Sequence[Observer], method: str) -> Histogram | MinMax:
    wanted: tuple[type[Histogram] | type[MinMax], ...] = {
        "minmax": (MinMax, Histogram),
        "moving-average": (MovingAverage,),
    }.get(method, (Histogram,))
    for each in observed:
        if isinstance(each, wanted):
            return each
    raise CalibrationError(
        f"the calibration method {method!r} needs a {wanted[0].__name__}, which was not collected"
    )


def _percentile(
    seen: Histogram, levels: int, symmetric: bool, *, percentile: float = 99.999
) -> Range:
    if not 0 < percentile <= 100:
        raise ConfigError(f"a percentile is above 0 and up to 100, not {percentile}")
    low, high, counts = seen.bins()
    left_out = 1 - percentile / 100
    if symmetric:
        flip = high <= 0
        near, far = np.where(flip, -high, low), np.where(flip, -low, high)
        order = np.argsort(far, kind="stable")
        top = _quantile(near[order], far[order], counts[order], 1 - left_out)
        return -top, top
    return (
        _quantile(low, high, counts, left_out / 2),
        _quantile(low, high, counts, 1 - left_out / 2),
    )


def _quantile(low: Any, high: Any, counts: Any, share: float) -> float:
    """The value below which a share of all values is, taken as even within each bin."""
    below = np.cumsum(counts)
    wanted = share * float(below[-1])
    i = int(np.searchsorted(below, wanted))
    i = min(i, len(counts) - 1)
    inside = (wanted - float(below[i] - counts[i])) / float(counts[i])
    return float(low[i] + (high[i] - low[i]) * min(1.0, max(0.0, inside)))


def _distribution(seen: Histogram, levels: int, symmetric: bool, *, shape: str = "auto") -> Range:
    if shape not in ("auto", "laplace", "gauss"):
        raise ConfigError(f"a shape is auto, laplace or gauss, not {shape!r}")
    low, high, counts = seen.bins()
    middle = (low + high) / 2
    one_sided = seen.min >= 0 or seen.max <= 0
    if one_sided:
        # Half of a distribution around zero, as Relu leaves it; the zeros are the other half's. All
        # levels serve one side.
        middle, counts = middle[middle != 0], counts[middle != 0]
        if not counts.size:
            return 0.0, 0.0
        levels = levels if symmetric else 2 * levels
    total = float(counts.sum())
    mean = 0.0 if one_sided or symmetric else float((middle * counts).sum() / total)
    absolute = float((abs(middle - mean) * counts).sum() / total)
    deviation = math.sqrt(float(((middle - mean) ** 2 * counts).sum() / total))
    if not deviation:
        return seen.min, seen.max
    if shape == "auto":
        # Of a Laplace distribution the ratio is 0.707, of a normal one 0.798.
        shape = "laplace" if absolute / deviation < 0.7525 else "gauss"
    reach = (
        absolute * _laplace_clip(levels) if shape == "laplace" else deviation * _gauss_clip(levels)
    )
    return max(seen.min, mean - reach), min(seen.max, mean + reach)


def _laplace_clip(levels: int) -> float:
    """Optimal clipping of a Laplace distribution of unit scale.

    ACIQ's error 2 exp(-a) + a^2 / (3 levels^2) is least where a exp(a) = 3 levels^2.
    """
    target = math.log(3.0 * levels * levels)
    a = max(1.0, target - math.log(target))
    for _ in range(20):
        a -= (a + math.log(a) - target) / (1 + 1 / a)
    return a


def _gauss_clip(levels: int) -> float:
    """Optimal clipping of a normal distribution of unit deviation: where ACIQ's error is least.

    The derivative of (a^2 + 1) erfc(a / sqrt 2) - a sqrt(2 / pi) exp(-a^2 / 2) + a^2 / (3 levels^2)
    grows with a, and bisection finds where it vanishes.
    """
    low, high = 0.0, 40.0
    for _ in range(60):
        a = (low + high) / 2
        slope = (
            2 * a * math.erfc(a / math.sqrt(2))
            - 2 * math.sqrt(2 / math.pi) * math.exp(-a * a / 2)
            + 2 * a / (3 * levels * levels)
        )
        low, high = (a, high) if slope < 0 else (low, a)
    return (low + high) / 2


METHODS: dict[str, tuple[str, ...]] = {
    "minmax": (),
    "moving-average": ("weight",),
    "percentile": ("percentile",),
    "entropy": (),
    "mse": (),
    "distribution": ("shape",),
}
"""Options of each method, by its name."""

_SEARCHES: dict[str, Callable[..., Range]] = {
    "percentile": _percentile,
    "entropy": entropy_range,
    "mse": mse_range,
    "distribution": _distribution,
}

"""From histograms to ranges: each method does what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from graphopt.calibration import (
    METHODS,
    ChannelStats,
    Histogram,
    MinMax,
    MovingAverage,
    Observer,
    find_range,
    observer_for,
)
from graphopt.calibration.mse import expected_error
from graphopt.calibration.ranges import _gauss_clip, _laplace_clip
from graphopt.errors import CalibrationError, ConfigError

SIZE = 50_000


def _draw(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SIZE)
    return {
        "gauss": x,
        "relu": np.maximum(x, 0),
        "negative": -np.maximum(x, 0),
        "laplace": rng.laplace(size=SIZE),
        "heavy": rng.standard_t(3, SIZE),
        "gelu": x * (1 + np.tanh(1.6 * x)),
        "uniform": rng.uniform(-1, 3, SIZE),
        "outlier": np.append(np.maximum(x, -0.5), 40.0),
    }[name].astype(np.float32)


DISTRIBUTIONS = ["gauss", "relu", "negative", "laplace", "heavy", "gelu", "uniform", "outlier"]


def histogram(x: np.ndarray) -> Histogram:
    found = Histogram()
    found.update(x)
    return found


def error(x: np.ndarray, low: float, high: float, levels: int) -> float:
    low, high = min(low, 0), max(high, 0)
    step = (high - low) / (levels - 1)
    zero = np.round(-low / step)
    quantized = (np.clip(np.round(x / step) + zero, 0, levels - 1) - zero) * step
    return float(np.mean((x.astype(np.float64) - quantized) ** 2))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("levels", "symmetric"), [(256, False), (255, True), (16, False)])
def test_mse_is_the_best_of_all(name: str, levels: int, symmetric: bool) -> None:
    x = _draw(name)
    seen = histogram(x)
    errors = {}
    for method in METHODS:
        if method != "moving-average":
            low, high = find_range(seen, method, levels=levels, symmetric=symmetric)
            assert low == -high or not symmetric
            errors[method] = error(x, low, high, levels)
    assert min(errors.values()) >= 0.985 * errors["mse"]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_comes_close_to_an_exhaustive_search(name: str) -> None:
    x = _draw(name)
    low, high = find_range(histogram(x), "mse", levels=16, symmetric=False)
    factors = np.geomspace(1, 2**-6, 40)
    tried = [
        error(x, min(0, x.min()) * f, max(0, x.max()) * g, 16)
        for f in (factors if x.min() < 0 else [1.0])
        for g in (factors if x.max() > 0 else [1.0])
    ]
    assert error(x, low, high, 16) <= 1.02 * min(tried)


@pytest.mark.parametrize("levels", [16, 256])
def test_expected_error_is_the_error(levels: int) -> None:
    x = _draw("gauss")
    low, high, counts = histogram(x).bins()
    lows, highs = np.array([-4.5, -2.0, -1.0, -3.0, 0.0]), np.array([4.5, 2.0, 3.0, 0.0, 3.0])
    found = expected_error((low, high, counts.astype(float)), lows, highs, levels) / len(x)
    wanted = [error(x, a, b, levels) for a, b in zip(lows, highs, strict=True)]
    assert_allclose(found, wanted, rtol=0.02)


def test_percentile() -> None:
    x = np.arange(-1000, 3001).astype(np.float32)
    seen = histogram(x)
    low, high = find_range(seen, "percentile", levels=256, symmetric=False, percentile=90)
    assert (low, high) == (pytest.approx(-800, rel=0.01), pytest.approx(2800, rel=0.01))
    low, high = find_range(seen, "percentile", levels=256, symmetric=True, percentile=90)
    assert (low, high) == (-high, pytest.approx(np.quantile(abs(x), 0.9), rel=0.01))
    whole = find_range(seen, "percentile", levels=256, symmetric=False, percentile=100)
    assert whole == (-1000, 3000)


def test_percentile_is_within_what_was_seen() -> None:
    x = _draw("relu")
    low, high = find_range(histogram(x), "percentile", levels=256, symmetric=False)
    assert low == 0
    assert np.sort(x)[-3] <= high <= x.max()


def test_entropy_cuts_a_lonely_outlier_off() -> None:
    x = np.append(_draw("laplace"), 200).astype(np.float32)
    low, high = find_range(histogram(x), "entropy", levels=256, symmetric=False)
    assert 5 < high < 100
    assert low == pytest.approx(x.min())


def test_entropy_keeps_the_full_range_of_even_values() -> None:
    low, high = find_range(histogram(_draw("uniform")), "entropy", levels=256, symmetric=False)
    assert (low, high) == (pytest.approx(-1, abs=0.01), pytest.approx(3, abs=0.01))


def test_entropy_leaves_many_levels_alone() -> None:
    x = _draw("heavy")
    found = find_range(histogram(x), "entropy", levels=65536, symmetric=False)
    assert found == (x.min(), x.max())


def test_distribution_has_the_clipping_of_the_paper() -> None:
    # Table of ACIQ's implementation: optimal clipping by number of bits.
    for bits, wanted in {2: 2.83, 3: 3.89, 4: 5.03, 8: 9.89}.items():
        assert _laplace_clip(2**bits) == pytest.approx(wanted, abs=0.02)
    for bits, wanted in {2: 1.71, 3: 2.15, 4: 2.55, 8: 3.92}.items():
        assert _gauss_clip(2**bits) == pytest.approx(wanted, abs=0.03)


def test_distribution_tells_laplace_from_gauss() -> None:
    for name, shape in (("gauss", "gauss"), ("laplace", "laplace")):
        seen = histogram(_draw(name))
        auto = find_range(seen, "distribution", levels=16, symmetric=False)
        assert auto == find_range(seen, "distribution", levels=16, symmetric=False, shape=shape)


def test_moving_average_and_minmax() -> None:
    averaged = observer_for("moving-average", weight=0.5)
    assert isinstance(averaged, MovingAverage)
    for top in (1, 3):
        averaged.update(np.array([-top, top], np.float32))
    assert find_range(averaged, "moving-average", levels=256, symmetric=False) == (-2, 2)
    assert find_range(averaged, "minmax", levels=256, symmetric=False) == (-3, 3)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "moving-average"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-44, 3e38])
def test_constant_values(method: str, symmetric: bool, value: float) -> None:
    seen = histogram(np.full(10, value, np.float32))
    low, high = find_range(seen, method, levels=255, symmetric=symmetric)
    assert low <= high
    assert np.isfinite([low, high]).all()
    if abs(value) > 1e-40:
        assert min(low, 0) <= value * (1 - 1e-2) or value < 0
        assert max(-low, high) == pytest.approx(abs(value), rel=0.01)


def test_a_method_takes_what_suits_it() -> None:
    x = _draw("gauss")
    observed: list[Observer] = [ChannelStats(0), MinMax(), Histogram()]
    for each in observed:
        each.update(x)
    assert find_range(observed, "percentile", levels=256, symmetric=False)[0] > x.min()
    with pytest.raises(CalibrationError, match="'mse' needs a Histogram, which was not collected"):
        find_range(observed[:2], "mse", levels=256, symmetric=False)


def test_refusals() -> None:
    seen = histogram(np.ones(3, np.float32))
    with pytest.raises(ConfigError, match="'max' is no calibration method: minmax, "):
        find_range(seen, "max", levels=256, symmetric=False)
    with pytest.raises(ConfigError, match="'mse' has no option 'bins'"):
        find_range(seen, "mse", levels=256, symmetric=False, bins=3)
    with pytest.raises(ConfigError, match="above 0 and up to 100, not 0"):
        find_range(seen, "percentile", levels=256, symmetric=False, percentile=0)
    with pytest.raises(ConfigError, match="auto, laplace or gauss, not 'beta'"):
        find_range(seen, "distribution", levels=256, symmetric=False, shape="beta")
    with pytest.raises(ConfigError, match="2 levels at least"):
        find_range(seen, "minmax", levels=1, symmetric=False)
    with pytest.raises(CalibrationError, match="no value was observed"):
        find_range(Histogram(), "mse", levels=256, symmetric=False)
    with pytest.raises(ConfigError, match="no option 'percentile'"):
        observer_for("minmax", percentile=3)

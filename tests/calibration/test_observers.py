"""Observers: exact, mergeable in pieces, bounded, and picky about what they are shown."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from graphopt.calibration import ChannelStats, Histogram, MinMax, MovingAverage, Observer
from graphopt.calibration.observers import Finite
from graphopt.errors import CalibrationError

KINDS = [MinMax(), MovingAverage(0.1), Histogram(), ChannelStats(-1)]


def seen(prototype: Observer, arrays: list[np.ndarray]) -> Observer:
    made = copy.deepcopy(prototype)
    for array in arrays:
        made.update(array)
    return made


def same(one: Observer, other: Observer) -> bool:
    return pickle.dumps(vars(one)) == pickle.dumps(vars(other))


def batches(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, rng.integers(1, 9), 4)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("prototype", KINDS, ids=lambda o: type(o).__name__)
def test_pieces_make_the_whole(prototype: Observer) -> None:
    data = batches(9)
    whole = seen(prototype, data)
    merged = seen(prototype, data[:4])
    merged.merge(pickle.loads(pickle.dumps(seen(prototype, data[4:5]))))
    merged.merge(seen(prototype, []))
    merged.merge(seen(prototype, data[5:]))
    assert set(vars(merged)) == set(vars(whole))
    for name, value in vars(whole).items():
        assert_allclose(vars(merged)[name], value, rtol=1e-12, err_msg=name)
    first = seen(prototype, [])
    first.merge(whole)
    assert same(first, whole)


@pytest.mark.parametrize("prototype", KINDS, ids=lambda o: type(o).__name__)
def test_memory_does_not_depend_on_the_number_of_arrays(prototype: Observer) -> None:
    few, many = seen(prototype, batches(5) * 2), seen(prototype, batches(5) * 200)
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 64


@pytest.mark.parametrize("prototype", KINDS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_what_is_not_finite_is_refused(prototype: Observer, value: float, word: str) -> None:
    array = np.ones((2, 3), np.float32)
    array[1, 1] = value
    with pytest.raises(CalibrationError, match=f"^holds {word}$"):
        seen(prototype, [array])


@pytest.mark.parametrize("prototype", KINDS, ids=lambda o: type(o).__name__)
def test_empty_arrays_change_nothing(prototype: Observer) -> None:
    assert same(seen(prototype, [np.empty((0, 4), np.float32)]), prototype)


@pytest.mark.parametrize("prototype", KINDS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, np.int8, np.int64, np.uint8, ml_dtypes.bfloat16]
)
def test_types(prototype: Observer, dtype: type) -> None:
    array = np.array([[1, 2, 3, 4], [5, 6, 7, 100]], dtype)
    found = seen(prototype, [array])
    assert isinstance(found, MinMax | Histogram | ChannelStats)
    assert (np.min(found.min), np.max(found.max)) == (1, 100)


def test_moving_average() -> None:
    found = MovingAverage(0.25)
    for low, high in ((-1, 3), (-5, 7), (-9, 3)):
        found.update(np.array([low, 0, high], np.float32))
    assert found.low == 0.75 * (0.75 * -1 + 0.25 * -5) + 0.25 * -9
    assert found.high == 0.75 * (0.75 * 3 + 0.25 * 7) + 0.25 * 3
    assert (found.min, found.max, found.count) == (-9, 7, 9)
    with pytest.raises(CalibrationError, match=r"in \(0, 1\], not 0"):
        MovingAverage(0)
    with pytest.raises(CalibrationError, match="same weight"):
        found.merge(MovingAverage(0.5))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channel_stats(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    found = ChannelStats(axis)
    found.update(x)
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
    assert_array_equal(found.min, rows.min(axis=1))
    assert_array_equal(found.max, rows.max(axis=1))
    assert_allclose(found.mean, rows.mean(axis=1), rtol=1e-12)
    assert_allclose(found.variance, rows.var(axis=1), rtol=1e-9)
    assert found.count == rows.shape[1]


def test_channels_that_do_not_go_together() -> None:
    found = ChannelStats(1)
    found.update(np.ones((2, 3), np.float32))
    with pytest.raises(CalibrationError, match="has 4 channels, it had 3 before"):
        found.update(np.ones((2, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"has no axis 1, its shape is \[5\]"):
        found.update(np.ones(5, np.float32))
    with pytest.raises(CalibrationError, match="axis 1, not 2"):
        found.merge(ChannelStats(2))


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
)
def test_histogram_puts_every_value_into_its_bin(values: list[float]) -> None:
    x = np.array(values, np.float32)
    found = Histogram()
    found.update(x)
    low, high, counts = found.bins()
    assert counts.sum() == len(x) == found.count
    assert (found.min, found.max) == (x.min(), x.max())
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    ordered = np.sort(x.astype(np.float64))
    tiny = 1e-40  # the bin of zero holds values up to that, and has no width
    for value, i in zip(ordered, np.repeat(np.arange(len(counts)), counts), strict=True):
        assert low[i] - tiny <= value <= high[i] + tiny
    assert (high - low <= np.maximum(abs(low), abs(high)) * 2.0**-7 + tiny).all()


def test_histogram_of_views_and_large_arrays() -> None:
    x = np.random.default_rng(0).normal(size=(6, 300, 500)).astype(np.float32)
    found, parts = Histogram(), Histogram()
    found.update(x[::2, :, ::3])
    for row in x[::2]:
        parts.update(np.ascontiguousarray(row[:, ::3]))
    for one, other in zip(found.bins(), parts.bins(), strict=True):
        assert_array_equal(one, other)
    expected, _ = np.histogram(x[::2, :, ::3], bins=[-10, 0, 10])
    low, _, counts = found.bins()
    assert [counts[low < 0].sum(), counts[low >= 0].sum()] == list(expected)


def test_histogram_refuses_what_it_cannot_count() -> None:
    with pytest.raises(CalibrationError, match="holds inf"):
        Histogram().update(np.array([1e300]))
    with pytest.raises(CalibrationError, match="which are no numbers"):
        Histogram().update(np.array(["a"], object))


def test_histogram_is_bounded() -> None:
    found = Histogram()
    patterns = np.arange(2**16, dtype=np.uint32) << 16
    values = patterns.view(np.float32)
    found.update(values[np.isfinite(values)])
    assert len(pickle.dumps(found)) < 600_000
    assert found.bins()[2].sum() == np.isfinite(values).sum()


def test_finite() -> None:
    seen = [Finite(), Finite(), Finite()]
    seen[0].update(np.ones(3, np.float32))
    seen[1].update(np.array([1, -np.inf], np.float32))
    seen[2].update(np.array([], np.float32))
    assert [s.finite for s in seen] == [True, False, True]
    seen[2].merge(seen[0])
    assert seen[2].finite
    seen[2].merge(seen[1])
    assert not seen[2].finite

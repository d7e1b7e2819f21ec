"""What counts as equal, by promise and by type."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import Exactness
from graphopt.runtime.compare import Comparison, compare, merge, tolerance

PROMISES = ("bitwise", "rounding", "lossy")
DTYPES = [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_, np.complex64]


def arrays(dtypes: list[Any] = DTYPES) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    return st.sampled_from(dtypes).flatmap(lambda d: hnp.arrays(d, shapes))


def outcome(a: Any, b: Any, promise: str, **options: Any) -> Comparison:
    return compare({"y": a}, {"y": b}, promise, **options)


@given(arrays(), st.sampled_from(PROMISES))
def test_everything_equals_itself(a: np.ndarray, promise: str) -> None:
    found = outcome(a, a.copy(), promise)
    assert found.ok
    assert found.max_abs == 0
    assert found.sqnr_db == math.inf
    assert found.reason is None


@given(arrays([np.float32, np.float64]), st.data())
def test_a_large_change_of_one_element_is_found(a: np.ndarray, data: st.DataObject) -> None:
    a = np.where(np.isfinite(a), np.clip(a, -1e6, 1e6), 1).astype(a.dtype)
    if a.size == 0:
        return
    at = data.draw(st.integers(0, a.size - 1))
    b = a.copy()
    rms = math.sqrt(np.mean(np.square(a.astype(np.float64))))
    b.reshape(-1)[at] += 0.01 * abs(b.reshape(-1)[at]) + 0.01 * rms + 0.01
    for promise in ("bitwise", "rounding"):
        found = outcome(a, b, promise)
        assert not found.ok
        assert found.worst_output == "y"
        index = str([int(i) for i in np.unravel_index(at, a.shape)]) if a.ndim else "y is"
        assert index in str(found.reason)
    assert outcome(a, b, "lossy").ok


@given(hnp.arrays(np.float32, 50, elements=st.floats(-100, 100, width=32)), st.integers(0, 9))
def test_rounding_of_a_sum_is_tolerated(a: np.ndarray, seed: int) -> None:
    # Noise as reordering leaves it: a few units in the last place of the largest terms.
    rms = np.sqrt(np.mean(np.square(a.astype(np.float64))))
    noise = np.random.default_rng(seed).uniform(-1, 1, 50) * 5e-6 * rms
    assert outcome(a, (a + noise).astype(np.float32), "rounding").ok


def test_dropped_epsilon_is_not_taken_for_rounding() -> None:
    a = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    b = a / np.sqrt(np.float32(1 + 1e-3))
    found = outcome(a, b, "rounding")
    assert not found.ok
    assert "more than rounding" in str(found.reason)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_coarse_types_round_coarsely(dtype: Any) -> None:
    a = np.array([1.0, 2.0, -3.0, 0.5]).astype(dtype)
    step = np.nextafter(a, np.array(10).astype(dtype))
    assert outcome(a, step, "rounding").ok
    assert not outcome(a, step, "bitwise").ok
    assert not outcome(a, (a.astype(np.float32) * 3).astype(dtype), "rounding").ok


def test_output_is_only_as_good_as_the_coarsest_type_before_it() -> None:
    a = np.linspace(1, 2, 100, dtype=np.float32)
    b = a.astype(np.float16).astype(np.float32)
    assert not outcome(a, b, "rounding").ok
    assert outcome(a, b, "rounding", coarsest="float16").ok
    assert not outcome(a, b, "bitwise", coarsest="float16").ok
    # A finer type elsewhere does not make the demand stricter.
    assert outcome(a.astype(np.float16), b.astype(np.float16), "rounding", coarsest="float64").ok


def test_zeros_and_nans() -> None:
    a = np.array([0.0, np.nan, np.inf, 1.0], np.float32)
    payload = a.copy()
    payload.view(np.uint32)[1] = 0x7FC00123
    for b in (np.array([-0.0, np.nan, np.inf, 1.0], np.float32), payload):
        assert all(outcome(a, b, promise).ok for promise in PROMISES)
    for b in (
        np.array([0.0, 1.0, np.inf, 1.0], np.float32),
        np.array([0.0, np.nan, -np.inf, 1.0], np.float32),
        np.array([0.0, np.nan, 1e30, 1.0], np.float32),
        np.array([0.0, np.nan, np.nan, 1.0], np.float32),
    ):
        assert not outcome(a, b, "bitwise").ok
        assert not outcome(a, b, "rounding").ok
        assert outcome(a, b, "lossy").ok  # finite where the reference is
    broken = np.array([0.0, np.nan, np.inf, np.nan], np.float32)
    found = outcome(a, broken, "lossy")
    assert not found.ok
    assert found.reason == "y[3] is nan, was 1.0"


@given(arrays([np.float32]), st.sampled_from(PROMISES))
def test_new_nan_never_passes(a: np.ndarray, promise: str) -> None:
    a = np.where(np.isfinite(a), a, 0).astype(np.float32)
    if a.size == 0:
        return
    b = a.copy()
    b.reshape(-1)[-1] = np.nan
    assert not outcome(a, b, promise).ok


def test_cancellation_to_zero() -> None:
    zero, tiny = np.zeros(4, np.float32), np.full(4, 5e-7, np.float32)
    assert outcome(zero, tiny, "rounding").ok
    assert not outcome(zero, tiny, "bitwise").ok
    assert not outcome(zero, np.full(4, 1e-4, np.float32), "rounding").ok


def test_integers_booleans_and_ties() -> None:
    few = np.arange(100)
    other = few.copy()
    other[7] += 1
    found = outcome(few, other, "rounding")
    assert not found.ok
    assert found.reason == "y[7] is 8, was 7; 1 of 100 elements differ"
    many = np.zeros((100, 100), np.int64)
    one = many.copy()
    one[3, 4] = 1
    assert outcome(many, one, "rounding").ok
    assert not outcome(many, one, "bitwise").ok
    one[:4, :4] = 1
    assert not outcome(many, one, "rounding").ok
    assert outcome(many, one, "lossy").ok
    flags = np.zeros(3, bool)
    assert not outcome(flags, ~flags, "rounding").ok
    scalar = outcome(np.array(1), np.array(2), "rounding")
    assert scalar.reason == "y is 2, was 1"
    four = np.array([1, 2], ml_dtypes.int4)
    assert outcome(four, four, "bitwise").ok
    assert not outcome(four, four[::-1].copy(), "rounding").ok


def test_strings() -> None:
    a = np.array(["a", "b"], object)
    assert outcome(a, np.array(["a", "b"]), "bitwise").ok
    found = outcome(a, np.array(["a", "c"], object), "rounding")
    assert not found.ok
    assert found.reason == "y[1] is c, was b; 1 of 2 elements differ"
    # No element of a large array of strings may differ: strings do not round.
    many = np.array(["a"] * 5000, object)
    changed = many.copy()
    changed[0] = "b"
    assert not outcome(many, changed, "rounding").ok


@pytest.mark.parametrize("promise", PROMISES)
def test_shape_type_and_structure_always_count(promise: str) -> None:
    a = np.zeros((2, 3), np.float32)
    for b, words in (
        (a.T, "shape [3, 2], was [2, 3]"),
        (a.astype(np.float64), "type float64, was float32"),
        ([a], "a sequence, was a tensor"),
        (None, "absent, was a tensor"),
        ({0: a}, "a map, was a tensor"),
    ):
        found = outcome(a, b, promise)
        assert not found.ok
        assert words in str(found.reason)
    assert not outcome([a], [a, a], promise).ok
    assert not outcome({1: 2.0}, {2: 2.0}, promise).ok
    assert not compare({"y": a}, {"z": a}, promise).ok
    assert not compare({"y": a}, {}, promise).ok
    assert compare({}, {}, promise).ok


def test_nested_values_name_the_place() -> None:
    a = {"y": [np.zeros(2), {4: 1.0, 5: [None, "s"]}], "z": None}
    b = {"y": [np.zeros(2), {4: 3.0, 5: [None, "s"]}], "z": None}
    assert compare(a, a, "bitwise").ok
    found = compare(a, b, "rounding")
    assert found.worst_output == "y[1][4]"
    assert "y[1][4] is 3, was 1" in str(found.reason)


@given(
    hnp.arrays(np.float64, 20, elements=st.floats(-10, 10)),
    hnp.arrays(np.float64, 20, elements=st.floats(-1, 1)),
)
def test_numbers_reported(a: np.ndarray, noise: np.ndarray) -> None:
    b = a + noise
    found = outcome(a, b, "lossy")
    error = np.abs(b - a)
    assert found.ok
    assert found.max_abs == error.max()
    signal, power = np.sum(a**2), np.sum(error**2)
    if signal > 1e-200 and power > 1e-200:
        assert found.sqnr_db == pytest.approx(10 * math.log10(signal / power), abs=1e-6)
        assert found.max_rel == pytest.approx(error.max() / math.sqrt(signal / 20))


def test_huge_values_do_not_overflow_the_statistics() -> None:
    a = np.array([1e300, -1e300])
    assert outcome(a, a * (1 + 1e-9), "rounding").ok
    assert not outcome(a, -a, "rounding").ok


def test_enum_and_text_promises() -> None:
    a = np.zeros(2)
    assert compare({"y": a}, {"y": a}, Exactness.BITWISE).ok
    with pytest.raises(ValueError, match="exactly"):
        compare({"y": a}, {"y": a}, "exactly")


def test_merge_keeps_failures_and_the_worst_numbers() -> None:
    good = Comparison(True, "a", 1.0, 0.5, 40.0)
    bad = Comparison(False, "b", 0.1, 0.1, 60.0, "reason")
    merged = merge([good, bad])
    assert merged == Comparison(False, "b", 1.0, 0.5, 40.0, "reason")
    assert merge([]).ok
    assert merge([good, Comparison(True, "c", 0.2, 0.7, 90.0)]).worst_output == "c"


def test_json_has_no_infinity() -> None:
    text = json.dumps(outcome(np.zeros(2), np.zeros(2), "bitwise").to_json(), allow_nan=False)
    assert json.loads(text)["sqnr_db"] is None


def test_tolerances_exist_for_floats_only() -> None:
    names = ("float64", "float32", "float16", "bfloat16", "float8_e5m2", "float4_e2m1fn")
    assert all(tolerance(n) is not None for n in names)
    assert tolerance("complex64") == tolerance("float32")
    assert tolerance("int8") is None
    assert tolerance("bool") is None

"""Codes of arrays, without a model."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from graphopt.storage import Code, decode, encode
from graphopt.storage.sparse import _candidates

Array = np.ndarray[Any, Any]


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def thinned(shape: tuple[int, ...], zeros: float, *, seed: int = 0, half: bool = False) -> Array:
    """Random floats, some of them zero; those of 16 bits where asked for."""
    rng = np.random.default_rng(seed)
    array = rng.normal(size=shape)
    array = np.where(rng.random(shape) < zeros, 0.0, array)
    return array.astype(np.float16 if half else np.float32).astype(np.float32)


@pytest.mark.parametrize("shape", [(1,), (7,), (300,), (16, 20), (16, 8, 3, 3), (5, 7, 3), (4, 1)])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("half", [False, True])
def test_every_code_keeps_every_bit(shape: tuple[int, ...], zeros: float, half: bool) -> None:
    array = thinned(shape, zeros, half=half)
    found = list(_candidates(array))
    assert all(same_bits(decode(code), array) for code in found)
    assert encode(array).nbytes == min(code.nbytes for code in found)


@hypothesis.given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.uint8]),
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=9),
        fill=st.just(0),
    )
)
def test_any_array(array: Array) -> None:
    for code in _candidates(array):
        assert same_bits(decode(code), array)


def test_minus_zero_and_nan_are_not_zero() -> None:
    array = np.zeros(64, np.float32)
    array[3], array[9] = -0.0, np.nan
    array[12] = np.array([0x7F800001], np.uint32).view(np.float32)[0]  # one that 16 bits lose
    found = encode(array)
    assert found.values.dtype == np.float32
    assert same_bits(decode(found), array)
    assert same_bits(decode(encode(array[:12])), array[:12])
    assert encode(array[:8]).values.dtype == np.float16


@pytest.mark.parametrize("odd", [65520.0, 1e-9, 1.0 + 2.0**-11])
def test_floats_that_16_bits_do_not_hold(odd: float) -> None:
    array = thinned((64, 64), 0.5, half=True)
    assert encode(array).values.dtype == np.float16
    array[0, 0] = odd
    found = encode(array)
    assert found.values.dtype == np.float32
    assert same_bits(decode(found), array)


def coding(array: Array) -> tuple[str, int]:
    found: Code = encode(array)
    return found.coding, found.layout.unit


def test_smallest_code() -> None:
    half = thinned((64, 64, 3, 3), 0.5, half=True)
    assert coding(half) == ("bits", 1)
    # 2 bytes for each second element, and a bit for each.
    assert encode(half).nbytes == pytest.approx((1 + 1 / 8) * half.size, rel=0.01)
    assert coding(thinned((64, 64), 0.95)) == ("gaps", 1)
    assert coding(thinned((64, 64), 0.0)) == ("dense", 1)
    assert encode(thinned((64, 64), 0.0)).nbytes == 4 * 64 * 64
    assert coding(np.zeros((64, 64), np.float32))[0] == "gaps"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep", [1, 2])
def test_patterns(axis: int, keep: int) -> None:
    array = np.moveaxis(thinned((48, 24, 3, 3), 0.0), axis, -1).copy()
    groups = array.reshape(-1, 4)
    rank = np.argsort(np.argsort(np.abs(groups), axis=1), axis=1)
    groups[rank < 4 - keep] = 0
    array = np.ascontiguousarray(np.moveaxis(groups.reshape(array.shape), -1, axis))
    found = encode(array)
    assert found.coding == "patterns"
    assert same_bits(decode(found), array)
    # Three patterns of 2:4, or four of 1:4, in a byte: less than a bit per element.
    assert found.mask.size == -(-array.size // 4 // (3 if keep == 2 else 4))
    array[0, :4] = 1.0
    array[:4, 0] = 1.0
    assert encode(array).coding != "patterns"


@pytest.mark.parametrize("block", [(1, 4), (4, 1), (4, 4), (1, 9)])
def test_blocks(block: tuple[int, int]) -> None:
    r, c = block
    rng = np.random.default_rng(0)
    kept = rng.random((64 // r, 72 // c)) < 0.5
    dense = thinned((64, 72), 0.0)
    array = np.where(kept.repeat(r, 0).repeat(c, 1), dense, np.float32(0)).reshape(64, 8, 3, 3)
    found = encode(array)
    assert (found.coding, found.layout.unit) == ("bits", r * c)
    assert same_bits(decode(found), array)


def test_long_gaps_are_bridged() -> None:
    array = np.zeros(2000, np.float32)
    array[[254, 255, 510, 1999]] = 1.5
    found = encode(array)
    assert found.coding == "gaps"
    assert same_bits(decode(found), array)
    assert len(found.mask) < 20


def test_nothing_to_code() -> None:
    for array in (np.zeros((0, 3), np.float32), np.array(1.0, np.float32)):
        with pytest.raises(ValueError, match="has nothing to code"):
            encode(array)

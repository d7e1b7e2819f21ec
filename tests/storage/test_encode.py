"""Codes of arrays, without a model."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from storage.arrays import all_kinds, clustered, clustered_rows, quantized, thinned

from graphopt.storage import decode, encode, index_bits
from graphopt.storage.encode import candidates
from graphopt.storage.lookup import index

Array = np.ndarray[Any, Any]


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check(array: Array) -> list[str]:
    """Every code keeps every bit, and the smallest is taken; their names."""
    found = list(candidates(array))
    assert all(same_bits(decode(code), array) for code in found)
    best = encode(array)
    assert same_bits(decode(best), array)
    # Bytes are reckoned with before a code is made; a mask brings one unit of zeros along.
    slack = array.dtype.itemsize * 64
    assert best.nbytes <= min(code.nbytes for code in found) + slack
    return [str(code) for code in found]


@pytest.mark.parametrize("shape", [(1,), (7,), (300,), (16, 20), (16, 8, 3, 3), (5, 7, 3), (4, 1)])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("half", [False, True])
def test_every_code_keeps_every_bit(shape: tuple[int, ...], zeros: float, half: bool) -> None:
    check(thinned(shape, zeros, half=half))


@pytest.mark.parametrize("kind", all_kinds())
def test_every_kind_keeps_every_bit(kind: str) -> None:
    check(all_kinds()[kind])


_NUMBERS = [
    np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_
]  # fmt: skip


@hypothesis.given(
    arrays.arrays(
        st.sampled_from(_NUMBERS),
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=9),
        fill=st.just(0),
    )
)
def test_any_array(array: Array) -> None:
    check(array)


@hypothesis.given(
    st.sampled_from(_NUMBERS).flatmap(
        lambda dtype: arrays.arrays(dtype, st.integers(1, 6), unique=True)
    ),
    arrays.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=12),
    st.integers(0, 99),
)
def test_any_few_values(values: Array, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    check(values[rng.integers(0, len(values), shape)])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC12345])
def test_nan_keeps_its_bits(bits: int) -> None:
    nan = np.array([bits], np.uint32).view(np.float32)[0]
    array = thinned((16, 16), 0.5, half=True)
    array[3, 5] = nan
    check(array)
    few = clustered((40, 40), 5, zeros=0.5)
    few[few == few.max()] = nan
    check(few)
    assert "book of 5" in str(encode(few))


def test_minus_zero_and_nan_are_not_zero() -> None:
    array = np.zeros(64, np.float32)
    array[3], array[9] = -0.0, np.nan
    array[12] = np.array([0x7F800001], np.uint32).view(np.float32)[0]  # one that 16 bits lose
    assert same_bits(decode(encode(array)), array)
    assert same_bits(decode(encode(array[:12])), array[:12])
    assert str(encode(all_kinds()["minus zero"])) == "book of 2"


@pytest.mark.parametrize("odd", [65520.0, 1e-9, 1.0 + 2.0**-11])
def test_floats_that_16_bits_do_not_hold(odd: float) -> None:
    array = thinned((64, 64), 0.5, half=True)
    found = encode(array)
    assert isinstance(found.what, np.ndarray)
    assert found.what.dtype == np.float16
    array[0, 0] = odd
    found = encode(array)
    assert isinstance(found.what, np.ndarray)
    assert found.what.dtype == np.float32
    assert same_bits(decode(found), array)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("varied", "plain"),
        ("half", "bits, float16"),
        ("few", "gaps"),
        ("2:4", "patterns"),
        ("blocks", "bits of 9"),
        ("book", "book of 5"),
        ("wide book", "book of 70"),
        ("large book", "book of 300"),
        ("book of zeros", "bits, book of 6"),
        ("book of few", "gaps, book of 16"),
        ("rows", "book of 4 in 6 blocks"),
        ("rows with zeros", "bits, book of 4 in 6 blocks"),
        ("columns", "book of 4 in 6 blocks"),
        ("parts", "book of 7 x 4 in 6 blocks"),
        ("vectors", "book of 7 x 2"),
        ("channels", "book of 4 x 18"),
        ("one value", "repeated"),
        ("repeated", "repeated"),
        ("integers", "int8"),
    ],
)
def test_which_code_is_smallest(kind: str, name: str) -> None:
    assert str(encode(all_kinds()[kind])) == name


def test_bytes_per_weight() -> None:
    half = thinned((64, 64, 3, 3), 0.5, half=True)
    # 2 bytes for each second element, and a bit for each.
    assert encode(half).nbytes == pytest.approx((1 + 1 / 8) * half.size, rel=0.01)
    assert encode(thinned((64, 64), 0.0)).nbytes == 4 * 64 * 64
    for entries in (2, 3, 4, 6, 9, 16, 21, 40, 73, 256):
        array = clustered((64, 64, 3, 3), entries)
        bits = 8 * encode(array).nbytes / array.size
        assert bits == pytest.approx(index_bits(entries) + 32 * entries / array.size, abs=0.01)
    both = clustered((64, 64, 3, 3), 16, zeros=0.5)
    assert 8 * encode(both).nbytes / both.size == pytest.approx(1 + 4 / 2, rel=0.02)
    assert encode(np.zeros((64, 64), np.float32)).nbytes == 1


def test_books_of_blocks_are_worth_their_tables() -> None:
    rows = clustered_rows((64, 512), 16, 64)
    assert 8 * encode(rows).nbytes / rows.size == pytest.approx(4 + 32 * 16 / 512)
    few = clustered_rows((64, 32), 16, 64)  # a table for each row would be as large as the row
    assert encode(few).nbytes <= few.nbytes
    embeddings = quantized((3000, 32), 256, 4)
    assert 8 * encode(embeddings).nbytes / embeddings.size == pytest.approx(
        2 + 32 * 256 * 32 / embeddings.size  # an index of 8 bits for four, and the tables
    )


def test_other_types() -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 50000, (64, 64))
    assert str(encode(wide)) == "uint16"
    assert str(encode(wide - 25000)) == "int16"
    assert str(encode(wide * 3)) == "int32"
    assert str(encode(rng.random((64, 64)) < 0.5)) == "book of 2"
    bfloat = rng.normal(size=(64, 64)).astype(ml_dtypes.bfloat16)
    assert encode(bfloat.astype(np.float32)).nbytes <= bfloat.nbytes
    check(bfloat.astype(np.float32))
    check(clustered((64, 64), 5).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep", [1, 2])
def test_patterns(axis: int, keep: int) -> None:
    array = np.moveaxis(thinned((48, 24, 3, 3), 0.0), axis, -1).copy()
    groups = array.reshape(-1, 4)
    rank = np.argsort(np.argsort(np.abs(groups), axis=1), axis=1)
    groups[rank < 4 - keep] = 0
    array = np.ascontiguousarray(np.moveaxis(groups.reshape(array.shape), -1, axis))
    found = encode(array)
    assert found.where == "patterns"
    assert same_bits(decode(found), array)
    # Three patterns of 2:4, or four of 1:4, in a byte: less than a bit per element.
    assert found.mask is not None
    assert found.mask.nbytes == -(-array.size // 4 // (3 if keep == 2 else 4))
    array[0, :4] = 1.0
    array[:4, 0] = 1.0
    assert encode(array).where != "patterns"


@pytest.mark.parametrize("block", [(1, 4), (4, 1), (4, 4), (1, 9)])
def test_blocks(block: tuple[int, int]) -> None:
    r, c = block
    rng = np.random.default_rng(0)
    kept = rng.random((64 // r, 72 // c)) < 0.5
    dense = thinned((64, 72), 0.0)
    array = np.where(kept.repeat(r, 0).repeat(c, 1), dense, np.float32(0)).reshape(64, 8, 3, 3)
    found = encode(array)
    assert (found.where, found.layout.unit) == ("bits", r * c)
    assert same_bits(decode(found), array)


def test_long_gaps_are_bridged() -> None:
    array = np.zeros(2000, np.float32)
    array[[254, 255, 510, 1999]] = 1.5, 2.5, 0.1, 7
    found = encode(array)
    assert found.where == "gaps"
    assert same_bits(decode(found), array)
    assert found.mask is not None
    assert found.mask.nbytes < 20


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("entries", [16, 200, 1000])
def test_numbers_that_no_sample_sees(entries: int, dtype: type) -> None:
    """They are found in pieces, one after the other."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(min(np.iinfo(dtype).max, 2**40), entries % 256 + 13).astype(dtype)
    numbers = kinds[rng.integers(0, len(kinds) - 13, 2_200_000)]
    numbers[-13:-6], numbers[1_100_000:1_100_006] = kinds[-13:-6], kinds[-6:]
    seen: list[int] = []
    found = index(numbers, lambda n: seen.append(n) is None)
    assert found is not None
    table, places = found
    assert np.array_equal(table[places], numbers)
    assert len(np.unique(table)) == len(table) == max(seen)
    assert index(numbers, lambda n: n < len(table)) is None


def test_units_that_keys_mix_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.storage import books

    array = quantized((64, 24), 7, 4)
    assert "7 x 4" in str(encode(array))
    real = books._keys

    def bad(units: Array) -> Array:
        keys = real(units)
        return keys if keys.dtype != np.uint64 else keys & np.uint64(3)

    monkeypatch.setattr(books, "_keys", bad)
    found = encode(array)
    assert same_bits(decode(found), array)


def test_nothing_to_code() -> None:
    for array in (np.zeros((0, 3), np.float32), np.array(1.0, np.float32)):
        with pytest.raises(ValueError, match="has nothing to code"):
            encode(array)

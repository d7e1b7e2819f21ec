from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from graphopt.storage import index_bits
from graphopt.storage.packing import pack, packing


@hypothesis.given(st.integers(1, 70000), st.integers(0, 40), st.integers(0, 9))
def test_numbers_come_back(base: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, base, count)
    numbers[: count // 2] = base - 1  # the largest words there are
    packed = pack(numbers, base)
    assert np.array_equal(packed.numbers(), numbers)
    assert packed.nbytes == packing(base).nbytes(count)


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (1, 0), (2, 1), (3, 1.6), (4, 2), (6, 8 / 3), (9, 3.2), (10, 32 / 9), (16, 4), (21, 32 / 7),
        (40, 16 / 3), (73, 6.4), (74, 8), (256, 8), (257, 32 / 3), (65536, 16),
    ],
)  # fmt: skip
def test_bits_of_an_index(entries: int, bits: float) -> None:
    assert index_bits(entries) == pytest.approx(bits)


def test_more_entries_never_take_less() -> None:
    bits = [index_bits(n) for n in range(1, 3000)]
    assert bits == sorted(bits)


@pytest.mark.parametrize("entries", [0, -1, 2**31 + 1])
def test_impossible_numbers_of_entries(entries: int) -> None:
    with pytest.raises(ValueError, match=r"below 1 to 2\*\*31, not"):
        index_bits(entries)

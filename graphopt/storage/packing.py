"""Numbers below a bound, several in a word: ``first * base ** (digits - 1) + ... + last``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Packing", "index_bits", "packing"]

Array = np.ndarray[Any, Any]

# Sizes of words in bits, the fastest to decode first among those that take the same space.
_WORDS = (8, 16, 32)
_MOST_BITS = 32


@dataclasses.dataclass(frozen=True)
class Packing:
    """How numbers are packed.

    Attributes:
        base: What the numbers are below.
        word: Bits of a word.
        digits: Numbers in a word, the first most significant.
    """

    base: int
    word: int
    digits: int

    @property
    def bits(self) -> float:
        """Bits per number."""
        return self.word / self.digits


def packing(base: int) -> Packing:
    """The packing that takes the fewest bits.

    Args:
        base: What the numbers are below: 1 to 2**32.

    Raises:
        ValueError: It is out of these bounds.
    """
    if not 1 <= base <= 2**_MOST_BITS:
        raise ValueError(f"numbers are below 1 to 2**32, not {base}")
    found = [Packing(base, word, _digits(base, word)) for word in _WORDS if base <= 2**word]
    return min(found, key=lambda each: each.bits)


def index_bits(entries: int) -> float:
    """Bits that an index into a table takes in a file.

    Args:
        entries: Entries of the table, 1 to 2**32: 2 take 1 bit, 3 take 1.6, 4 take 2, 6 take
            2.67, 9 take 3.2, 16 take 4, 40 take 5.33, 84 take 6.4, 256 take 8.

    Raises:
        ValueError: There are none, or too many.
    """
    return 0.0 if entries == 1 else packing(entries).bits


def _digits(base: int, word: int) -> int:
    digits = 1
    while base > 1 and base ** (digits + 1) <= 2**word:
        digits += 1
    return digits

"""Numbers below a bound, several in a word: ``first * base ** (digits - 1) + ... + last``."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np

__all__ = ["Packed", "Packing", "index_bits", "pack", "packing"]

Array = np.ndarray[Any, Any]

# Sizes of words in bits and what words are below, the fastest to decode first among those that take
# the same space. All are read as signed integers of 32 bits.
_WORDS = ((8, 2**8), (16, 2**16), (32, 2**31))
_MOST = 2**31
_TYPES = {8: np.uint8, 16: np.uint16, 32: np.int32}


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

    def nbytes(self, count: int) -> int:
        """Bytes that so many numbers take."""
        return -(-count // self.digits) * self.word // 8


@cache
def packing(base: int) -> Packing:
    """The packing that takes the fewest bits.

    Args:
        base: What the numbers are below: 1 to 2**31.

    Raises:
        ValueError: It is out of these bounds.
    """
    if not 1 <= base <= _MOST:
        raise ValueError(f"numbers are below 1 to 2**31, not {base}")
    base = max(base, 2)
    found = [Packing(base, word, _digits(base, most)) for word, most in _WORDS if base <= most]
    return min(found, key=lambda each: each.bits)


def index_bits(entries: int) -> float:
    """Bits that an index into a table takes in a file.

    Args:
        entries: Entries of the table, 1 to 2**31: 2 take 1 bit, 3 take 1.6, 4 take 2, 6 take
            2.67, 9 take 3.2, 16 take 4, 21 take 4.57, 40 take 5.33, 73 take 6.4, 256 take 8.

    Raises:
        ValueError: There are none, or too many.
    """
    return 0.0 if entries == 1 else packing(entries).bits


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Numbers in words.

    Attributes:
        words: ``[words]``, uint8, uint16 or int32.
        packing: How many there are in each; those beyond ``count`` are 0.
        count: How many there are.
    """

    words: Array
    packing: Packing
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return self.words.nbytes

    def numbers(self) -> Array:
        """The numbers, uint8 ``[count]`` where words have 8 bits, else int64."""
        base, digits, word = self.packing.base, self.packing.digits, self.packing.word
        powers = base ** np.arange(digits - 1, -1, -1)
        if word == 8:
            table = (np.arange(2**word)[:, None] // powers % base).astype(np.uint8)
            found: Array = table[self.words]
        else:
            found = self.words.astype(np.int64)[:, None] // powers % base
        return found.reshape(-1)[: self.count]


def pack(numbers: Array, base: int) -> Packed:
    """Pack numbers.

    Args:
        numbers: Integers in ``[0, base)``, ``[count]``.
        base: What they are below.
    """
    how = packing(base)
    if how.base == 2:
        return Packed(np.packbits(numbers != 0), how, len(numbers))
    words = np.zeros(-(-len(numbers) // how.digits), _TYPES[how.word])
    for place in range(how.digits):
        digit = numbers[place :: how.digits]
        words *= words.dtype.type(how.base if place else 1)
        words[: len(digit)] += digit.astype(words.dtype)
    return Packed(words, how, len(numbers))


def _digits(base: int, most: int) -> int:
    digits = 1
    while base ** (digits + 1) <= most:
        digits += 1
    return digits

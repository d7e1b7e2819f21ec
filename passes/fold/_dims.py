"""Sizes that are not known as numbers: products of symbolic dimensions.

A :class:`Dim` is ``coefficient * symbol * symbol * ...``, enough for what shape computations of
real models contain, and small enough that equality is plain comparison. Symbols stand for sizes, so
they are never negative, but they may be 0.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

__all__ = ["Dim", "Element", "add", "compare", "divide", "modulo", "multiply", "subtract"]


@dataclasses.dataclass(frozen=True)
class Dim:
    """A product of symbols.

    Attributes:
        coefficient: Factor, not 0.
        symbols: At least one, sorted; repeated for powers.
    """

    coefficient: int
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        factors = [str(self.coefficient)] if self.coefficient != 1 else []
        return "*".join((*factors, *self.symbols))


Element = int | Dim | None
"""An element of a tensor of sizes: a number, a symbolic size, or unknown."""


def _parts(value: int | Dim) -> tuple[int, tuple[str, ...]]:
    return (value, ()) if isinstance(value, int) else (value.coefficient, value.symbols)


def _make(coefficient: int, symbols: tuple[str, ...]) -> int | Dim:
    return Dim(coefficient, symbols) if coefficient and symbols else coefficient


def multiply(a: Element, b: Element) -> Element:
    """``a * b``."""
    if a is None or b is None:
        return 0 if a == 0 or b == 0 else None
    (m, s), (n, t) = _parts(a), _parts(b)
    return _make(m * n, tuple(sorted(s + t)))


def add(a: Element, b: Element) -> Element:
    """``a + b``, where it is a single product."""
    if a is None or b is None:
        return None
    (m, s), (n, t) = _parts(a), _parts(b)
    if s == t:
        return _make(m + n, s)
    return b if a == 0 else a if b == 0 else None


def subtract(a: Element, b: Element) -> Element:
    """``a - b``, where it is a single product."""
    return add(a, multiply(b, -1))


def divide(a: Element, b: Element) -> Element:
    """``a / b`` as integer division of ONNX does it: towards zero.

    Common symbols cancel: where they are 0, the division has no result anyway.
    """
    if a is None or b is None or b == 0:
        return None
    (m, s), (n, t) = _parts(a), _parts(b)
    if not s and not t:
        return abs(m) // abs(n) * (1 if (m < 0) == (n < 0) else -1)
    if a == 0:
        return 0
    left, right = Counter(s), Counter(t)
    if right - left or m % n:
        return None
    return _make(m // n, tuple(sorted((left - right).elements())))


def modulo(a: Element, b: Element, *, fmod: bool = False) -> Element:
    """The remainder, with the sign of the divisor, or of the dividend if ``fmod``."""
    if a is None or b is None or b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) % abs(b) * (-1 if a < 0 else 1) if fmod else a % b
    return 0 if divide(a, b) is not None else None


def compare(op: Callable[[int, int], bool], a: Element, b: Element) -> bool | None:
    """``op(a, b)`` where sizes being at least 0 is enough to tell.

    Args:
        op: A comparison from the ``operator`` module.
        a: Left side.
        b: Right side.
    """
    if a is None or b is None:
        return None
    if a == b:
        return op(0, 0)
    low_a, high_a = _range(a)
    low_b, high_b = _range(b)
    if low_a is not None and low_a == high_a and low_b is not None and low_b == high_b:
        return op(low_a, low_b)
    if high_a is not None and low_b is not None and high_a < low_b:
        return op(0, 1)
    if high_b is not None and low_a is not None and high_b < low_a:
        return op(1, 0)
    if high_a is not None and low_b is not None and high_a <= low_b and op(0, 0) == op(0, 1):
        return op(0, 0)
    if high_b is not None and low_a is not None and high_b <= low_a and op(0, 0) == op(1, 0):
        return op(0, 0)
    return None


def _range(value: int | Dim) -> tuple[int | None, int | None]:
    if isinstance(value, int):
        return value, value
    return (0, None) if value.coefficient > 0 else (None, 0)

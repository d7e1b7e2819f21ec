from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.fold._dims import (
    Dim,
    Element,
    add,
    compare,
    divide,
    modulo,
    multiply,
    subtract,
)

NAMES = ("a", "b", "c")
dims = st.builds(
    lambda coefficient, symbols: Dim(coefficient, tuple(sorted(symbols))),
    st.integers(-6, 6).filter(bool),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
)
elements = st.one_of(st.none(), st.integers(-12, 12), dims)
sizes = st.fixed_dictionaries({name: st.integers(0, 5) for name in NAMES})


def evaluate(element: Element, where: dict[str, int]) -> int | None:
    if isinstance(element, Dim):
        return element.coefficient * math.prod(where[name] for name in element.symbols)
    return element


def truncate(a: int, b: int) -> int:
    return int(math.copysign(abs(a) // abs(b), a * b)) if b else 0


@given(elements, elements, sizes)
def test_arithmetic_holds_for_all_sizes(a: Element, b: Element, where: dict[str, int]) -> None:
    left, right = evaluate(a, where), evaluate(b, where)
    if left is None or right is None:
        return
    for found, wanted in (
        (add(a, b), left + right),
        (subtract(a, b), left - right),
        (multiply(a, b), left * right),
    ):
        assert found is None or evaluate(found, where) == wanted
    if right:
        quotient = divide(a, b)
        assert quotient is None or evaluate(quotient, where) == truncate(left, right)
        rest = modulo(a, b)
        assert rest is None or evaluate(rest, where) == left % right
        rest = modulo(a, b, fmod=True)
        assert rest is None or evaluate(rest, where) == math.fmod(left, right)


@pytest.mark.parametrize(
    "op", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
)
@given(a=elements, b=elements, where=sizes)
def test_comparisons_hold_for_all_sizes(
    op: Callable[[int, int], bool], a: Element, b: Element, where: dict[str, int]
) -> None:
    found = compare(op, a, b)
    left, right = evaluate(a, where), evaluate(b, where)
    if found is not None and left is not None and right is not None:
        assert found == op(left, right)


def test_what_has_to_be_found() -> None:
    n, n12 = Dim(1, ("n",)), Dim(12, ("n",))
    assert multiply(n, 12) == n12
    assert multiply(None, 0) == 0
    assert divide(n12, 4) == Dim(3, ("n",))
    assert divide(n12, n) == 12
    assert divide(n12, 5) is None
    assert divide(7, -2) == -3
    assert modulo(n12, 4) == 0
    assert modulo(-7, 3) == 2
    assert modulo(-7, 3, fmod=True) == -1
    assert add(n, n) == Dim(2, ("n",))
    assert subtract(n, n) == 0
    assert add(n, 1) is None
    assert compare(operator.eq, n, -1) is False
    assert compare(operator.eq, n, n) is True
    assert compare(operator.ge, n, 0) is True
    assert compare(operator.gt, n, 0) is None
    assert str(n12) == "12*n"

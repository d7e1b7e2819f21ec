"""The minimum cut finds what trying every division finds."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import ir
from graphopt.quant.choose import cheapest, expected, frontier
from graphopt.quant.costs import Costs
from graphopt.quant.units import Units
from graphopt.targets import get


def units_of(graph: str, opset: int = 17) -> Units:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": {opset}]>\ng {graph}')
    ir.infer_shapes(model)
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    return Units(model, scheme)


def random_units(rng: random.Random, size: int) -> Units:
    """A graph of units, operators that are none, moves, fan-out and several outputs."""
    lines: list[str] = []
    values = ["x"]
    while len(lines) < size:
        out = f"v{len(lines)}"
        one, other = rng.choice(values[-4:]), rng.choice(values)
        kind = rng.choice(["Add", "Add", "Mul", "Tanh", "Transpose", "Constant"])
        if kind == "Constant":
            lines.append(f"{out} = Add({one}, k)")
        elif kind in ("Tanh", "Transpose"):
            lines.append(f"{out} = {kind}({one})")
        else:
            lines.append(f"{out} = {kind}({one}, {other})")
        values.append(out)
    more = rng.sample(values[1:-1], min(2, len(values) - 2))
    outs = ", ".join(f"float[2,2] {v}" for v in dict.fromkeys([values[-1], *more]))
    return units_of(
        f"(float[2,2] x) => ({outs}) <float[2,2] k = {{1, 2, 3, 4}}> {{ {' '.join(lines)} }}"
    )


def random_costs(rng: random.Random, units: Units) -> tuple[Costs, dict[str, float]]:
    def times(names: Sequence[str], most: float) -> dict[str, float]:
        return {n: rng.choice([0.0, rng.uniform(0, most), rng.uniform(0, most)]) for n in names}

    names = [u.name for u in units]
    values = [v.name or "" for v in units.tensors()]
    costs = Costs(times(names, 10), times(names, 8), times(values, 3), times(values, 3))
    return costs, times(list(dict.fromkeys(units.root(v).name or "" for v in units.tensors())), 2)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 8))
def test_no_division_is_cheaper(seed: int, size: int) -> None:
    rng = random.Random(seed)
    units = random_units(rng, size)
    costs, noise = random_costs(rng, units)
    names = [u.name for u in units]
    weights = {n: rng.uniform(0, 1) for n in names if rng.random() < 0.5}
    fixed = {n for n in names if rng.random() < 0.2}
    price = rng.choice([0.0, 0.5, 3.0])
    found = cheapest(units, costs, noise, weights, price, fixed=fixed)
    assert not found.integer & fixed
    assert found == expected(units, costs, noise, weights, found.integer)
    free = [n for n in names if n not in fixed]
    every = (
        expected(units, costs, noise, weights, set(some))
        for count in range(len(free) + 1)
        for some in itertools.combinations(free, count)
    )
    best = min(d.seconds + price * d.noise for d in every)
    assert found.seconds + price * found.noise == pytest.approx(best, abs=1e-9)


CHAIN = "(float[2,2] x) => (float[2,2] c) { a = Add(x, x) b = Mul(a, a) c = Add(b, b) }"


def chain(floating: float, integer: float, convert: float) -> tuple[Units, Costs]:
    units = units_of(CHAIN)
    names, values = "abc", "xabc"
    return units, Costs(
        dict.fromkeys(names, floating),
        dict.fromkeys(names, integer),
        dict.fromkeys(values, convert),
        dict.fromkeys(values, convert),
    )


def test_what_divisions_take() -> None:
    units, costs = chain(10.0, 4.0, 3.0)
    noise = {"x": 0.1, "a": 0.2, "b": 0.4, "c": 0.8}
    whole = expected(units, costs, noise, {"b": 1.0}, {"a", "b", "c"})
    assert whole.seconds == pytest.approx(3 * 4 + 3 + 3)  # into x and out of c, nothing between
    assert whole.noise == pytest.approx(2.5)
    middle = expected(units, costs, noise, {"b": 1.0}, {"b"})
    assert middle.seconds == pytest.approx(10 + 4 + 10 + 3 + 3)
    assert middle.noise == pytest.approx(1.6)
    none = expected(units, costs, noise, {}, set())
    assert (none.seconds, none.noise) == (30, 0)


def test_conversions_can_outweigh_kernels() -> None:
    assert cheapest(*chain(10.0, 4.0, 3.0), {}, {}, 0.0).integer == frozenset("abc")
    assert cheapest(*chain(10.0, 4.0, 10.0), {}, {}, 0.0).integer == frozenset()
    units, costs = chain(10.0, 4.0, 3.5)  # alone, a node would take 11
    assert cheapest(units, costs, {}, {}, 0.0).integer == frozenset("abc")
    assert cheapest(units, costs, {}, {}, 0.0, fixed={"b"}).integer == frozenset()


def test_noise_has_its_price() -> None:
    units, costs = chain(10.0, 4.0, 1.0)
    noise = {"c": 1.0}
    assert cheapest(units, costs, noise, {}, 1.0).integer == frozenset("abc")
    assert cheapest(units, costs, noise, {}, 100.0).integer == frozenset("ab")
    assert cheapest(units, costs, {"x": 1.0}, {}, 100.0).integer == frozenset("bc")


def test_a_value_is_converted_once_however_many_read_it() -> None:
    units = units_of(
        "(float[2,2] x) => (float[2,2] c, float[2,2] d) "
        "{ a = Tanh(x) b = Mul(a, a) c = Add(a, b) d = Tanh(b) }"
    )
    one = dict.fromkeys("abcx", 1.0)
    costs = Costs({"b": 5, "c": 5}, {"b": 1, "c": 1}, one, one)
    found = expected(units, costs, {}, {}, {"b", "c"})
    assert found.seconds == 1 + 1 + 1 + 2  # kernels; a; b for d, and c for the graph output
    assert cheapest(units, costs, {}, {}, 0.0) == found


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_the_frontier(seed: int) -> None:
    rng = random.Random(seed)
    units = random_units(rng, 10)
    costs, noise = random_costs(rng, units)
    weights = {u.name: rng.uniform(0, 1) for u in units}
    fixed = {u.name for u in units if rng.random() < 0.1}
    divisions = list(frontier(units, costs, noise, weights, fixed=fixed))
    assert divisions[0].seconds == min(d.seconds for d in divisions)
    assert len({d.integer for d in divisions}) == len(divisions)
    for before, after in itertools.pairwise(divisions):
        assert after.noise <= before.noise + 1e-9
        assert after.seconds >= before.seconds - 1e-9
    for each in divisions:
        assert not each.integer & fixed
        assert each == expected(units, costs, noise, weights, each.integer)


def test_units_that_break_the_outputs_are_never_chosen() -> None:
    units, costs = chain(10.0, 4.0, 0.1)
    for noise, weights in (({"c": math.inf}, {}), ({}, {"c": math.nan})):
        divisions = list(frontier(units, costs, {"a": 0.1, **noise}, weights))
        assert divisions[0].integer == frozenset("ab")
        assert all(math.isfinite(d.noise) for d in divisions)


def test_nothing_to_divide() -> None:
    units = units_of("(float[2] x) => (float[2] y) { y = Tanh(x) }")
    (only,) = frontier(units, Costs({}, {}, {}, {}), {}, {})
    assert only.integer == frozenset()
    assert only.seconds == only.noise == 0

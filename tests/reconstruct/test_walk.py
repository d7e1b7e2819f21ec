from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.reconstruct import Walk
from graphopt.rewrite import Rewriter
from graphopt.runtime import compare, open_session, probe_feeds
from graphopt.testing import random_model

Array = np.ndarray[Any, Any]

DIAMOND = """
<ir_version: 8, opset_import: ["" : 17]>
m (float[N,3] x, float[N,3] unused, bool c) => (float[N,3] y, float[N,3] b)
<float[3] w = {1.0, 2.0, 3.0}> {
  a = Relu(x)
  b = Mul(a, w)
  d = Tanh(b)
  y = If(c) <
    then_branch = t () => (float[N,3] p) { p = Add(a, d) },
    else_branch = e () => (float[N,3] q) { q = Sub(d, x) }
  >
}
"""


def feeds(*sizes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(n, 3)).astype(np.float32), "c": np.array(i % 2 == 0)}
        for i, n in enumerate(sizes)
    ]


def whole(model: ir.Model, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with open_session(model) as session:
        return [session.run(each) for each in batches]


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_walk_computes_what_a_run_does(seed: int, data: st.DataObject) -> None:
    model = random_model(seed, nodes=14)
    batches = [dict(each) for each in probe_feeds(model, seeds=(0, 1), settings=1)]
    names = [v.name or "" for v in model.graph.outputs]
    count = len(list(model.graph))
    stops = data.draw(st.sets(st.integers(0, count), max_size=6))
    limit = data.draw(st.sampled_from([0, 64, 1 << 20]))  # bytes before files are used
    with pytest.MonkeyPatch.context() as patch, Walk(model, batches, threads=1) as walk:
        patch.setattr(walk._held, "limit", limit)
        for position in [*sorted(stops), count]:
            walk.to(position, keep=names)
            assert walk.position == position
        for i, reference in enumerate(whole(model, batches)):
            got = {name: walk.values(name)[i] for name in names}
            outcome = compare(reference, got, "rounding")
            assert outcome.ok, outcome.reason


def test_node_by_node_it_holds_what_is_still_read() -> None:
    model = ir.parse_text(DIAMOND)
    walk = Walk(model, feeds(2, 1), threads=1)
    assert walk.batches == 2
    held = []
    for position in range(5):
        walk.to(position)
        held.append({n for n in ("x", "c", "a", "b", "d", "y") if walk.holds(n)})
    assert held == [
        {"x", "c"},
        {"x", "c", "a"},
        {"x", "c", "a", "b"},
        {"x", "c", "a", "d"},
        set(),
    ]


def test_what_is_kept_stays_until_it_is_not() -> None:
    model = ir.parse_text(DIAMOND)
    batches = feeds(2, 1)
    walk = Walk(model, batches, threads=1)
    walk.to(4, keep={"y", "b", "x"})
    for i, reference in enumerate(whole(model, [b | {"unused": b["x"]} for b in batches])):
        np.testing.assert_allclose(walk.values("y")[i], reference["y"], rtol=1e-6)
        np.testing.assert_allclose(walk.values("b")[i], reference["b"], rtol=1e-6)
        np.testing.assert_array_equal(walk.values("x")[i], batches[i]["x"])
    walk.to(4, keep={"b"})
    assert [walk.holds(name) for name in ("y", "b", "x")] == [False, True, False]


def test_values_are_read_when_they_are_asked_for() -> None:
    walk = Walk(ir.parse_text(DIAMOND), feeds(2, 1), threads=1)
    walk.to(2)
    values = walk.values("b")
    assert [each.shape for each in values] == [(2, 3), (1, 3)]
    walk.to(3)
    assert not walk.holds("b")
    with pytest.raises(KeyError):
        values[0]


def test_weights_may_change_behind_the_position() -> None:
    model = ir.parse_text(DIAMOND)
    batches = feeds(2, 1)
    walk = Walk(model, batches, threads=1)
    walk.to(1)
    multiply = list(model.graph)[1]
    rw = Rewriter(model)
    rw.set_input(multiply, 1, rw.const(np.full(3, 7, np.float32)))
    walk.to(2)
    for value, each in zip(walk.values("b"), batches, strict=True):
        np.testing.assert_allclose(value, 7 * np.maximum(each["x"], 0))


def test_a_look_ahead_holds_nothing() -> None:
    model = ir.parse_text(DIAMOND)
    batches = feeds(2, 1)
    walk = Walk(model, batches, threads=1)
    walk.to(1)
    d = list(model.graph)[2].outputs[0]
    for value, each in zip(walk.ahead(d), batches, strict=True):
        expected = np.tanh(np.maximum(each["x"], 0) * np.float32([1, 2, 3]))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert not walk.holds("d")
    assert walk.position == 1


def test_inputs_with_defaults() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[N] x, float[1] w) => (float[N] y) <float[1] w = {2.0}> { a = Mul(x, w) y = Relu(a) }
    """
    x = np.float32([1, 2])
    for given_, factor in (({"x": x}, 2), ({"x": x, "w": np.float32([3])}, 3)):
        walk = Walk(ir.parse_text(text), [given_], threads=1)
        walk.to(1)
        np.testing.assert_array_equal(walk.values("a")[0], factor * x)


def test_batches_without_an_element_are_left_out() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[N,4] x) => (float[2,A,B] y) <int64[3] s = {2,-1,1}> { y = Reshape(x, s) }
    """
    model = ir.parse_text(text)
    x = np.ones((3, 4), np.float32)
    walk = Walk(model, [{"x": x[:0]}, {"x": x}], threads=1)
    walk.to(1, keep={"y"})
    assert [value.shape for value in walk.values("y")] == [(2, 6, 1)]


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "no samples"),
        ([{"x": np.ones((1, 3), np.float32)}], "lacks the input 'c'"),
        ([*feeds(1), {"c": np.array(True)}], "lacks the input 'x'"),
        ([*feeds(1), feeds(1)[0] | {"unused": np.ones(1)}], "lacks the input 'unused'"),
    ],
    ids=["none", "never", "once", "only once"],
)
def test_missing_inputs(batches: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        Walk(ir.parse_text(DIAMOND), batches)

"""The problems of layers of a model as it is: their optimum are the weights that they have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reconstruct.single import Array, network, normal, product, run

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.reconstruct import accumulate, layers, observe
from graphopt.reconstruct import problem as problems

BODY = """
    a = Conv<pads = [1, 1, 1, 1]>(x, u, p) b = Relu(a)
    c = Conv<group = 2>(b, v)
    g = GlobalAveragePool(c) f = Flatten(g)
    m = MatMul(f, w) n = Add(m, q)
    o = Tanh(n) y = MatMul(o, z)
"""

PRODUCTS = "a = MatMul(x, u) b = Add(a, p) c = MatMul(x, v) d = Add(b, c) y = Gemm(d, w, q)"


def model() -> ir.Model:
    return network(
        BODY, "N,3,6,6", u=normal(4, 3, 3, 3) / 4, p=normal(4, seed=1),
        v=normal(6, 2, 3, 3, seed=2) / 4, w=normal(6, 5, seed=3), q=normal(5, seed=4),
        z=normal(5, 2, seed=5),
    )  # fmt: skip


def batches(*sizes: int) -> list[dict[str, Any]]:
    return [{"x": normal(n, 3, 6, 6, seed=i)} for i, n in enumerate(sizes)]


def value(given: ir.Model, name: str, x: Array) -> Array:
    """An inner value, as an output of a copy."""
    copy = ir.clone(given)
    inner = next(v for node in copy.graph for v in node.outputs if v.name == name)
    part = ir.segment(copy, list(ir.inputs(copy)), [inner])
    from graphopt.runtime import open_session

    with open_session(part) as session:
        return np.asarray(session.run({"x": x})[name])


def test_every_layer_that_is_named_has_a_problem() -> None:
    given = model()
    found = observe(given, batches(16, 16), ["a", "c", "n", "y"])
    assert list(found) == ["a", "c", "n", "y"]
    for name, problem in found.items():
        assert problem.layer.name == name
        assert problem.residual < 1e-6, "a layer computes what it computes"
        start = problem.layer.matrix().transpose(0, 2, 1)
        columns = start.shape[1]
        np.testing.assert_allclose(problem.optimum[:, :columns], start, atol=1e-3)
        if problem.layer.takes_bias:
            np.testing.assert_allclose(problem.optimum[:, -1], problem.layer.bias(), atol=1e-3)


def test_moments_are_those_of_what_layers_read() -> None:
    given, x = model(), normal(16, 3, 6, 6, seed=3)
    (problem,) = observe(given, [{"x": x}], ["n"], ridge=1e-8).values()
    read = value(given, "f", x).astype(np.float64)
    np.testing.assert_allclose(problem.gram[0, :6, :6], read.T @ read / 16, rtol=1e-3, atol=1e-5)
    targets = product(problem.layer, read.astype(np.float32)) + 0.0
    assert problem.energy == pytest.approx(float((targets**2).sum() / 16), rel=1e-4)
    assert problem.rows == 16


def test_layers_that_are_not_named_have_none() -> None:
    assert list(observe(model(), batches(4), ["n"])) == ["n"]
    assert observe(model(), batches(4), []) == {}
    assert observe(model(), batches(4), ["nothing"]) == {}


def test_the_model_stays_as_it_was() -> None:
    given = model()
    before, x = ir.dump(given), normal(2, 3, 6, 6)
    outputs = run(given, x)
    observe(given, batches(4), [layer.name for layer in layers(given)])
    assert ir.dump(given) == before
    np.testing.assert_array_equal(run(given, x), outputs)


def test_layers_that_are_too_large_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_MOST", 6)  # a is 27 columns wide
    assert list(observe(model(), batches(4), ["a", "n", "y"])) == ["n", "y"]


def test_two_layers_read_one_value_before_either_is_over() -> None:
    given = network(
        "h = Relu(x) a = MatMul(h, u) t = Tanh(a) b = MatMul(h, v) y = Add(t, b)", "N,4",
        u=normal(4, 3), v=normal(4, 3, seed=1),
    )  # fmt: skip
    found = observe(given, [{"x": normal(8, 4)}], ["a", "b"])
    np.testing.assert_array_equal(found["a"].gram, found["b"].gram)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no samples"),
        (batches(0), "no samples"),
        ([{"x": np.full((2, 3, 6, 6), np.nan, np.float32)}], "NaN"),
        ([{"z": normal(2, 3, 6, 6)}], "lacks the input 'x'"),
    ],
)
def test_samples_that_are_none(given: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        observe(model(), given, ["a"])


def test_few_rows_ask_for_no_ridge_where_weights_are_right() -> None:
    """A column that repeats another can be left out without loss, however few the rows are."""
    x = normal(64, 6)
    x[:, 3] = 2 * x[:, 1]
    small = network("y = MatMul(x, w)", "N,6", w=normal(6, 4))
    (problem,) = observe(small, [{"x": x[i : i + 8]} for i in range(0, 64, 8)], {"y"}).values()
    columns = np.ones((1, 6), bool)
    columns[0, 1] = False
    assert problem.error(problem.restricted(columns)) < 1e-3
    columns[0, 2] = False
    assert problem.error(problem.restricted(columns)) > 1e-2


def test_problems_of_some_layers() -> None:
    known = {"u": normal(5, 4), "p": normal(4), "v": normal(5, 4, seed=1), "q": normal(3)}
    model = network(PRODUCTS, "N,5", w=normal(4, 3, seed=2), **known)
    x = normal(90, 5, seed=3)
    batches = [{"x": x[:40]}, {"x": x[40:]}]
    found = observe(model, batches, {"b", "y", "nothing"})
    assert list(found) == ["b", "y"]
    layer = next(each for each in layers(model) if each.name == "b")
    expected = accumulate(layer, [x], [x @ known["u"] + known["p"]], 1, 1e-4)
    np.testing.assert_allclose(found["b"].gram, expected.gram, rtol=1e-4, atol=1e-5)
    for problem in found.values():
        start = problem.layer.matrix().transpose(0, 2, 1)
        np.testing.assert_allclose(problem.optimum[:, :-1], start, atol=1e-4)
        assert problem.rows == 90

from __future__ import annotations

import numpy as np
import pytest
from reconstruct.single import network, normal, only

from graphopt.reconstruct import accumulate, layers, observe
from graphopt.reconstruct import problem as problems

BODY = "a = MatMul(x, u) b = Add(a, p) c = MatMul(x, v) d = Add(b, c) y = Gemm(d, w, q)"


def test_problems_of_some_layers() -> None:
    known = {"u": normal(5, 4), "p": normal(4), "v": normal(5, 4, seed=1), "q": normal(3)}
    model = network(BODY, "N,5", w=normal(4, 3, seed=2), **known)
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


def test_too_large_layers_have_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("y = MatMul(x, w)", "N,5", w=normal(5, 4))
    assert only(model).name == "y"
    monkeypatch.setattr(problems, "_MOST", 4)
    assert observe(model, [{"x": normal(9, 5)}], {"y"}) == {}


def test_few_rows_ask_for_no_ridge_where_weights_are_right() -> None:
    """A column that repeats another can be left out without loss, however few the rows are."""
    x = normal(64, 6)
    x[:, 3] = 2 * x[:, 1]
    model = network("y = MatMul(x, w)", "N,6", w=normal(6, 4))
    (problem,) = observe(model, [{"x": x[i : i + 8]} for i in range(0, 64, 8)], {"y"}).values()
    columns = np.ones((1, 6), bool)
    columns[0, 1] = False
    assert problem.error(problem.restricted(columns)) < 1e-3
    columns[0, 2] = False
    assert problem.error(problem.restricted(columns)) > 1e-2

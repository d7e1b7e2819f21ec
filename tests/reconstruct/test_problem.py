from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct.single import Array, as_rows, network, normal, only, run

from graphopt.errors import CalibrationError
from graphopt.reconstruct import Layer, Problem, accumulate
from graphopt.reconstruct import problem as module
from graphopt.reconstruct.problem import too_large
from graphopt.rewrite import Rewriter

CASES: dict[str, tuple[str, str, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "matmul": ("y = MatMul(x, w)", "N,S,5", (7, 30, 5), {"w": (5, 3)}),
    "gemm": ("y = Gemm<alpha = 0.5>(x, w, b)", "N,5", (200, 5), {"w": (5, 3), "b": (3,)}),
    "conv": ("y = Conv(x, w, b)", "N,3,6,6", (9, 3, 6, 6), {"w": (4, 3, 2, 2), "b": (4,)}),
    "strided": (
        "y = Conv<strides = [2, 1], pads = [1, 1, 0, 1], dilations = [1, 2]>(x, w)",
        "N,3,9,8",
        (9, 3, 9, 8),
        {"w": (4, 3, 3, 2)},
    ),
    "grouped": (
        "y = Conv<group = 2>(x, w, b)",
        "N,4,6,6",
        (9, 4, 6, 6),
        {"w": (6, 2, 2, 2), "b": (6,)},
    ),
    "depthwise": (
        "y = Conv<group = 3>(x, w)",
        "N,3,6,6",
        (9, 3, 6, 6),
        {"w": (6, 1, 3, 3)},
    ),
}


def made(name: str) -> tuple[Layer, Array, Array, list[Array]]:
    """A layer, inputs, targets that are not quite linear in them, and the rows of each group."""
    body, declared, shape, constants = CASES[name]
    data = {k: normal(*s, seed=i) for i, (k, s) in enumerate(constants.items())}
    model = network(body, declared, **data)
    layer, x = only(model), normal(*shape, seed=9)
    y = run(model, x)
    y = (np.tanh(y) + 0.5 + 0.1 * normal(*y.shape, seed=8)).astype(np.float32)
    rows = as_rows(layer, x)[:, None] if layer.patches is None else layer.patches.cut(x, 1 << 30)
    ones = np.ones((len(rows), 1))
    tall = [
        np.hstack([rows[:, g], ones] if layer.takes_bias else [rows[:, g]])
        for g in range(layer.groups)
    ]
    return layer, x, y, [each.astype(np.float64) for each in tall]


def split(layer: Layer, y: Array) -> Array:
    """Targets of each group, ``[groups, rows, outputs]`` float64."""
    return np.moveaxis(
        as_rows(layer, y).reshape(-1, layer.groups, layer.outputs // layer.groups), 1, 0
    ).astype(np.float64)


def squared(rows: list[Array], weights: Array, targets: Array) -> float:
    """Mean squared error, summed over outputs."""
    return sum(
        float(np.sum(np.mean((a @ w - y) ** 2, axis=0)))
        for a, w, y in zip(rows, weights, targets, strict=True)
    )


def solved(layer: Layer, x: Array, y: Array, ridge: float = 0.0) -> Problem:
    return accumulate(layer, [x[:3], x[3:]], [y[:3], y[3:]], 2, ridge)


@pytest.mark.parametrize("name", CASES)
def test_the_optimum_is_that_of_least_squares(name: str) -> None:
    layer, x, y, rows = made(name)
    problem = solved(layer, x, y)
    targets = split(layer, y)
    best = np.stack([np.linalg.lstsq(a, t)[0] for a, t in zip(rows, targets, strict=True)])
    np.testing.assert_allclose(problem.optimum, best, rtol=1e-3, atol=1e-4)
    energy = squared(rows, np.zeros_like(best), targets)
    assert problem.rows == len(rows[0])
    assert problem.energy == pytest.approx(energy, rel=1e-5)
    assert problem.residual == pytest.approx(squared(rows, best, targets) / energy, rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_what_other_weights_add(name: str) -> None:
    layer, x, y, rows = made(name)
    problem = solved(layer, x, y)
    targets = split(layer, y)
    other = problem.optimum + normal(*problem.optimum.shape, seed=3)
    more = squared(rows, other, targets) - squared(rows, problem.optimum, targets)
    assert problem.error(other) * problem.energy == pytest.approx(more, rel=1e-4)
    assert problem.error(problem.optimum) == 0


@pytest.mark.parametrize("name", CASES)
def test_restricted_weights_are_the_best_on_their_columns(name: str) -> None:
    layer, x, y, rows = made(name)
    problem = solved(layer, x, y)
    keep = np.random.default_rng(0).random((layer.groups, layer.columns)) < 0.6
    found = problem.restricted(keep)
    for g, (a, t) in enumerate(zip(rows, split(layer, y), strict=True)):
        free = np.append(keep[g], True) if layer.takes_bias else keep[g]
        np.testing.assert_allclose(
            found[g, free], np.linalg.lstsq(a[:, free], t)[0], rtol=1e-3, atol=1e-3
        )
        assert not found[g, ~free].any()


def test_restricted_to_all_or_nothing() -> None:
    layer, x, y, _ = made("conv")
    problem = solved(layer, x, y, 1e-3)
    everything = problem.restricted(np.ones((1, layer.columns), bool))
    np.testing.assert_allclose(everything, problem.optimum, rtol=1e-8, atol=1e-10)
    nothing = problem.restricted(np.zeros((1, layer.columns), bool))
    assert not nothing[:, :-1].any()
    np.testing.assert_allclose(nothing[0, -1], y.mean(axis=(0, 2, 3)), rtol=0.01)


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 10.0])
@pytest.mark.parametrize("name", CASES)
def test_unchanged_inputs_give_the_weights_back(name: str, ridge: float) -> None:
    body, declared, shape, constants = CASES[name]
    data = {k: normal(*s, seed=i) for i, (k, s) in enumerate(constants.items())}
    model = network(body, declared, **data)
    layer, x = only(model), normal(*shape, seed=9)
    problem = solved(layer, x, run(model, x), ridge)
    start = layer.matrix().transpose(0, 2, 1)
    inputs = problem.optimum[:, : layer.columns]
    np.testing.assert_allclose(inputs, start, rtol=1e-4, atol=1e-4)
    if layer.takes_bias:
        np.testing.assert_allclose(problem.optimum[:, -1], layer.bias(), rtol=1e-4, atol=1e-4)
    assert problem.residual < 1e-5


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_directions_without_samples_stay_as_they_are(ridge: float) -> None:
    w = normal(6, 2)
    layer = only(network("y = Gemm(x, w, b)", "N,6", w=w, b=normal(2, seed=1)))
    x = normal(50, 6, seed=2)
    x[:, 4] = 0  # a dead channel
    x[:, 5] = x[:, 3]  # a channel twice
    y = x @ w + 1
    problem = accumulate(layer, [x], [y], 1, ridge)
    assert np.isfinite(problem.optimum).all()
    np.testing.assert_allclose(problem.optimum[0, :6], w, atol=1e-2)
    np.testing.assert_allclose(problem.optimum[0, 4], w[4], rtol=1e-6)
    keep = np.ones((1, 6), bool)
    keep[0, 5] = False
    both = problem.restricted(keep)[0, 3]
    np.testing.assert_allclose(both, w[3] + w[5], atol=1e-2)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 8),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    ridge=st.sampled_from([0.0, 1e-4]),
    seed=st.integers(0, 1000),
)
def test_few_rows_never_make_it_fail(
    rows: int, columns: int, scale: float, ridge: float, seed: int
) -> None:
    layer = only(network("y = Gemm(x, w, b)", f"N,{columns}", w=normal(columns, 2), b=normal(2)))
    x = (normal(rows, columns, seed=seed) * scale).astype(np.float32)
    y = normal(rows, 2, seed=seed + 1)
    problem = accumulate(layer, [x], [y], 1, ridge)
    np.linalg.cholesky(problem.gram)
    assert np.isfinite(problem.optimum).all()
    # With the weights that it starts from the error is as large, or larger.
    start = np.concatenate([layer.matrix()[0].T, layer.bias()])
    wrong = np.concatenate([x, np.ones((rows, 1))], axis=1) @ start - y
    most = float(np.square(wrong).sum() / np.square(y.astype(np.float64)).sum())
    assert 0 <= problem.residual <= most * (1 + 1e-3)
    found = problem.restricted(np.arange(columns)[None] % 2 == 0)
    assert problem.error(found) >= 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_inputs_does_not_matter(scale: float) -> None:
    w, x = normal(5, 3), normal(60, 5, seed=1)
    y = np.tanh(x @ w)
    found = []
    for s in (1.0, scale):
        layer = only(network("y = Gemm(x, w, b)", "N,5", w=w / s, b=normal(3)))
        problem = accumulate(layer, [(x * s).astype(np.float32)], [y], 1, 1e-2)
        found.append(problem.optimum[0] * np.array([s] * 5 + [1.0])[:, None])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_rows_are_limited_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, y, rows = made("conv")
    monkeypatch.setattr(module, "_WORK", 1)
    monkeypatch.setattr(module, "_ROWS", 8)
    problem = accumulate(layer, [x], [y], 1, 1e-4)
    assert problem.rows == 8 * 13
    assert problem.rows < len(rows[0])
    full = rows[0].T @ rows[0] / len(rows[0])
    assert np.abs(problem.gram[0] - full).max() < 0.4
    matmul, u, v, tall = made("matmul")
    few = accumulate(matmul, [u], [v], 1, 1e-4)
    assert few.rows == 8 * 5 < len(tall[0])


@pytest.mark.parametrize("name", CASES)
def test_pieces_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, y, _ = made(name)
    whole = accumulate(layer, [x], [y], 1, 1e-4)
    monkeypatch.setattr(module, "_PIECE", 500)
    pieces = accumulate(layer, [x], [y], 1, 1e-4)
    assert pieces.rows == whole.rows
    np.testing.assert_allclose(pieces.gram, whole.gram, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pieces.optimum, whole.optimum, rtol=1e-3, atol=1e-4)


def test_empty_batches_do_not_count() -> None:
    for name in ("conv", "matmul"):
        layer, x, y, _ = made(name)
        one = accumulate(layer, [x], [y], 1, 1e-4)
        two = accumulate(layer, [x[:0], x], [y[:0], y], 2, 1e-4)
        assert two.rows == one.rows
        np.testing.assert_array_equal(two.optimum, one.optimum)
        with pytest.raises(CalibrationError, match="'y' cannot be fitted: all samples are empty"):
            accumulate(layer, [x[:0]], [y[:0]], 1, 1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("where", ["x", "y"])
def test_numbers_that_cannot_be_squared(where: str, bad: Any) -> None:
    layer, x, y, _ = made("gemm")
    {"x": x, "y": y}[where][3, 1] = bad
    if where == "y" and bad == 1e30:
        # Targets are multiplied by inputs in float32, and squared in float64.
        assert np.isfinite(solved(layer, x, y).optimum).all()
        return
    with pytest.raises(CalibrationError, match="'y' cannot be fitted: on these samples"):
        solved(layer, x, y)


def test_constant_targets_of_zero() -> None:
    layer, x, y, _ = made("gemm")
    problem = solved(layer, x, np.zeros_like(y))
    np.testing.assert_allclose(problem.optimum, 0, atol=1e-6)
    assert problem.energy == 0


@pytest.mark.parametrize(
    ("columns", "outputs", "reason"),
    [
        (6144, 1, None),
        (100, 5000, None),
        (7000, 1, "its 1 outputs of 7000 columns take more memory"),
        (1000, 40_000, "its 40000 outputs of 1000 columns take more memory"),
    ],
)
def test_what_is_too_large(columns: int, outputs: int, reason: str | None) -> None:
    model = network("y = MatMul(x, w)", "N,1", w=np.zeros((1, 1)))
    layer, rw = only(model), Rewriter(model)
    rw.set_input(layer.node, 1, rw.const(np.zeros((columns, outputs), np.float32)))
    found = too_large(layer)
    assert (found is None) == (reason is None)
    assert (found or "").startswith(reason or "")


@pytest.mark.parametrize("low", [1e-3, -1e-4, -0.3])
def test_more_ridge_where_moments_are_not_positive(low: float) -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    gram = (turn * [low, 1, 2, 3, 4, 5] @ turn.T)[None]
    before = gram.copy()
    added = module._regularize(gram, 1e-4, inputs=6)
    np.linalg.cholesky(gram)
    np.testing.assert_allclose(gram[0] - before[0], np.diag(added[0]), atol=1e-12)
    mean = np.trace(before[0]) / 6
    share = added[0, 0] / mean
    assert share == pytest.approx(1e-4 * 10 ** round(np.log10(share / 1e-4)))
    assert share == pytest.approx(1e-4) if low > 0 else -low < share * mean < -10.1 * low

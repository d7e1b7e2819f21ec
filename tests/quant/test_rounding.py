from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.quant.rounding import mean_shift, round_weights, weight_scales

Array = np.ndarray[Any, Any]


def problem(out: int, columns: int, rank: int, seed: int) -> tuple[Array, Array]:
    """Random weights, and inputs that are correlated and differ in size."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, columns)) * np.exp(rng.normal(size=columns))
    x = rng.normal(size=(200, rank)) @ mixing
    return rng.normal(size=(out, columns)).astype(np.float32), x


def errors(integers: Array, scale: Array, weight: Array, x: Array) -> Array:
    return np.asarray(((x @ (integers * scale - weight).T) ** 2).mean(axis=0))


@pytest.mark.parametrize("limits", [(-127, 127), (-8, 7), (-1, 1)])
@pytest.mark.parametrize(("columns", "rank"), [(1, 1), (12, 12), (40, 7), (300, 150)])
def test_never_worse_than_the_nearest(limits: tuple[int, int], columns: int, rank: int) -> None:
    for seed in range(3):
        w, x = problem(9, columns, rank, seed)
        scale = weight_scales(w, limits)
        gram = x.T @ x / len(x)
        nearest = round_weights(w, scale, limits)
        found = round_weights(w, scale, limits, gram)
        assert found.dtype == nearest.dtype == np.int32
        assert found.min() >= limits[0]
        assert found.max() <= limits[1]
        before, after = (errors(q, scale, w, x) for q in (nearest, found))
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
        if columns > 1:
            assert after.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_of_all(seed: int) -> None:
    # Small enough to try every triple of integers.
    w, x = problem(200, 3, 3, seed)
    limits = (-3, 3)
    scale, gram = weight_scales(w, limits), x.T @ x / len(x)
    every = np.stack(np.meshgrid(*[range(-3, 4)] * 3), -1).reshape(-1, 3)
    d = every * scale[:, None] - w[:, None]
    best = np.einsum("rki,ij,rkj->rk", d, gram, d).min(axis=1)
    found = errors(round_weights(w, scale, limits, gram, damping=0.0), scale, w, x)
    near = errors(round_weights(w, scale, limits), scale, w, x)
    assert (found >= best * (1 - 1e-6)).all()
    # Going column by column is not optimal, but closes most of the gap.
    assert found.sum() - best.sum() < 0.5 * (near.sum() - best.sum())


def test_representable_weights_are_kept() -> None:
    rng = np.random.default_rng(0)
    _, x = problem(6, 16, 5, 0)
    want = rng.integers(-127, 128, (6, 16))
    want[:, 0] = 127
    scale = rng.uniform(0.01, 1, (6, 1)).astype(np.float32)
    w = (want * scale.astype(np.float64)).astype(np.float64)
    np.testing.assert_allclose(weight_scales(w, (-127, 127)), scale, rtol=1e-6)
    for gram in (None, x.T @ x):
        np.testing.assert_array_equal(round_weights(w, scale, (-127, 127), gram), want)


def test_dead_inputs_are_rounded_to_the_nearest() -> None:
    w, x = problem(5, 8, 8, 1)
    x[:, [2, 5]] = 0
    scale = weight_scales(w, (-8, 7))
    found = round_weights(w, scale, (-8, 7), x.T @ x)
    nearest = round_weights(w, scale, (-8, 7))
    np.testing.assert_array_equal(found[:, [2, 5]], nearest[:, [2, 5]])
    np.testing.assert_array_equal(round_weights(w, scale, (-8, 7), np.zeros((8, 8))), nearest)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_singular_gram_matrices(damping: float) -> None:
    w, x = problem(5, 6, 6, 2)
    x = np.concatenate([x, x], axis=1)  # every input twice
    w = np.concatenate([w, w], axis=1)
    scale = weight_scales(w, (-8, 7))
    gram = x.T @ x / len(x)
    found = round_weights(w, scale, (-8, 7), gram, damping)
    nearest = round_weights(w, scale, (-8, 7))
    # Two equal inputs halve the step: the error of one is made up for by the other.
    ratio = errors(found, scale, w, x).sum() / errors(nearest, scale, w, x).sum()
    assert ratio < 0.5


def test_scales() -> None:
    w = np.array([[1.0, -2.0], [0.0, 0.0], [127.0, 1e-3]], np.float32)
    got = weight_scales(w, (-127, 127))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:, 0], [2 / 127, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(weight_scales(w, (-128, 127))[0], 2 / 128, rtol=1e-6)
    np.testing.assert_allclose(weight_scales(w[:, :1], (0, 255))[0], 1 / 255, rtol=1e-6)
    assert weight_scales(np.full((1, 2), 1e-44), (-127, 127)) == 1.0


def test_scales_of_least_error() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 64))
    diag = np.ones(64)
    limits = (-7, 7)

    def mse(scale: Array) -> Array:
        return np.asarray(((round_weights(w, scale, limits) * scale - w) ** 2) @ diag)

    full, best = weight_scales(w, limits), weight_scales(w, limits, "mse")
    assert (mse(best) <= mse(full)).all()
    assert mse(best).sum() < 0.95 * mse(full).sum()
    # Where inputs of the largest weights are all there is, these must not be clipped.
    diag = np.zeros(64)
    w[:, 0], diag[0] = 20, 1
    kept = weight_scales(w, limits, "mse", diag)
    np.testing.assert_allclose(round_weights(w, kept, limits)[:, 0] * kept[:, 0], 20, rtol=1e-6)


def test_means_are_put_back() -> None:
    w, x = problem(4, 10, 10, 3)
    x += 1
    scale = weight_scales(w, (-7, 7))
    q = round_weights(w, scale, (-7, 7))
    moved = mean_shift(w, q, scale, x.mean(axis=0))
    got = (x @ (q * scale).T - moved).mean(axis=0)
    np.testing.assert_allclose(got, (x @ w.T).mean(axis=0), rtol=1e-5, atol=1e-6)

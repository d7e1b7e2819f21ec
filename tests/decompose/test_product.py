"""Products fitted to weights, in the metric of what a layer reads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct.single import network, normal

from graphopt.decompose.forms import Form, fitted
from graphopt.decompose.product import Metric, Product
from graphopt.reconstruct import Layer, layers, observe

Array = np.ndarray[Any, Any]


def moments(columns: int, outputs: int, seed: int, *, bias: bool) -> tuple[Array, Array, Array]:
    """Inputs with a column of ones where there is a bias, their moments, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * columns, columns)) @ rng.normal(size=(columns, columns)) + 0.7
    if bias:
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return x, x.T @ x / len(x), rng.normal(size=(x.shape[1], outputs))


def product(layer_inputs: int, outputs: int) -> Layer:
    (layer,) = layers(
        network("y = MatMul(x, w)", f"N,{layer_inputs}", w=normal(layer_inputs, outputs))
    )
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_the_error_is_that_of_what_is_computed(bias: bool) -> None:
    x, gram, best = moments(5, 3, 0, bias=bias)
    metric = Metric(gram, best, bias=bias)
    weights = np.random.default_rng(1).normal(size=(5, 3))
    whole = metric.with_bias(weights)
    assert whole.shape == best.shape
    np.testing.assert_array_equal(whole[:5], weights)
    off = np.square(x @ (whole - best)).sum() / len(x)
    assert metric.error(weights) == pytest.approx(off)
    assert metric.error(metric.target) == 0


def test_the_bias_is_the_best_for_the_weights() -> None:
    x, gram, best = moments(5, 3, 0, bias=True)
    weights = np.random.default_rng(1).normal(size=(5, 3))
    found = Metric(gram, best, bias=True).with_bias(weights)
    left = x @ best - x[:, :5] @ weights
    np.testing.assert_allclose(found[5], left.mean(axis=0))


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(2, 6), outputs=st.integers(2, 6), bias=st.booleans(),
    seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_reduced_rank_regression_is_the_optimum(
    inputs: int, outputs: int, bias: bool, seed: int, data: st.DataObject
) -> None:
    """It is what the truncated SVD is where the moments are the identity (Eckart and Young)."""
    rank = data.draw(st.integers(1, min(inputs, outputs)))
    _, gram, best = moments(inputs, outputs, seed, bias=bias)
    metric = Metric(gram, best, bias=bias)
    found = fitted(Form("output", (rank,)), product(inputs, outputs), metric, 0)
    assert [f.shape for f in found.factors] == [(inputs, 1, rank), (rank, outputs)]
    root = np.linalg.cholesky(metric.gram).T
    u, s, v = np.linalg.svd(root @ metric.target, full_matrices=False)
    closest = np.linalg.solve(root, u[:, :rank] * s[:rank] @ v[:rank])
    assert metric.error(found.weights()) == pytest.approx(
        metric.error(closest), rel=1e-6, abs=1e-9 * float(s @ s)
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_search_finds_better_weights_of_a_rank(rank: int) -> None:
    _, gram, best = moments(5, 4, 7, bias=True)
    metric = Metric(gram, best, bias=True)
    found = metric.error(fitted(Form("output", (rank,)), product(5, 4), metric, 0).weights())
    assert found > 0
    rng = np.random.default_rng(0)
    tried = []
    for _ in range(8):
        factors = [rng.normal(size=(5, rank)), np.zeros((rank, 4))]
        searched = Product(("cr", "ro"), "co", factors).fit(metric, 60)
        tried.append(metric.error(searched.weights()))
    assert min(tried) == pytest.approx(found, rel=1e-3)
    assert min(tried) >= found * (1 - 1e-6)


PRODUCTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "matrices": (("cr", "ro"), "co", ("c", "o", "r")),
    "depthwise": (("tck", "tco"), "cko", ("t", "c", "k", "o")),
    "spatial": (("ckr", "rlo"), "cklo", ("c", "k", "l", "o", "r")),
    "input": (("cr", "rko"), "cko", ("c", "k", "o", "r")),
    "tucker": (("cr", "rks", "so"), "cko", ("c", "k", "o", "r", "s")),
    "three": (("cp", "pkr", "rlo"), "cklo", ("c", "k", "l", "o", "p", "r")),
}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(PRODUCTS)), seed=st.integers(0, 999), bias=st.booleans(),
    numbers=st.lists(st.integers(1, 4), min_size=6, max_size=6),
)  # fmt: skip
def test_fits_never_get_worse(name: str, seed: int, bias: bool, numbers: list[int]) -> None:
    terms, whole, indices = PRODUCTS[name]
    n = dict(zip(indices, numbers, strict=False))
    rng = np.random.default_rng(seed)
    columns = int(np.prod([n[i] for i in whole[:-1]]))
    _, gram, best = moments(columns, n["o"], seed, bias=bias)
    metric = Metric(gram, best, bias=bias)
    found = Product(terms, whole, [rng.normal(size=[n[i] for i in term]) for term in terms])
    energy = metric.error(np.zeros_like(metric.target))
    errors = []
    for _ in range(4):
        found.fit(metric, 1)
        errors.append(metric.error(found.weights()))
    assert errors[0] <= energy * (1 + 1e-6)
    for before, after in itertools.pairwise(errors):
        assert after <= before + 1e-6 * energy


@pytest.mark.parametrize("name", PRODUCTS)
def test_weights_are_the_product(name: str) -> None:
    terms, whole, indices = PRODUCTS[name]
    n = {index: i + 2 for i, index in enumerate(indices)}
    rng = np.random.default_rng(0)
    found = Product(terms, whole, [rng.normal(size=[n[i] for i in term]) for term in terms])
    weights = found.weights().reshape([n[i] for i in whole])
    place = {i: rng.integers(n[i]) for i in indices}
    total = 0.0
    inner = sorted(set(indices) - set(whole))
    for at in itertools.product(*(range(n[i]) for i in inner)):
        chosen = place | dict(zip(inner, at, strict=True))
        parts = zip(terms, found.factors, strict=True)
        total += float(np.prod([f[tuple(chosen[i] for i in term)] for term, f in parts]))
    assert weights[tuple(place[i] for i in whole)] == pytest.approx(total)


def test_the_last_factor_is_what_least_squares_gives() -> None:
    x, gram, best = moments(6, 3, 2, bias=False)
    first = np.random.default_rng(0).normal(size=(6, 2))
    found = Product(("cr", "ro"), "co", [first, np.zeros((2, 3))])
    found.fit(Metric(gram, best, bias=False), 0)
    expected = np.linalg.lstsq(x @ first, x @ best, rcond=None)[0]
    np.testing.assert_allclose(found.factors[1], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.factors[0], first)


def test_factors_that_say_the_same_are_fitted() -> None:
    """Two terms of the same kernels leave moments that are singular but for a ridge."""
    _, gram, best = moments(8, 3, 2, bias=False)
    metric = Metric(gram, best, bias=False)
    kernel = np.random.default_rng(0).normal(size=(1, 2, 4)).repeat(2, axis=0)
    found = Product(("tck", "tco"), "cko", [kernel, np.zeros((2, 2, 3))]).fit(metric, 1)
    assert np.isfinite(found.weights()).all()
    assert metric.error(found.weights()) < metric.error(np.zeros_like(best))


def test_inputs_that_are_read_count_more() -> None:
    """A channel that is ever zero may have any weights."""
    _, gram, best = moments(4, 4, 5, bias=False)
    gram[2], gram[:, 2] = 0, 0
    gram[2, 2] = 1e-6
    metric = Metric(gram, best, bias=False)
    plain = Metric(np.eye(4), best, bias=False)
    form, layer = Form("output", (3,)), product(4, 4)
    energy = metric.error(np.zeros_like(best))
    assert metric.error(fitted(form, layer, metric, 0).weights()) < 1e-6 * energy
    assert metric.error(fitted(form, layer, plain, 0).weights()) > 1e-3 * energy


def test_moments_are_those_of_samples() -> None:
    """On the samples that a problem was made of, the error is what the layer computes otherwise."""
    model = network("y = Gemm(x, w, b)", "N,5", w=normal(5, 4), b=normal(4, seed=1))
    x = normal(200, 5, seed=2) + 1
    problem = observe(model, [{"x": x}], ["y"])["y"]
    metric = Metric(problem.gram[0], problem.optimum[0], bias=True)
    weights = fitted(Form("output", (2,)), problem.layer, metric, 0).weights()
    whole = metric.with_bias(weights)
    off = x @ (whole[:5] - problem.optimum[0][:5]) + whole[5] - problem.optimum[0][5]
    assert metric.error(weights) == pytest.approx(np.square(off).sum() / 200, rel=1e-3)
    np.testing.assert_allclose(off.mean(axis=0), 0, atol=1e-3)

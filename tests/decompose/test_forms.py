"""Which forms layers may take, and how good their factors are to begin with."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct.single import network, normal, only

from graphopt.decompose.forms import (
    KINDS,
    Form,
    Kind,
    fitted,
    forms,
    halves,
    shapes,
    sizes,
    split_axis,
    start,
)
from graphopt.decompose.product import Metric
from graphopt.reconstruct import Layer


def conv(outputs: int, inputs: int, *kernel: int, groups: int = 1, bias: bool = True) -> Layer:
    """A convolution; inputs are those of a group."""
    sides = ",".join(str(k + 2) for k in kernel)
    constants = {"w": normal(outputs, inputs, *kernel)} | ({"b": normal(outputs)} if bias else {})
    body = f"y = Conv<group = {groups}>({', '.join(['x', *constants])})"
    return only(network(body, f"1,{inputs * groups},{sides}", **constants))


def product(inputs: int, outputs: int) -> Layer:
    return only(network("y = MatMul(x, w)", f"N,{inputs}", w=normal(inputs, outputs)))


def weights(form: Form, layer: Layer) -> int:
    return sum(math.prod(shape) for shape in shapes(form, layer))


def kinds(layer: Layer) -> set[Kind]:
    return {form.kind for form in forms(layer, KINDS)}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (conv(32, 16, 3, 3), set(KINDS)),
        (conv(32, 16, 3), set(KINDS) - {"spatial"}),
        (conv(32, 16, 3, 1), set(KINDS) - {"spatial"}),
        (conv(32, 16, 1, 3), set(KINDS) - {"spatial"}),
        (conv(32, 16, 1, 3, 3), set(KINDS)),
        (conv(32, 16, 3, 3, groups=2), set(KINDS)),
        (conv(32, 16, 1, 1), {"output"}),
        (conv(16, 1, 3, 3, groups=16), {"spatial"}),
        (conv(64, 1, 3, 3, groups=16), {"spatial", "output"}),  # four of each channel
        (conv(16, 1, 1, 3, groups=16), set()),
        (conv(1, 16, 3, 3), {"spatial", "input"}),
        (conv(2, 2, 1, 1), set()),
        (product(16, 32), {"output"}),
        (product(1, 32), set()),
        (product(32, 1), set()),
        (product(4, 64), {"output"}),
        (product(64, 4), {"output"}),
    ],
)  # fmt: skip
def test_kinds_that_a_layer_has(layer: Layer, expected: set[Kind]) -> None:
    assert kinds(layer) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layer", [conv(64, 48, 3, 3), conv(12, 7, 5, 2), conv(24, 6, 3, 3, groups=4), product(300, 100)]
)
def test_forms_are_smaller_the_largest_first(layer: Layer, kind: Kind) -> None:
    found = list(forms(layer, [kind]))
    assert len(set(found)) == len(found)
    left = [weights(form, layer) / (layer.matrix().size / layer.groups) for form in found]
    assert all(share <= 0.9 for share in left)
    assert left == sorted(left, reverse=True)
    c, o, k = sizes(layer)
    for form in found:
        bounds = {
            "depthwise": (min(k, o) - 1,), "spatial": (min(c * halves(layer)[0], o * k),),
            "input": (c,), "output": (min(c * k, o),), "tucker": (c, o),
        }[form.kind]  # fmt: skip
        assert all(1 <= r <= most for r, most in zip(form.ranks, bounds, strict=True))
    if found:
        assert left[0] > 0.5  # something that hardly loses is among them
        assert left[-1] < 0.5


def test_only_kinds_asked_for_are_listed() -> None:
    layer = conv(16, 16, 3, 3)
    assert {form.kind for form in forms(layer, ["input", "spatial"])} == {"input", "spatial"}
    assert list(forms(layer, [])) == []


@pytest.mark.parametrize(("full", "multiple"), [(128, 16), (32, 8), (16, 4), (9, 1)])
def test_numbers_of_channels_are_what_kernels_compute_fast(full: int, multiple: int) -> None:
    for form in forms(conv(full, full, 3, 3), ["input", "output", "spatial", "tucker"]):
        assert all(rank % multiple == 0 for rank in form.ranks), form


def test_joined_terms_are_of_one_group() -> None:
    assert any(form.joined for form in forms(conv(16, 16, 3, 3), ["depthwise"]))
    assert not any(form.joined for form in forms(conv(32, 16, 3, 3, groups=2), ["depthwise"]))
    assert not any(
        form.joined for form in forms(conv(16, 16, 3, 3), ["depthwise"]) if form.ranks == (1,)
    )


def test_names_tell_forms_apart() -> None:
    found = list(forms(conv(32, 32, 3, 3), KINDS))
    names = [str(form) for form in found]
    assert len(set(names)) == len(names)
    assert all(name.startswith(form.kind) for name, form in zip(names, found, strict=True))
    assert all(("joined" in str(form)) == form.joined for form in found)


@pytest.mark.parametrize(
    ("kernel", "place"),
    [((3,), 1), ((3, 3), 1), ((1, 3), 2), ((1, 3, 3), 2), ((2, 1, 3), 1), ((1, 1), 2), ((1,), 1)],
)
def test_where_kernels_are_split(kernel: tuple[int, ...], place: int) -> None:
    assert split_axis(kernel) == place


def metric(layer: Layer, seed: int) -> Metric:
    """Random moments, and the layer's own weights of its first group."""
    rng = np.random.default_rng(seed)
    columns = layer.columns
    x = rng.normal(size=(2 * columns, columns)) @ rng.normal(size=(columns, columns))
    return Metric(x.T @ x / len(x), layer.matrix()[0].T, bias=False)


@settings(max_examples=20, deadline=None)
@given(
    outputs=st.integers(2, 6), inputs=st.integers(2, 6), seed=st.integers(0, 99),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_fitting_does_not_make_factors_worse(
    outputs: int, inputs: int, kernel: list[int], kind: Kind, seed: int
) -> None:
    layer = conv(outputs, inputs, *kernel)
    moments = metric(layer, seed)
    energy = moments.error(np.zeros_like(moments.target))
    for form in list(forms(layer, [kind]))[:2]:
        errors = [moments.error(fitted(form, layer, moments, n).weights()) for n in (0, 1, 4)]
        for before, after in itertools.pairwise(errors):
            assert after <= before + 1e-6 * energy, form
        assert errors[0] < energy


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_a_product_is_found(kind: Kind) -> None:
    """What has the form already loses nothing."""
    layer = conv(9, 6, 3, 3)
    form = list(forms(layer, [kind]))[1]
    moments = metric(layer, 3)
    product = start(form, layer, moments)
    rng = np.random.default_rng(4)
    product.factors = [rng.normal(size=f.shape) for f in product.factors]
    exact = Metric(moments.gram, product.weights(), bias=False)
    energy = exact.error(np.zeros_like(exact.target))
    found = fitted(form, layer, exact, 20)
    assert exact.error(found.weights()) < 1e-6 * energy
    assert [f.shape for f in found.factors] == shapes(form, layer)

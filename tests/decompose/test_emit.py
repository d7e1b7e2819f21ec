from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from reconstruct.single import Array, network, normal, only, run

from graphopt import ir
from graphopt.decompose.emit import emit, made_up
from graphopt.decompose.forms import KINDS, Form, forms, shapes, start
from graphopt.decompose.product import Metric
from graphopt.reconstruct import Layer
from graphopt.rewrite import Rewriter

CASES: dict[str, tuple[str, str, tuple[int, ...], dict[str, tuple[int, ...]], set[str]]] = {
    # name: nodes, shape of x as declared, shape that is run, constants, kinds of forms
    "conv-1d": (
        "y = Conv<pads = [1, 1]>(x, w, b)", "N,8,19", (2, 8, 19), {"w": (12, 8, 5), "b": (12,)},
        {"depthwise", "input", "output", "tucker"},
    ),
    "conv-2d": (
        "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)",
        "N,8,6,7", (2, 8, 6, 7), {"w": (12, 8, 3, 3), "b": (12,)}, set(KINDS),
    ),
    "no-bias": ("y = Conv(x, w)", "N,8,6,7", (2, 8, 6, 7), {"w": (12, 8, 3, 3)}, set(KINDS)),
    "strides-dilations": (
        "y = Conv<pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>(x, w, b)",
        "N,8,9,10", (2, 8, 9, 10), {"w": (12, 8, 3, 5), "b": (12,)}, set(KINDS),
    ),
    "grouped": (
        'y = Conv<group = 2, auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w, b)',
        "N,8,9,9", (2, 8, 9, 9), {"w": (12, 4, 3, 3), "b": (12,)}, set(KINDS),
    ),
    "same-lower": (
        'y = Conv<auto_pad = "SAME_LOWER">(x, w, b)',
        "N,6,H,W", (2, 6, 5, 7), {"w": (9, 6, 2, 4), "b": (9,)}, set(KINDS),
    ),
    "conv-3d": (
        "y = Conv<pads = [1, 1, 0, 0, 1, 1], strides = [1, 2, 1]>(x, w, b)",
        "N,6,4,5,4", (2, 6, 4, 5, 4), {"w": (9, 6, 3, 3, 2), "b": (9,)}, set(KINDS),
    ),
    "flat-3d": (
        "y = Conv<strides = [2, 1, 2], dilations = [1, 2, 1]>(x, w, b)",
        "N,6,4,7,6", (2, 6, 4, 7, 6), {"w": (9, 6, 1, 3, 3), "b": (9,)}, set(KINDS),
    ),
    "pointwise": (
        "y = Conv<strides = [2, 2]>(x, w, b)",
        "N,8,5,5", (2, 8, 5, 5), {"w": (12, 8, 1, 1), "b": (12,)}, {"output"},
    ),
    "depthwise": (
        "y = Conv<group = 6, pads = [2, 2, 2, 2]>(x, w, b)",
        "N,6,5,6", (2, 6, 5, 6), {"w": (6, 1, 5, 5), "b": (6,)}, {"spatial"},
    ),
    "transposed-1d": (
        "y = ConvTranspose<strides = [3], output_padding = [2]>(x, w, b)",
        "N,8,5", (2, 8, 5), {"w": (8, 12, 4), "b": (12,)},
        {"depthwise", "input", "output", "tucker"},
    ),
    "transposed-2d": (
        "y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 2], dilations = [1, 2], "
        "output_padding = [1, 2]>(x, w, b)",
        "N,8,4,5", (2, 8, 4, 5), {"w": (8, 12, 3, 2), "b": (12,)}, set(KINDS),
    ),
    "transposed-grouped": (
        "y = ConvTranspose<group = 2, strides = [2, 1], output_padding = [1, 0]>(x, w)",
        "N,12,4,5", (2, 12, 4, 5), {"w": (12, 5, 3, 3)}, set(KINDS),
    ),
    "transposed-valid": (
        'y = ConvTranspose<auto_pad = "VALID", strides = [2, 2]>(x, w, b)',
        "N,6,4,5", (2, 6, 4, 5), {"w": (6, 9, 3, 3), "b": (9,)}, set(KINDS),
    ),
    "transposed-3d": (
        "y = ConvTranspose<strides = [2, 1, 2], pads = [1, 0, 1, 0, 1, 0]>(x, w, b)",
        "N,6,3,2,3", (2, 6, 3, 2, 3), {"w": (6, 8, 2, 3, 2), "b": (8,)}, set(KINDS),
    ),
    "gemm": ("y = Gemm(x, w, b)", "N,9", (4, 9), {"w": (9, 12), "b": (12,)}, {"output"}),
    "gemm-turned": (
        "y = Gemm<transB = 1, alpha = 0.5, beta = -2.0>(x, w, b)",
        "N,9", (4, 9), {"w": (12, 9), "b": (1, 12)}, {"output"},
    ),
    "gemm-no-bias": ("y = Gemm<alpha = 3.0>(x, w)", "N,9", (4, 9), {"w": (9, 12)}, {"output"}),
    "matmul": ("y = MatMul(x, w)", "N,4,9", (2, 4, 9), {"w": (9, 12)}, {"output"}),
    "matmul-vector": ("y = MatMul(x, w)", "9", (9,), {"w": (9, 12)}, {"output"}),
    "matmul-bias": (
        "a = MatMul(x, w) y = Add(b, a)", "N,M,9", (2, 3, 9), {"w": (9, 12), "b": (12,)},
        {"output"},
    ),
}  # fmt: skip


def made(name: str, opset: int = 17) -> tuple[ir.Model, Array]:
    body, declared, shape, constants, _ = CASES[name]
    data: dict[str, Any] = {k: normal(*s, seed=i) for i, (k, s) in enumerate(constants.items())}
    return network(body, declared, opset, **data), normal(*shape, seed=9)


def some(layer: Layer) -> list[Form]:
    """The largest forms of each kind, and the smallest."""
    found = []
    for kind in KINDS:
        of_kind = list(forms(layer, [kind]))
        found += [*of_kind[:3], *of_kind[3:][-1:]]
    return found


def factors(layer: Layer, form: Form) -> tuple[list[Array], Array]:
    """Factors for a layer, and the matrix that they are the factors of."""
    found, whole = [], []
    rng = np.random.default_rng(3)
    for rows in layer.matrix():
        product = start(form, layer, Metric(np.eye(layer.columns), rows.T, bias=False))
        product.factors = [rng.normal(size=f.shape) / math.sqrt(f.size) for f in product.factors]
        found.append(product.factors)
        whole.append(product.weights().T)
    return [np.stack(each) for each in zip(*found, strict=True)], np.stack(whole)


def emitted(model: ir.Model, form: Form, parts: list[Array]) -> ir.Model:
    copy = ir.clone(model)
    rw = Rewriter(copy)
    emit(rw, only(copy), form, parts)
    rw.remove_initializers()
    ir.infer_shapes(copy)
    ir.verify(copy)
    return copy


def numbers(model: ir.Model) -> int:
    """Numbers in constants of two dimensions and more."""
    sizes = [ir.static_shape(v) or () for v in model.graph.initializers.values()]
    return sum(math.prod(size) for size in sizes if sum(n > 1 for n in size) > 0 and len(size) > 1)


@pytest.mark.parametrize("name", CASES)
def test_parts_compute_what_their_product_does(name: str) -> None:
    model, x = made(name)
    layer = only(model)
    found = some(layer)
    assert {form.kind for form in found} == CASES[name][-1]
    for form in found:
        parts, matrix = factors(layer, form)
        assert [p.shape[1:] for p in parts] == shapes(form, layer)
        whole = ir.clone(model)
        only(whole).write(Rewriter(whole), matrix, layer.bias() if layer.takes_bias else None)
        made_of = emitted(model, form, parts)
        expected = run(whole, x)
        assert np.abs(expected).max() > 0
        got = run(made_of, x)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4, err_msg=str(form))


@pytest.mark.parametrize("name", CASES)
def test_parts_have_as_many_numbers_as_their_factors(name: str) -> None:
    model, _ = made(name)
    layer = only(model)
    rng = np.random.default_rng(0)
    others = numbers(model) - layer.matrix().size
    for form in some(layer):
        parts = emitted(model, form, made_up(form, layer, rng))
        weights = layer.groups * sum(math.prod(shape) for shape in shapes(form, layer))
        assert numbers(parts) - others == weights, form
        assert weights < layer.matrix().size


def test_terms_joined_are_one_convolution() -> None:
    model, _ = made("conv-2d")
    layer = only(model)
    rng = np.random.default_rng(0)
    for form, ops in (
        (Form("depthwise", (2,)), ["Conv", "Conv", "Conv", "Conv", "Add"]),
        (Form("depthwise", (2,), joined=True), ["Conv", "Conv", "Concat", "Conv"]),
    ):
        found = emitted(model, form, made_up(form, layer, rng))
        assert sorted(n.op_type for n in found.graph) == sorted(ops)
        groups = [ir.attr(n, "group", 1) for n in found.graph if n.op_type == "Conv"]
        assert sorted(groups) == sorted([8, 8] + [1] * (len(groups) - 2))


def test_terms_of_any_size_have_kernels_of_unit_length() -> None:
    model, x = made("conv-2d")
    layer = only(model)
    form = Form("depthwise", (2,))
    parts, _ = factors(layer, form)
    parts[0][0, 0, 0] = 0  # a term without one channel
    expected = run(emitted(model, form, parts), x)
    scales = 10.0 ** np.random.default_rng(0).integers(-9, 9, size=(*parts[0].shape[:3], 1))
    found = emitted(model, form, [parts[0] * scales, parts[1] / scales])
    np.testing.assert_allclose(run(found, x), expected, rtol=1e-3, atol=1e-4)
    kernels = [ir.array(n.inputs[1]) for n in found.graph if ir.attr(n, "group", 1) > 1]
    assert len(kernels) == 2
    lengths = np.linalg.norm(np.stack([k.reshape(8, 9) for k in kernels if k is not None]), axis=2)
    assert np.round(lengths, 5).tolist() == [[0.0] + [1.0] * 7, [1.0] * 8]


@pytest.mark.parametrize("name", ["gemm", "gemm-turned"])
def test_gemm_of_old_opsets(name: str) -> None:
    """Before opset 11 a Gemm has a bias, so the first of two products is none."""
    model, x = made(name, opset=9)
    layer = only(model)
    form = next(iter(forms(layer, ["output"])))
    parts, matrix = factors(layer, form)
    whole = ir.clone(model)
    only(whole).write(Rewriter(whole), matrix, None)
    np.testing.assert_allclose(
        run(emitted(model, form, parts), x), run(whole, x), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conv-2d", "transposed-2d"])
def test_the_result_keeps_its_name_and_says_where_it_comes_from(name: str, kind: Any) -> None:
    model, _ = made(name)
    layer = only(model)
    form = next(iter(forms(layer, [kind])))
    found = emitted(model, form, made_up(form, layer, np.random.default_rng(0)))
    assert [v.name for v in found.graph.outputs] == ["y"]
    assert ir.dims(found.graph.outputs[0]) == ir.dims(model.graph.outputs[0])
    names = [v.name or "" for v in found.graph.initializers.values()]
    assert all(name == "b" or name.startswith("w.") for name in names)

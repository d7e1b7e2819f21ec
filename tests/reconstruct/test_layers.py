from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct.single import Array, as_rows, network, normal, only, product, run

from graphopt import ir
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter

LAYERS: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any]]] = {
    # name: nodes, shape of x as declared, shape that is run, constants
    "conv-1d": ("y = Conv(x, w, b)", "N,3,9", (2, 3, 9), {"w": (4, 3, 2), "b": (4,)}),
    "conv-2d": ("y = Conv(x, w)", "N,3,6,5", (2, 3, 6, 5), {"w": (4, 3, 3, 2)}),
    "conv-3d": (
        "y = Conv(x, w, b)", "N,2,4,4,3", (2, 2, 4, 4, 3), {"w": (3, 2, 2, 1, 2), "b": (3,)},
    ),
    "strides-pads": (
        "y = Conv<strides = [2, 1], pads = [1, 0, 2, 1]>(x, w, b)",
        "N,2,7,6", (2, 2, 7, 6), {"w": (3, 2, 3, 2), "b": (3,)},
    ),
    "dilations": (
        "y = Conv<dilations = [2, 3]>(x, w)", "N,2,8,9", (1, 2, 8, 9), {"w": (3, 2, 3, 2)},
    ),
    "grouped": (
        "y = Conv<group = 2>(x, w, b)", "N,4,5,5", (2, 4, 5, 5), {"w": (6, 2, 3, 3), "b": (6,)},
    ),
    "depthwise": (
        "y = Conv<group = 4>(x, w, b)", "N,4,5,5", (2, 4, 5, 5), {"w": (4, 1, 3, 3), "b": (4,)},
    ),
    "valid": (
        'y = Conv<auto_pad = "VALID">(x, w)', "N,2,6,6", (1, 2, 6, 6), {"w": (3, 2, 3, 3)},
    ),
    "same-upper": (
        'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 3]>(x, w)',
        "N,2,7,8", (1, 2, 7, 8), {"w": (3, 2, 4, 2)},
    ),
    "same-lower": (
        'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
        "N,2,7,8", (1, 2, 7, 8), {"w": (3, 2, 2, 3)},
    ),
    "same-dynamic": (
        'y = Conv<auto_pad = "SAME_LOWER">(x, w)', "N,2,H,W", (1, 2, 5, 6), {"w": (3, 2, 2, 3)},
    ),
    "transposed-1d": (
        "y = ConvTranspose<strides = [3], output_padding = [2]>(x, w, b)",
        "N,3,5", (2, 3, 5), {"w": (3, 4, 2), "b": (4,)},
    ),
    "transposed-2d": (
        "y = ConvTranspose<strides = [2, 1], pads = [1, 0, 0, 2], dilations = [1, 2]>(x, w)",
        "N,3,4,5", (2, 3, 4, 5), {"w": (3, 4, 3, 2)},
    ),
    "transposed-3d": (
        "y = ConvTranspose<strides = [2, 2, 1]>(x, w, b)",
        "N,2,2,3,3", (1, 2, 2, 3, 3), {"w": (2, 3, 2, 1, 2), "b": (3,)},
    ),
    "transposed-grouped": (
        "y = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b)",
        "N,4,5,5", (2, 4, 5, 5), {"w": (4, 3, 3, 3), "b": (6,)},
    ),
    "transposed-cut": (  # more is cut off than the kernel reaches
        "y = ConvTranspose<strides = [2], pads = [3, 4]>(x, w)",
        "N,2,9", (2, 2, 9), {"w": (2, 3, 2)},
    ),
    "transposed-valid": (
        'y = ConvTranspose<auto_pad = "VALID", strides = [2, 2]>(x, w)',
        "N,2,3,4", (1, 2, 3, 4), {"w": (2, 3, 3, 2)},
    ),
    "gemm": ("y = Gemm(x, w, b)", "N,5", (4, 5), {"w": (5, 3), "b": (3,)}),
    "gemm-turned": ("y = Gemm<transB = 1>(x, w, b)", "N,5", (4, 5), {"w": (3, 5), "b": (1, 3)}),
    "gemm-no-bias": ("y = Gemm(x, w)", "N,5", (4, 5), {"w": (5, 3)}),
    "gemm-scalar-bias": ("y = Gemm(x, w, b)", "N,5", (4, 5), {"w": (5, 3), "b": ()}),
    "gemm-one-bias": ("y = Gemm(x, w, b)", "N,5", (4, 5), {"w": (5, 3), "b": (1,)}),
    "gemm-scaled": (
        "y = Gemm<alpha = 0.5, beta = -2.0>(x, w, b)", "N,5", (4, 5), {"w": (5, 3), "b": (3,)},
    ),
    "gemm-scaled-no-bias": (
        "y = Gemm<alpha = 3.0, transB = 1, beta = 0.25>(x, w)", "N,5", (4, 5), {"w": (3, 5)},
    ),
    "matmul": ("y = MatMul(x, w)", "N,4,5", (2, 4, 5), {"w": (5, 3)}),
    "matmul-vector": ("y = MatMul(x, w)", "5", (5,), {"w": (5, 3)}),
    "matmul-bias": ("a = MatMul(x, w) y = Add(a, b)", "N,5", (4, 5), {"w": (5, 3), "b": (3,)}),
    "bias-matmul": ("a = MatMul(x, w) y = Add(b, a)", "N,5", (4, 5), {"w": (5, 3), "b": (1, 3)}),
    "bias-gives-rank": (
        "a = MatMul(x, w) y = Add(a, b)", "N,5", (4, 5), {"w": (5, 3), "b": (1, 1, 3)},
    ),
}  # fmt: skip


def made(name: str) -> tuple[ir.Model, Array]:
    body, declared, shape, constants = LAYERS[name]
    data = {k: normal(*s, seed=i) for i, (k, s) in enumerate(constants.items())}
    return network(body, declared, **data), normal(*shape, seed=9)


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_is_what_the_layer_multiplies(name: str) -> None:
    model, x = made(name)
    layer = only(model)
    assert layer.name == "y"
    assert layer.input.name == "x"
    assert layer.matrix().shape == (layer.groups, layer.outputs // layer.groups, layer.columns)
    assert layer.columns % layer.kernel == 0
    assert layer.takes_bias == (name not in ("matmul", "matmul-vector"))
    y = run(model, x)
    np.testing.assert_allclose(as_rows(layer, y), product(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_written_is_read_and_computed(name: str) -> None:
    model, x = made(name)
    shape = run(model, x).shape
    layer = only(model)
    rng = np.random.default_rng(5)
    matrix, bias = rng.normal(size=layer.matrix().shape), rng.normal(size=layer.bias().shape)
    rw = Rewriter(model)
    layer.write(rw, matrix, bias)
    rw.remove_initializers()
    ir.verify(model)
    again = only(model)
    np.testing.assert_allclose(again.matrix(), matrix, rtol=1e-6)
    expected = bias if layer.takes_bias else np.zeros_like(bias)
    np.testing.assert_allclose(again.bias(), expected, rtol=1e-6)
    y = run(model, x)
    assert y.shape == shape
    np.testing.assert_allclose(as_rows(again, y), product(again, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_to_write_what_was_read_changes_nothing(name: str) -> None:
    model, x = made(name)
    before = run(model, x)
    layer = only(model)
    inputs = len(layer.node.inputs)
    layer.write(Rewriter(model), layer.matrix(), layer.bias())
    assert len(layer.node.inputs) == inputs, "a bias of zeros was added"
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6, atol=1e-7)


def test_a_bias_stays_where_none_is_given() -> None:
    model, _ = made("gemm")
    layer = only(model)
    before = layer.bias()
    layer.write(Rewriter(model), 2 * layer.matrix(), None)
    np.testing.assert_array_equal(only(model).bias(), before)


def test_shared_weights_are_written_for_one_layer() -> None:
    w = normal(3, 3)
    model = network("a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Add(c, a)", "N,3", w=w)
    first, second = layers(model)
    rw = Rewriter(model)
    first.write(rw, 2 * first.matrix(), None)
    rw.remove_initializers()
    np.testing.assert_allclose(first.matrix()[0].T, 2 * w)
    np.testing.assert_allclose(second.matrix()[0].T, w)
    x = normal(4, 3, seed=1)
    a = x @ (2 * w)
    np.testing.assert_allclose(run(model, x), np.maximum(a, 0) @ w + a, rtol=1e-5, atol=1e-5)


def test_a_sum_of_two_results_is_no_bias() -> None:
    model = network(
        "a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)", "N,3", w=normal(3, 3), v=normal(3, 3)
    )
    assert [(each.name, each.takes_bias) for each in layers(model)] == [("a", False), ("b", False)]


def test_a_bias_whose_sum_is_not_all_that_is_read_is_not_taken() -> None:
    model = network(
        "a = MatMul(x, w) c = Add(a, b) y = Mul(a, c)", "N,3", w=normal(3, 3), b=normal(3)
    )
    layer = only(model)
    assert layer.adds is None
    assert layer.name == "a"


@pytest.mark.parametrize("size", [(1,), (4, 3), ()])
def test_an_add_per_row_or_of_one_number_is_no_bias(size: tuple[int, ...]) -> None:
    model = network("a = MatMul(x, w) y = Add(a, b)", "4,3", w=normal(3, 3), b=normal(*size))
    assert only(model).adds is None


def test_an_add_in_the_body_of_a_branch_is_no_bias() -> None:
    body = """
    a = MatMul(x, w)
    s = ReduceSum<keepdims = 0>(x)
    c = Greater(s, k)
    y = If(c) <
      then_branch = t () => (float[N, 3] p) { p = Add(a, b) },
      else_branch = e () => (float[N, 3] q) { q = Identity(x) }
    >
    """
    model = network(body, "N,3", w=normal(3, 3), b=normal(3), k=np.float32(0))
    assert only(model).adds is None


BRANCH = """
s = ReduceSum<keepdims = 0>(x)
c = Greater(s, k)
y = If(c) <
  then_branch = t () => (float[N, 3] p) { p = MatMul(x, w) },
  else_branch = e () => (float[N, 3] q) { q = Identity(x) }
>
"""


@pytest.mark.parametrize(
    ("body", "shape", "constants"),
    [
        ("y = MatMul(x, x)", "3,3", {}),
        ("y = MatMul(w, x)", "3,3", {"w": (3, 3)}),
        ("y = MatMul(x, w)", "2,3,3", {"w": (2, 3, 3)}),
        ("y = MatMul(x, w)", "N,3", {"w": (3,)}),
        ("a = Relu(w) y = MatMul(x, a)", "N,3", {"w": (3, 3)}),
        ("y = Gemm<transA = 1>(x, w)", "3,4", {"w": (3, 3)}),
        ("y = Gemm<alpha = 0.0>(x, w, b)", "N,3", {"w": (3, 3), "b": (3,)}),
        ("y = Gemm<beta = 0.0>(x, w, b)", "N,3", {"w": (3, 3), "b": (3,)}),
        ("y = Gemm<beta = 0.0>(x, w)", "N,3", {"w": (3, 3)}),
        ("y = Gemm(x, w, b)", "4,3", {"w": (3, 3), "b": (4, 1)}),
        ("y = Gemm(x, w, b)", "4,3", {"w": (3, 3), "b": (4, 3)}),
        ("b = Relu(c) y = Gemm(x, w, b)", "N,3", {"w": (3, 3), "c": (3,)}),
        ('y = Conv<auto_pad = "SAME_UPPER", strides = [2]>(x, w)', "N,2,L", {"w": (3, 2, 3)}),
        ('y = ConvTranspose<auto_pad = "SAME_UPPER">(x, w)', "N,2,6", {"w": (2, 3, 3)}),
        ("y = ConvTranspose<output_shape = [8]>(x, w)", "N,2,6", {"w": (2, 3, 3)}),
        (BRANCH, "N,3", {"w": (3, 3), "k": ()}),
    ],
)  # fmt: skip
def test_no_layers(body: str, shape: str, constants: dict[str, tuple[int, ...]]) -> None:
    data = {k: normal(*s, seed=i) for i, (k, s) in enumerate(constants.items())}
    assert not list(layers(network(body, shape, **data)))


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_types_are_no_layers(kind: str) -> None:
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    m ({kind}[N,2] x) => ({kind}[N,2] y) <{kind}[2,2] w = {{1, 2, 3, 4}}> {{ y = MatMul(x, w) }}
    """)
    assert not list(layers(model))


def test_a_weight_that_callers_may_replace_is_no_layer() -> None:
    model = ir.parse_text("""
    <ir_version: 8, opset_import: ["" : 17]>
    m (float[N,2] x, float[2,2] w) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
      y = MatMul(x, w)
    }
    """)
    assert not list(layers(model))


@settings(max_examples=25)
@given(data=st.data())
def test_convolutions_of_any_kind(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    groups, part, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, strides, dilations = (
        data.draw(st.lists(st.integers(1, most), min_size=n, max_size=n)) for most in (3, 3, 2)
    )
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * n, max_size=2 * n))
    sides = [
        (k - 1) * d + data.draw(st.integers(1, 4)) for k, d in zip(kernel, dilations, strict=True)
    ]
    mode = data.draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes = f"group = {groups}, strides = {strides}"
    if mode == "NOTSET":
        attributes += f", pads = {pads}, dilations = {dilations}"
    else:
        attributes += f', auto_pad = "{mode}"'
    channels = groups * part
    model = network(
        f"y = Conv<{attributes}>(x, w, b)",
        ",".join(map(str, (2, channels, *sides))),
        w=normal(groups * out, part, *kernel),
        b=normal(groups * out, seed=1),
    )
    x = normal(2, channels, *sides, seed=2)
    layer = only(model)
    np.testing.assert_allclose(
        as_rows(layer, run(model, x)), product(layer, x), rtol=1e-3, atol=1e-4
    )


@settings(max_examples=25)
@given(data=st.data())
def test_transposed_convolutions_of_any_kind(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    groups, part, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, strides, dilations, sides = (
        data.draw(st.lists(st.integers(1, most), min_size=n, max_size=n)) for most in (3, 3, 2, 4)
    )
    more = [data.draw(st.integers(0, s - 1)) for s in strides]  # ONNX Runtime takes no more
    sizes = [
        (side - 1) * s + (k - 1) * d + 1
        for side, s, k, d in zip(sides, strides, kernel, dilations, strict=True)
    ]
    before = [data.draw(st.integers(0, min(size - 1, 3))) for size in sizes]
    behind = [
        data.draw(st.integers(0, min(size - 1 - b, 3)))
        for size, b in zip(sizes, before, strict=True)
    ]
    channels = groups * part
    model = network(
        f"y = ConvTranspose<group = {groups}, strides = {strides}, dilations = {dilations}, "
        f"pads = {before + behind}, output_padding = {more}>(x, w, b)",
        ",".join(map(str, (2, channels, *sides))),
        w=normal(channels, out, *kernel),
        b=normal(groups * out, seed=1),
    )
    x = normal(2, channels, *sides, seed=2)
    layer = only(model)
    np.testing.assert_allclose(
        as_rows(layer, run(model, x)), product(layer, x), rtol=1e-3, atol=1e-4
    )

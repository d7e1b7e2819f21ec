"""From ranges to scales, and biases that survive them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.quant.emit import emit_static, quantized_bias
from graphopt.quant.params import from_range, from_weight
from graphopt.quant.prepare import (
    activation_params,
    channel_axis,
    fit_bias,
    quantize_weight,
    to_observe,
)
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session
from graphopt.targets import Format, get

Array = np.ndarray[Any, Any]
EACH = Format("int8", symmetric=True, granularity="channel")


def units_of(graph: str, target: str = "cpu-x64", **weights: Array) -> Units:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": 17]>\ng {graph}')
    for name, data in weights.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(data, name=name)
        value.shape = ir.Shape(data.shape)
    ir.infer_shapes(model)
    scheme = get(target).scheme
    assert scheme is not None
    return Units(model, scheme)


def test_moves_have_the_range_of_their_source() -> None:
    units = units_of(
        "(float[2,4] x) => (float[4,2] y) { a = Add(x, x) t = Transpose(a) y = Mul(t, t) }"
    )
    assert [v.name for v in to_observe(units)] == ["x", "a", "y"]
    found = activation_params(units, {"x": (-1, 1), "a": (0, 2), "y": (0, 4)})
    assert found["t"] is found["a"]
    assert float(found["a"].scale) == np.float32(2 / 255)
    assert found["a"].format.granularity == "tensor"


def test_a_kernel_that_fixes_its_output() -> None:
    graph = "(float[2,4] x) => (float[4,2] y) { s = Softmax(x) y = Transpose(s) }"
    found = activation_params(units_of(graph), {"x": (-1, 1), "s": (0.1, 0.3)})
    assert found["y"] is found["s"]
    assert (float(found["s"].scale), int(found["s"].zero_point)) == (1 / 256, 0)
    signed = activation_params(units_of(graph, "cpu-arm64"), {"x": (-1, 1), "s": (0.1, 0.3)})
    assert float(signed["s"].scale) == np.float32(0.3 / 255)


def test_constants_have_a_range_of_their_own() -> None:
    units = units_of("(float[1,2] x) => (float[1,2] y) <float[2] k = {-1, 3}> { y = Add(k, x) }")
    found = activation_params(units, {"x": (0, 1), "y": (-1, 4)})
    assert float(found["k"].scale) == np.float32(4 / 255)
    assert int(found["k"].zero_point) == 64


CONV = "(float[1,2,4] x) => (float[1,3,4] y) <float[1] w = {0}, float[3] b = {0,0,0}> "


@pytest.mark.parametrize(
    ("graph", "target", "want"),
    [
        (CONV + "{ y = Conv(x, w, b) }", "cpu-x64", 0),
        (CONV + "{ y = Conv(x, w, b) }", "portable", None),
        ("(float[2,4] x) => (float[2,3] y) <float[1] w = {0}> { y = Gemm(x, w) }", "cpu-x64", 1),
        ("(float[2,4] x) => (float[2,3] y) <float[1] w = {0}> { y = Gemm<transB=1>(x, w) }",
         "cpu-x64", 0),
        ("(float[2,4] x) => (float[2,3] y) <float[1] w = {0}> { y = Gemm<transB=1>(x, w) }",
         "nnapi", None),
        ("(float[2,4] x) => (float[2,3] y) <float[1] w = {0}> { y = MatMul(x, w) }", "cpu-x64", 1),
        ("(float[2,4] x) => (float[2,3] y) <float[1] w = {0}> { y = MatMul(x, w) }", "xnnpack",
         None),
    ],
)  # fmt: skip
def test_axes_of_weights(graph: str, target: str, want: int | None) -> None:
    shape = (3, 2, 1) if "Conv" in graph else (3, 4) if "transB" in graph else (4, 3)
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    units = units_of(graph, target, w=w)
    (unit,) = units
    assert channel_axis(unit, units) == want
    params = activation_params(units, {"x": (-1, 1), "y": (-9, 9)})
    found = quantize_weight(unit, units, params)
    assert found.params.scale.shape == (() if want is None else (3,))
    error = np.abs(found.params.dequantize(found.integers) - w)
    assert error.max() <= 0.51 * found.params.scale.max()


def test_ordinary_weights_keep_their_scales() -> None:
    w = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    found = from_weight(w, EACH, 0)
    fitted = fit_bias(found, np.ones(3, np.float32), from_range(-1, 1, Format("uint8")), w)
    np.testing.assert_array_equal(fitted.scale, found.scale)


@pytest.mark.parametrize("form", [EACH, Format("int8", symmetric=True)])
@pytest.mark.parametrize("bias", [1e-6, 1.0, 1e6])
def test_biases_of_small_weights_fit_into_32_bits(form: Format, bias: float) -> None:
    w = np.array([[1e-9, -1e-9], [0.5, 0.25]], np.float32)
    x = from_range(-1, 1, Format("uint8"))
    b = np.array([bias, -bias], np.float32)
    found = fit_bias(from_weight(w, form, 0), b, x, w)
    scale = x.scale * found.scale
    integers = quantized_bias(b, scale)
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 + 1
    # What is left of the weights beside such a bias is nothing; the bias keeps its precision.
    np.testing.assert_allclose(integers * scale, b, rtol=1e-6, atol=float(np.max(scale)))


def test_channels_of_zeros_keep_their_bias() -> None:
    w = np.zeros((3, 5), np.float32)
    w[1] = 1
    b = np.array([3e-7, 2, 0], np.float32)
    x = from_range(-1, 1, Format("uint8"))
    found = fit_bias(from_weight(w, EACH, 0), b, x, w)
    assert found.scale.dtype == np.float32
    scale = x.scale * found.scale
    np.testing.assert_allclose(quantized_bias(b, scale) * scale, b, rtol=1e-5)
    assert found.scale[1] == np.float32(1 / 127)  # the live channel keeps its scale
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


def test_a_weight_of_zeros_keeps_its_bias() -> None:
    w = np.zeros((2, 5), np.float32)
    x = from_range(-1, 1, Format("uint8"))
    for form in (EACH, Format("int8", symmetric=True)):
        b = np.array([1e-3, -2e-3], np.float32)
        found = fit_bias(from_weight(w, form, 0), b, x, w)
        scale = x.scale * found.scale
        np.testing.assert_allclose(quantized_bias(b, scale) * scale, b, rtol=1e-5)
        none = fit_bias(from_weight(w, form, 0), np.zeros(2, np.float32), x, w)
        np.testing.assert_array_equal(none.scale, np.ones_like(none.scale))


@pytest.mark.parametrize("target", ["cpu-x64", "portable", "tensorrt"])
def test_such_biases_survive_in_the_model(target: str) -> None:
    w = np.zeros((3, 2, 1), np.float32)
    w[0] = 0.5
    b = np.array([0.25, 0.75, -0.5], np.float32)
    units = units_of(CONV + "{ y = Conv(x, w, b) }", target, w=w, b=b)
    params = activation_params(units, {"x": (-1, 1), "y": (-2, 2)})
    weights = {u.name: quantize_weight(u, units, params) for u in units}
    emit_static(Rewriter(units.model), units, ["y"], params, weights)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 2, 4)).astype(np.float32)
    for optimize in (False, True):
        with open_session(units.model, optimize=optimize) as session:
            found = session.run({"x": x})["y"]
        np.testing.assert_allclose(found[0, 1:], np.full((2, 4), b[1:, None]), atol=0.01)


def test_a_bias_of_one_element_is_spread() -> None:
    units = units_of(
        "(float[2,4] x) => (float[2,3] y) <float[1] w = {0}, float[1] b = {2}> "
        "{ y = Gemm(x, w, b) }",
        "tensorrt",
        w=np.ones((4, 3), np.float32),
    )
    (unit,) = units
    params = activation_params(units, {"x": (-1, 1), "y": (-9, 9)})
    bias = quantize_weight(unit, units, params).bias
    assert bias is not None
    assert bias.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [("zero, six", (0, 6)), (", zero", (-255, 0)), ("minus, ", (-1, 255))],
)
def test_bounds_hold_where_nothing_but_zero_was_seen(
    bounds: str, wanted: tuple[float, float]
) -> None:
    units = units_of(
        "(float[1,1,3,3] x) => (float[1,1,3,3] y) <float[1,1,1,1] w = {1}, float zero = {0}, "
        f"float six = {{6}}, float minus = {{-1}}> {{ c = Conv(x, w) y = Clip(c, {bounds}) }}"
    )
    params = activation_params(units, {"x": (-1, 1), "y": (0, 0)})
    np.testing.assert_allclose(params["y"].range, wanted, atol=0.005)


def test_float_biases_of_dead_channels_survive_rounding() -> None:
    w = np.zeros((2, 1, 1, 1), np.float32)
    w[0] = 1
    units = units_of(
        "(float[1,1,3,3] x) => (float[1,2,3,3] y) <float[1] w = {0}, float[2] b = {1, 0.01}> "
        "{ y = Conv(x, w, b) }",
        target="tensorrt",
        w=w,
    )
    (unit,) = units
    params = activation_params(units, {"x": (-1, 1), "y": (-1, 1)})
    found = quantize_weight(unit, units, params)
    # ONNX Runtime's weight_bias_quantization.cc rounds the bias to this.
    step = params["x"].scale * found.params.scale
    assert found.bias is not None
    assert np.all(step < 1e-2 * np.abs(found.bias))

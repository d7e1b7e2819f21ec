"""Scales and zero points, and that the arithmetic is that of ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import ir
from graphopt.quant.params import QParams, from_range, from_weight
from graphopt.runtime import open_session
from graphopt.targets import Format

Array = np.ndarray[Any, Any]

FORMATS = [
    Format("uint8"),
    Format("uint8", symmetric=True),
    Format("uint8", levels=128),
    Format("int8"),
    Format("int8", symmetric=True),
    Format("int8", symmetric=True, levels=128),
    Format("uint16"),
    Format("int16", symmetric=True),
    Format("uint4"),
    Format("int4", symmetric=True),
]
# ONNX Runtime lets its thread flush subnormal numbers to zero.
floats = st.floats(-1e30, 1e30, allow_subnormal=False)


def in_ort(x: Array, params: QParams) -> tuple[Array, Array]:
    """What QuantizeLinear and DequantizeLinear of ONNX Runtime make of an array."""
    kind = params.format.dtype
    shape = ",".join(map(str, x.shape))
    form = "" if params.scale.ndim == 0 else f"[{params.scale.size}]"
    axis = "" if params.axis is None else f"<axis={params.axis}>"
    model = ir.parse_text(
        '<ir_version: 10, opset_import: ["": 21]>\n'
        f"g (float[{shape}] x, float{form} s, {kind}{form} z) => ({kind}[{shape}] q, "
        f"float[{shape}] y) {{ q = QuantizeLinear{axis}(x, s, z) "
        f"y = DequantizeLinear{axis}(q, s, z) }}"
    )
    with open_session(model, optimize=False) as session:
        found = session.run({"x": x, "s": params.scale, "z": params.zero_point})
    return found["q"], found["y"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.0, 6.0), (-5e-5, 1e-6), (-3e20, 1e22)])
def test_the_arithmetic_is_that_of_onnx(dtype: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    params = from_range(low, high, Format(dtype))
    rng = np.random.default_rng(0)
    scale = float(params.scale)
    x = np.concatenate(
        [
            rng.uniform(1.5 * low, 1.5 * high, 2000),
            scale * (np.arange(-300, 300) + 0.5),  # ties
            [low, high, 0.0, -0.0, 1e38, -1e38],
        ]
    ).astype(np.float32)
    integers = params.quantize(x)
    want, back = in_ort(x, params)
    assert integers.dtype == want.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(integers, want)
    np.testing.assert_array_equal(params.dequantize(integers), back)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_arithmetic_per_channel_is_that_of_onnx(axis: int) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    params = from_weight(x, Format("int8", symmetric=True, granularity="channel"), axis)
    assert params.axis == axis % 3
    assert params.scale.shape == params.zero_point.shape == (x.shape[axis],)
    want, back = in_ort(x, params)
    np.testing.assert_array_equal(params.quantize(x), want)
    np.testing.assert_array_equal(params.dequantize(want), back)
    # Every channel reaches the limit, and no step is further than half a scale from the number.
    others = tuple(i for i in range(3) if i != axis % 3)
    np.testing.assert_array_equal(np.abs(want.astype(int)).max(axis=others), 127)
    steps = np.abs(back - x).max(axis=others) / params.scale
    assert (steps <= 0.5 + 1e-5).all()


@settings(max_examples=200)
@given(low=floats, high=floats, form=st.sampled_from(FORMATS))
def test_ranges_fit_and_zero_is_exact(low: float, high: float, form: Format) -> None:
    low, high = min(low, high), max(low, high)
    params = from_range(low, high, form)
    first, last = form.limits
    assert params.scale.dtype == np.float32
    assert params.scale.shape == params.zero_point.shape == ()
    assert 0 < float(params.scale) < math.inf
    assert first <= int(params.zero_point) <= last
    zero = params.quantize(np.zeros(1, np.float32))
    assert params.dequantize(zero) == 0
    if form.symmetric:
        assert int(params.zero_point) == (0 if first < 0 else 2 ** (form.bits - 1))
    least, largest = (float(v) for v in params.range)
    assert least <= 0 <= largest
    step = float(params.scale)
    if step != 1.0:
        # Rounding the zero point may move the range by half a step.
        assert least <= low + 0.51 * step
        assert largest >= high - 0.51 * step


def test_known_values() -> None:
    relu = from_range(0.0, 6.0, Format("uint8"))
    assert float(relu.scale) == np.float32(6 / 255)
    assert relu.zero_point == 0
    below = from_range(-2.0, -1.0, Format("uint8"))  # widened to include 0
    assert float(below.scale) == np.float32(2 / 255)
    assert below.zero_point == 255
    above = from_range(0.5, 1.0, Format("int8"))
    assert float(above.scale) == np.float32(1 / 255)
    assert above.zero_point == -128
    middle = from_range(-1.0, 2.0, Format("uint8", symmetric=True))
    assert float(middle.scale) == np.float32(2 / 127)
    assert middle.zero_point == 128
    reduced = from_range(-1.0, 2.0, Format("int8", symmetric=True, levels=128))
    assert float(reduced.scale) == np.float32(2 / 63)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_but_zero(form: Format) -> None:
    for low, high in ((0.0, 0.0), (-1e-38, 1e-40), (0.0, 5e-324)):
        params = from_range(low, high, form)
        assert float(params.scale) == 1.0
        assert params.dequantize(params.quantize(np.zeros(3, np.float32))).tolist() == [0] * 3


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (0.0, math.inf), (-math.inf, math.nan)])
def test_ranges_that_are_none(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="finite ends"):
        from_range(*bad, Format("uint8"))


def test_weights() -> None:
    w = np.array([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    each = Format("int8", symmetric=True, granularity="channel")
    params = from_weight(w, each, 0)
    np.testing.assert_array_equal(params.scale, np.array([2 / 127, 1], np.float32))
    assert params.quantize(w).tolist() == [[64, -127, 0], [0, 0, 0]]
    assert from_weight(w, each, None).scale.shape == ()
    assert from_weight(w, Format("int8", symmetric=True), 0).scale.shape == ()
    last = from_weight(w, each, -1)
    assert last.axis == 1
    np.testing.assert_array_equal(last.scale, np.array([1 / 127, 2 / 127, 1], np.float32))
    empty = from_weight(np.zeros((0, 2), np.float32), each, 0)
    assert empty.scale.shape == (0,)
    assert empty.quantize(np.zeros((0, 2), np.float32)).shape == (0, 2)
    asymmetric = from_weight(w, Format("uint8", granularity="channel"), 0)
    assert asymmetric.zero_point.tolist() == [170, 0]


@pytest.mark.parametrize(("dtype", "limits"), [("int4", (-7, 7)), ("uint4", (0, 15))])
def test_four_bits(dtype: str, limits: tuple[int, int]) -> None:
    form = Format(dtype, symmetric=dtype == "int4", granularity="channel")
    w = np.random.default_rng(2).normal(size=(4, 9)).astype(np.float32)
    params = from_weight(w, form, 0)
    integers = params.quantize(w)
    assert integers.dtype.name == dtype
    assert (integers.astype(int).min(), integers.astype(int).max()) == limits
    assert np.abs(params.dequantize(integers) - w).max() <= 0.51 * params.scale.max()

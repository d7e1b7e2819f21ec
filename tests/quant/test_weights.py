"""Rounding the weights of units."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import from_batches
from graphopt.quant.params import from_range
from graphopt.quant.prepare import activation_params, quantize_weight
from graphopt.quant.static import observe
from graphopt.quant.units import Unit, Units
from graphopt.quant.weights import observer, rounded
from graphopt.targets import Format, get

Array = np.ndarray[Any, Any]

CONV = (
    "(float[n,4,6,6] x) => (float[n,6,?,?] y) <float[1] w = {{0}}, float[6] b = {{0,0,0,0,0,0}}> "
    "{{ y = Conv<{attrs}>(x, w, b) }}"
)
DENSE = "(float[n,8] x) => (float[n,6] y) <float[1] w = {0}> "


def units_of(graph: str, shape: tuple[int, ...], target: str = "cpu-x64") -> Units:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": 17]>\ng {graph}')
    value = model.graph.initializers["w"]
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    value.const_value, value.shape = ir.Tensor(data, name="w"), ir.Shape(shape)
    ir.infer_shapes(model)
    scheme = get(target).scheme
    assert scheme is not None
    return Units(model, scheme)


def only(units: Units) -> Unit:
    (unit,) = units
    return unit


def correlated(*shape: int) -> Array:
    """Inputs whose neighbours say much the same, and whose mean is not 0."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(shape[0], 2) + (1,) * (len(shape) - 2))
    mixed = base[:, :1] + 0.3 * base[:, 1:] * rng.normal(size=(1, *shape[1:]))
    return np.asarray(mixed + 1 + 0.1 * rng.normal(size=shape), np.float32)


CASES = {
    "conv": (CONV.format(attrs="pads=[1,1,1,1]"), (6, 4, 3, 3), (32, 4, 6, 6)),
    "strided": (CONV.format(attrs="strides=[2,2], dilations=[2,1]"), (6, 4, 2, 3), (32, 4, 6, 6)),
    "grouped": (CONV.format(attrs="group=2, pads=[1,1,1,1]"), (6, 2, 3, 3), (32, 4, 6, 6)),
    "gemm": (DENSE + "{ y = Gemm(x, w) }", (8, 6), (64, 8)),
    "gemm transposed": (DENSE + "{ y = Gemm<transB=1>(x, w) }", (6, 8), (64, 8)),
    "matmul": (DENSE + "{ y = MatMul(x, w) }", (8, 6), (64, 8)),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_is_computed_changes_less_than_with_the_nearest(case: str) -> None:
    graph, shape, fed = CASES[case]
    units = units_of(graph, shape)
    unit = only(units)
    x = correlated(*fed)
    seen = observe(units, from_batches([{"x": x}], units.model))
    params = activation_params(units, {"x": (float(x.min()), float(x.max())), "y": (-30, 30)})
    nearest = quantize_weight(unit, units, params)
    better = rounded(unit, units, params, seen.inputs["y"])
    assert better.integers.shape == nearest.integers.shape == shape
    assert better.integers.dtype == nearest.integers.dtype
    assert better.integers.flags.c_contiguous
    np.testing.assert_array_equal(better.params.scale, nearest.params.scale)
    assert not np.array_equal(better.integers, nearest.integers)

    from graphopt.runtime import open_session

    def outputs(weight: Array, bias: Array | None) -> Array:
        model = ir.clone(units.model)
        for name, data in (("w", weight), ("b", bias)):
            if data is not None:
                model.graph.initializers[name].const_value = ir.Tensor(data, name=name)
        with open_session(model, optimize=False) as session:
            return np.asarray(session.run({"x": x})["y"])

    w = ir.array(unit.weight)
    assert w is not None
    want = outputs(w, None)
    errors = [
        float(np.square(outputs(q.params.dequantize(q.integers), q.bias) - want).mean())
        for q in (nearest, better)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_without_a_gram_matrix_it_is_the_nearest() -> None:
    graph, shape, _ = CASES["conv"]
    units = units_of(graph, shape)
    unit = only(units)
    params = activation_params(units, {"x": (-1, 1), "y": (-9, 9)})
    found = rounded(unit, units, params, None)
    np.testing.assert_array_equal(found.integers, quantize_weight(unit, units, params).integers)
    empty = observer(unit)
    assert empty is not None
    again = rounded(unit, units, params, empty)
    np.testing.assert_array_equal(again.integers, found.integers)


@pytest.mark.parametrize(
    ("graph", "shape"),
    [
        (CONV.format(attrs='auto_pad="SAME_UPPER"'), (6, 4, 3, 3)),
        (DENSE.replace("n,8", "8,n") + "{ y = Gemm<transA=1>(x, w) }", (8, 6)),
    ],
)  # fmt: skip
def test_what_cannot_be_observed(graph: str, shape: tuple[int, ...]) -> None:
    assert observer(only(units_of(graph, shape))) is None


def test_a_product_of_activations_has_no_weight() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, x) }"
    )
    ir.infer_shapes(model)
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    assert observer(only(Units(model, scheme))) is None


def test_unsigned_weights_are_rounded_as_well_as_signed_ones() -> None:
    """Their zero point only shifts the integers."""
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[N,8] x) => (float[N,4] y) <float[8,4] w = {"
        + ", ".join(f"{v:.4f}" for v in np.random.default_rng(0).normal(size=32))
        + "}> { y = MatMul(x, w) }"
    )
    ir.infer_shapes(model)
    data = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    data[:, 1] = data[:, 0]  # what one input loses, the other can make up for
    errors = {}
    for dtype, symmetric in (("int8", True), ("uint8", False)):
        base = get("cpu-x64").scheme
        assert base is not None
        form = Format(dtype, symmetric=symmetric, levels=16)
        units = Units(model, dataclasses.replace(base, weight=form))
        (unit,) = units
        gram = observer(unit)
        assert gram is not None
        gram.update(data)
        params = {n: from_range(-3, 3, Format("uint8")) for n in ("x", "y")}
        exact = ir.array(unit.weight)
        for seen in (None, gram):
            found = rounded(unit, units, params, seen)
            got = found.params.dequantize(found.integers)
            errors[dtype, seen is None] = float(np.square(data @ (got - exact)).sum())
    for dtype in ("int8", "uint8"):
        assert errors[dtype, False] < 0.7 * errors[dtype, True]

"""What quantizing one tensor alone does to the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.measure import Trial
from graphopt.quant.emit import Quantized
from graphopt.quant.params import from_range, from_weight
from graphopt.quant.sensitivity import measure_activations, measure_weights
from graphopt.quant.units import Units
from graphopt.targets import Format, get

Array = np.ndarray[Any, Any]
U8 = Format("uint8")


def units_of(graph: str, opset: int = 17) -> Units:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": {opset}]>\ng {graph}')
    ir.infer_shapes(model)
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    return Units(model, scheme)


def batches() -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.uniform(-1, 1, (8, 2)).astype(np.float32)} for _ in range(4)]


PRODUCT = "(float[n,2] x) => (float[n,2] y) <float[2,2] w = {1, 0.3, 0.01, 2}> { y = MatMul(x, w) }"


def test_noise_is_that_of_the_simulation() -> None:
    units, data = units_of(PRODUCT), batches()
    trial = Trial(units.model, data)
    found = measure_activations(trial, units, {"x": [(-1.0, 1.0)], "y": [(-4.0, 4.0)]})
    x = np.concatenate([b["x"] for b in data])
    w = np.array([[1, 0.3], [0.01, 2]], np.float32)
    y = x @ w
    on_x, on_y = from_range(-1, 1, U8), from_range(-4, 4, U8)
    for name, got in (
        ("x", on_x.dequantize(on_x.quantize(x)) @ w), ("y", on_y.dequantize(on_y.quantize(y)))
    ):  # fmt: skip
        want = ((got - y) ** 2).sum() / (y**2).sum()
        assert found.noise[name] == pytest.approx(want, rel=1e-3)


def test_the_range_of_least_noise_is_kept() -> None:
    units = units_of(PRODUCT)
    trial = Trial(units.model, batches())
    tried = [(-100.0, 100.0), (-1.0, 1.0), (-0.1, 0.1)]
    found = measure_activations(trial, units, {"x": tried})
    assert found.ranges == {"x": (-1.0, 1.0)}
    alone = measure_activations(trial, units, {"x": tried[1:2]})
    assert found.noise == alone.noise
    assert measure_activations(trial, units, {}).noise == {}


def test_ranges_that_break_everything_still_have_an_answer() -> None:
    units = units_of(
        "(float[n,2] x) => (float[n,2] y) { a = Add(x, x) b = Abs(a) c = Log(b) y = Mul(c, c) }"
    )
    trial = Trial(units.model, batches())
    found = measure_activations(trial, units, {"a": [(-1e6, 1e6)]})  # all become 0: log is infinite
    assert found.noise == {"a": np.inf}
    assert found.ranges == {"a": (-1e6, 1e6)}


def test_only_integer_readers_see_the_noise_of_a_value_that_stays_float() -> None:
    both = "(float[n,2] x) => (float[n,2] y, float[n,2] z) { t = Tanh(x) y = Add(t, t) z = Neg(t) }"
    one = "(float[n,2] x) => (float[n,2] y) { t = Tanh(x) y = Add(t, t) }"
    noise = []
    for graph in (both, one):
        units = units_of(graph)
        trial = Trial(units.model, batches())
        noise.append(measure_activations(trial, units, {"t": [(-1.0, 1.0)]}).noise["t"])
    assert noise[0] == pytest.approx(noise[1] / 2)  # z has none, and outputs count alike


def test_what_an_integer_unit_writes_is_rounded_for_all() -> None:
    graph = (
        "(float[n,2] x) => (float[n,2] y, float[n,2] z) { a = Add(x, x) y = Mul(a, a) z = Neg(a) }"
    )
    units = units_of(graph)
    model = units.model
    trial = Trial(model, batches())
    assert measure_activations(trial, units, {"a": [(-2.0, 2.0)]}).noise["a"] > 0
    zeros = measure_activations(trial, units, {"a": [(-1e-6, 1e-6)]}).noise["a"]
    assert zeros == pytest.approx(1, abs=0.01)  # both outputs are lost


def test_a_subgraph_that_reads_what_is_tried() -> None:
    units = units_of(
        "(float[8,2] x) => (float[?,?] y) <bool p = {1}> { l = Tanh(x) t = Transpose(l) "
        "a = Add(l, l) y = If(p) <then_branch = b1 () => (float[?,?] u) { u = MatMul(a, t) }, "
        "else_branch = b2 () => (float[?,?] v) { v = MatMul(t, a) }> }",
        opset=18,
    )
    trial = Trial(units.model, batches())
    found = measure_activations(trial, units, {"l": [(-1.0, 1.0)], "a": [(-2.0, 2.0)]})
    assert 0 < found.noise["l"] < 1e-3
    assert 0 < found.noise["a"] < 1e-3


def test_weights() -> None:
    units, data = units_of(PRODUCT), batches()
    trial = Trial(units.model, data)
    form = Format("int8", symmetric=True, granularity="channel")
    w = np.array([[1, 0.3], [0.01, 2]], np.float32)
    params = from_weight(w, form, 1)
    before = ir.dump(units.model)
    found = measure_weights(trial, units, {"y": Quantized(params.quantize(w), params)})
    x = np.concatenate([b["x"] for b in data])
    error = x @ (params.dequantize(params.quantize(w)) - w)
    want = (error**2).sum() / ((x @ w) ** 2).sum()
    assert found == {"y": pytest.approx(want, rel=1e-3)}
    assert ir.dump(units.model) == before
    assert measure_weights(trial, units, {}) == {}

"""What is measured belongs to the right unit; nothing here depends on how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.measure import LatencyTable, shaped
from graphopt.quant import costs as module
from graphopt.quant.costs import Costs, measure_costs
from graphopt.quant.emit import emit_static
from graphopt.quant.prepare import activation_params, quantize_weight
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.runtime.kernels import KernelTime
from graphopt.targets import get

TARGET = get("cpu-x64")
# A small ResNet: a stem, a block with a shortcut, pooling, and a classifier that writes the output.
RESNET = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[n,3,16,16] x) => (float[n,10] y) <float[1] w1 = {0}, float[1] w2 = {0}, "
    "float[1] w3 = {0}, float[1] fc = {0}, float[10] b = {0,0,0,0,0,0,0,0,0,0}> { "
    "c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2) "
    "r2 = Relu(c2) c3 = Conv<pads=[1,1,1,1]>(r2, w3) a = Add(c3, r1) r3 = Relu(a) "
    "p = GlobalAveragePool(r3) f = Flatten(p) y = Gemm<transB=1>(f, fc, b) }"
)
SHAPES = {"w1": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (32, 32, 3, 3), "fc": (10, 32)}


@pytest.fixture(scope="module")
def resnet() -> Units:
    model = ir.parse_text(RESNET)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32) / 20, name=name)
        value.shape = ir.Shape(shape)
    ir.infer_shapes(model)
    assert TARGET.scheme is not None
    return Units(model, TARGET.scheme)


def quantized(units: Units) -> Any:
    ranges = {v.name or "": (-4.0, 4.0) for v in units.tensors()}
    params = activation_params(units, ranges)
    weights = {u.name: quantize_weight(u, units, params) for u in units if u.weight is not None}

    def make(model: ir.Model) -> ir.Model:
        copy = ir.clone(model)
        again = Units(copy, units.scheme)
        rw = Rewriter(copy)
        emit_static(rw, again, {u.name for u in again}, params, weights)
        rw.undo((0, 0))
        return copy

    return make


FEEDS = {"x": np.zeros((1, 3, 16, 16), np.float32)}


def test_every_unit_has_the_time_of_its_kernels(resnet: Units) -> None:
    table = LatencyTable(None, "here")
    found = measure_costs(resnet, quantized(resnet), FEEDS, target=TARGET, table=table)
    names = {u.name for u in resnet}
    assert names == {"c1", "c2", "c3", "a", "p", "f", "y"}
    assert set(found.floating) == set(found.integer) == names
    for name in ("c1", "c2", "c3", "p", "y"):
        assert found.floating[name] > 0, name
        assert found.integer[name] > 0, name
    assert found.floating["a"] >= 0  # it may be part of the convolution before it
    assert found.integer["a"] > 0
    for steps in (found.quantize, found.dequantize):
        assert {"x", "c1", "r1", "y"} <= set(steps)
        assert steps["x"] >= steps["y"] >= 0  # more elements take longer
    # All is known now, and nothing is measured again.
    again = measure_costs(
        resnet, lambda _model: pytest.fail("measured again"), FEEDS, target=TARGET, table=table
    )
    assert again == found


def test_times_hold_for_shapes(resnet: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def fake(model: ir.Model, feeds: Any, **_options: Any) -> list[KernelTime]:
        measured.append(len(feeds.get("x", ())))
        return [KernelTime(n.name or "", n.op_type, 1e-6) for n in model.graph]

    monkeypatch.setattr(module, "kernel_times", fake)
    monkeypatch.setattr(
        module, "_conversions", lambda *_: dict.fromkeys(module._HELPERS, lambda n: n * 1e-9)
    )
    table = LatencyTable(None, "here")
    make = quantized(resnet)
    one = measure_costs(resnet, make, FEEDS, target=TARGET, table=table)
    assert measured == [1, 1]  # in floating point and on integers
    assert one.floating["c1"] == pytest.approx(2e-6)  # with the Relu that it absorbs
    assert one.floating["c3"] == pytest.approx(1e-6)
    assert one.integer["c1"] == pytest.approx(1e-6)
    assert one.integer["y"] == pytest.approx(1e-6)
    assert one.quantize["x"] == pytest.approx(768e-9)
    two = {"x": np.zeros((2, 3, 16, 16), np.float32)}
    batch = measure_costs(resnet, make, two, target=TARGET, table=table)
    assert measured == [1, 1, 2, 2]
    assert batch.quantize["x"] == pytest.approx(2 * 768e-9)
    measure_costs(resnet, make, FEEDS, target=TARGET, table=table)
    assert measured == [1, 1, 2, 2]


def test_signatures(resnet: Units) -> None:
    model = shaped(resnet.model, FEEDS)
    assert ir.static_shape(model.graph.inputs[0]) == (1, 3, 16, 16)
    values = {v.name: v for n in model.graph for v in n.outputs}
    values |= {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    keys = {u.name: module._signature(u, values) for u in resnet}
    assert keys["c1"] == "Conv Relu pads=(1, 1, 1, 1) [1, 3, 16, 16]x[32, 3, 3, 3]"
    assert keys["c2"] == keys["c3"].replace("Conv", "Conv Relu")
    assert keys["y"] == "Gemm transB=1 [1, 32]x[10, 32]x[10]"
    assert len(set(keys.values())) == len(keys)


def test_equal_units_have_equal_times() -> None:
    means = module._means({"a": "k", "b": "k", "c": "l"}, {"a": 1.0, "b": 3.0, "c": 5.0})
    assert means == {"k": 2.0, "l": 5.0}


def names_given(units: Units) -> Iterator[tuple[str, Any]]:
    for make in (ir.clone, quantized(units)):
        model = make(units.model)
        find = module._named(model, units)
        for node in model.graph:
            yield node.name or "", (node, find)


def test_kernels_are_found_by_any_name(resnet: Units) -> None:
    owners = set()
    for name, (node, find) in names_given(resnet):
        helper = node.op_type in module._HELPERS
        for given in (name, f"{name}_nchwc", f"{name}_quant_token_3"):
            owner = find(KernelTime(given, node.op_type, 0.0))
            assert (owner is None) == helper, (given, node.op_type)
            owners.add(owner)
        value = node.outputs[0].name
        assert (find(KernelTime(f"{value}_fused", "Fused", 0.0)) is None) == helper
    assert owners == {u.name for u in resnet} | {None}


def test_kernels_of_nobody(resnet: Units) -> None:
    find = module._named(ir.clone(resnet.model), resnet)
    for name in ("ReorderInput", "Transpose_token_1", "", "node99_", "node", "x"):
        assert find(KernelTime(name, "ReorderInput", 1.0)) is None
    assert find(KernelTime("node0_", "QuantizeLinear", 1.0)) is None


def test_conversions_take_longer_for_more_elements() -> None:
    table = LatencyTable(None, "here")
    table.entries = {
        f"{op} {n}": seconds
        for op in module._HELPERS
        for n, seconds in zip(module._SAMPLES, (0, 1e-6, 16e-6), strict=True)
    }
    steps = module._conversions(TARGET, 1, table)
    for op in module._HELPERS:
        assert 0 <= steps[op](0) <= steps[op](100) < steps[op](1 << 16) < steps[op](1 << 20)
        assert steps[op](1 << 18) == pytest.approx(16e-6, rel=0.1)


def test_costs_compare() -> None:
    assert Costs({}, {}, {}, {}) == Costs({}, {}, {}, {})

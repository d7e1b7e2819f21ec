"""Which nodes have a dynamic form, and the forms that are tried."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import from_batches
from graphopt.measure import Quality, Trial
from graphopt.quant.dynamic_form import DynamicForm
from graphopt.targets import get

Array = np.ndarray[Any, Any]
GRAPH = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[n,16] x) => (float[n,8] y) <float[1] w = {0}, float[1] v = {0}, float[1] u = {0}> { "
    "a = MatMul(x, w) r = Relu(a) b = Gemm(r, v) s = Tanh(b) y = MatMul(s, u) }"
)


def build() -> ir.Model:
    model = ir.parse_text(GRAPH)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (16, 16)), ("v", (16, 8)), ("u", (8, 8))):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32) / 4, name=name)
        value.shape = ir.Shape(shape)
    ir.infer_shapes(model)
    return model


def form_of(model: ir.Model, target: str = "cpu-x64", skip: tuple[str, ...] = ()) -> DynamicForm:
    scheme = get(target).scheme
    assert scheme is not None
    return DynamicForm(model, scheme, get(target), skip)


def batches(count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(6, 16)).astype(np.float32)} for _ in range(count)]


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in ir.all_nodes(model))


def nothing(_model: ir.Model) -> None:
    """Leave a form as it is written."""


def test_products_are_found() -> None:
    form = form_of(build())
    assert form.names == {"a", "b", "y"}
    assert form
    assert not form.layers
    assert form_of(build(), skip=("Gemm", "y")).names == {"a"}
    assert not form_of(build(), skip=("*",))


@pytest.mark.parametrize("target", ["portable", "web", "nnapi", "qnn"])
def test_targets_without_dynamic_kernels(target: str) -> None:
    assert not form_of(build(), target)


@pytest.mark.parametrize("with_data", [False, True])
def test_written(with_data: bool) -> None:
    model = build()
    form, before = form_of(model), ir.dump(model)
    data = from_batches(batches(), model) if with_data else None
    made = form.written(model, data, nothing)
    assert ir.dump(model) == before
    found = ops(made)
    assert found["MatMul"] == found["Gemm"] == 0
    assert found["MatMulInteger"] + found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"]
    ir.verify(made)
    assert Trial(model, batches()).quality(made).sqnr_db > 25
    partly = form.written(model, data, nothing, without=["a", "b"])
    assert ops(partly)["MatMul"] == 1
    assert ops(partly)["Gemm"] == 1


def test_the_form_is_finished() -> None:
    seen: list[ir.Model] = []
    model = build()
    made = form_of(model).written(model, None, seen.append)
    assert seen == [made]


def test_noise_of_each_product() -> None:
    model = build()
    form = form_of(model)
    trial = Trial(model, batches())
    noise = form.noise(trial)
    assert set(noise) == {"a", "b", "y"}
    assert all(0 < v < 0.01 for v in noise.values())
    whole = trial.noise(form.written(model, None, nothing))
    assert sum(noise.values()) / 4 < whole < 4 * sum(noise.values())


def many(count: int) -> ir.Model:
    """Products in a row."""
    lines = " ".join(f"v{i + 1} = MatMul(v{i}, w)" for i in range(count))
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        f"g (float[n,8] v0) => (float[n,8] v{count}) <float[1] w = {{0}}> {{ {lines} }}"
    )
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(
        np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32), name="w"
    )
    value.shape = ir.Shape((8, 8))
    ir.infer_shapes(model)
    return model


def test_candidates() -> None:
    model = many(12)
    form = form_of(model)
    data = [{"v0": np.random.default_rng(i).normal(size=(4, 8)).astype(np.float32)} for i in (0, 1)]
    trial = Trial(model, data)
    judged: list[Quality] = []

    def never(quality: Quality) -> bool:
        judged.append(quality)
        return False

    found = form.candidates(trial, from_batches(data, model), nothing, never)
    assert [c.name for c in found] == [
        f"dynamic, {n} of 12 nodes" for n in (12, 11, 9)
    ]  # fmt: skip
    assert [len(c.dynamic) for c in found] == [12, 11, 9]
    assert all(not c.integer for c in found)
    # The noisiest are left out first.
    order = sorted(form.noises, key=lambda n: -form.noises[n])
    assert found[1].dynamic == form.names - set(order[:1])
    assert found[2].dynamic == form.names - set(order[:3])
    assert len(judged) == 3
    enough = form_of(model).candidates(trial, from_batches(data, model), nothing, lambda _q: True)
    assert [c.name for c in enough] == ["dynamic, 12 of 12 nodes"]


def test_one_product() -> None:
    model = many(1)
    form = form_of(model)
    data = [{"v0": np.ones((4, 8), np.float32)}]
    found = form.candidates(
        Trial(model, data), from_batches(data, model), nothing, lambda _q: False
    )
    assert [c.name for c in found] == ["dynamic, 1 of 1 nodes"]


def test_an_lstm_in_a_branch() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[5,n,4] x, bool p) => (float[?,?,?,?] y) <float[1] w = {0}, float[1] r = {0}> { "
        "y = If(p) <then_branch = t () => (float[?,?,?,?] a) "
        "{ a = LSTM<hidden_size=8>(x, w, r) }, "
        "else_branch = e () => (float[?,?,?,?] b) { b = LSTM<hidden_size=8>(x, w, r) }> }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (1, 32, 4)), ("r", (1, 32, 8))):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32) / 4, name=name)
        value.shape = ir.Shape(shape)
    ir.infer_shapes(model)
    form = form_of(model)
    assert form.layers == {"a", "b"}
    assert not form.names
    assert form
    made = form.written(model, None, nothing)
    assert ops(made) == Counter({"If": 1, "DynamicQuantizeLSTM": 2})
    data = [
        {"x": rng.normal(size=(5, 3, 4)).astype(np.float32), "p": np.array(b)}
        for b in (True, False)
    ]
    assert Trial(model, data).quality(made).sqnr_db > 25
    assert not form_of(model, "portable")


def test_attention() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
        "g (float[2,L,16] x) => (float[2,L,16] y) <float[1] w = {0}, float[48] b = {"
        + ", ".join(["0.1"] * 48)
        + "}> { y = com.microsoft.Attention<num_heads=4>(x, w, b) }"
    )
    rng = np.random.default_rng(0)
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(rng.normal(size=(16, 48)).astype(np.float32) / 4, name="w")
    value.shape = ir.Shape((16, 48))
    ir.infer_shapes(model)
    form = form_of(model)
    assert form.layers == {"y"}
    assert not form_of(model, "portable")
    written = form.written(model, None, nothing)
    assert ops(written) == {"DynamicQuantizeLinear": 1, "QAttention": 1}
    data = [{"x": rng.normal(size=(2, 5, 16)).astype(np.float32)}]
    assert Trial(model, data).quality(written).sqnr_db > 30

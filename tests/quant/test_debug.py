"""The debug report: noise along the graph, ranges, saturation, histograms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import Samples, from_batches
from graphopt.quant import StaticForm, Units, debug
from graphopt.quant.debug import DebugReport, trace
from graphopt.quant.static import observe, settle
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds, open_session
from graphopt.targets import get

NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,2,4,4] x) => (float[N,3,4,4] y) <float[2,2,3,3] w = {W}, float[3,2,1,1] v = {V}> {
  c = Conv <pads = [1,1,1,1]> (x, w)
  r = Relu(c)
  m = MaxPool <kernel_shape = [1,1]> (r)
  s = Sigmoid(m)
  y = Conv(s, v)
}"""


@pytest.fixture
def model() -> ir.Model:
    rng = np.random.default_rng(0)

    def numbers(count: int) -> str:
        return "{" + ", ".join(f"{x:.4f}" for x in rng.standard_normal(count)) + "}"

    model = ir.parse_text(NET.replace("{W}", numbers(36)).replace("{V}", numbers(6)))
    ir.infer_shapes(model)
    return model


def samples(scale: float = 1.0) -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{"x": scale * rng.standard_normal((3, 2, 4, 4)).astype(np.float32)} for _ in range(3)]


def form_of(units: Units, data: Samples) -> StaticForm:
    return settle(units, observe(units, data, method=("minmax", {}), rounding=False))


def traced(
    model: ir.Model, *, without: tuple[str, ...] = (), batches: list[Feeds] | None = None
) -> DebugReport:
    """Ranges are those of small samples; what is traced, of all that are given."""
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    units = Units(model, scheme)
    form = form_of(units, from_batches(samples(), model))
    integer = {u.name for u in units} - set(without)
    given = samples() if batches is None else batches
    return trace("all", units, form, integer, given, from_batches(given, model))


def test_every_tensor_in_order(model: ir.Model) -> None:
    report = traced(model)
    assert [(t.name, t.op) for t in report.tensors] == [
        ("x", ""), ("r", "Relu"), ("m", "MaxPool"), ("s", "Sigmoid"), ("y", "Conv"),
    ]  # fmt: skip
    assert (report.form, report.batches) == ("all", 3)
    assert all(t.quantized for t in report.tensors)
    assert all(20 < (t.sqnr_db or 0) < 70 for t in report.tensors)
    assert report.tensors[1].sqnr_db == report.tensors[2].sqnr_db  # moved, not rounded again
    assert report.tensors[0].sqnr_db > report.tensors[1].sqnr_db  # type: ignore[operator]


def test_ratios_are_those_of_the_quantized_model(model: ir.Model) -> None:
    """The last tensor is the model's output, whose ratio is known by other means."""
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    units = Units(model, scheme)
    form = form_of(units, from_batches(samples(), model))
    copy = ir.clone(model)
    stand_ins = form.write(Rewriter(copy))
    assert stand_ins["y"] == "y"
    assert set(stand_ins) == {"x", "r", "m", "s", "y"}
    with open_session(model) as one, open_session(copy) as other:
        pairs = [(one.run(b)["y"], other.run(b)["y"]) for b in samples()]
    energy = sum(float(np.square(a, dtype=np.float64).sum()) for a, _ in pairs)
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in pairs)
    found = traced(model).tensors[-1].sqnr_db
    assert found == pytest.approx(10 * math.log10(energy / noise), abs=1e-3)


def test_what_stays_in_floating_point(model: ir.Model) -> None:
    report = traced(model, without=("s", "y"))
    tensors = {t.name: t for t in report.tensors}
    assert not tensors["s"].quantized
    assert tensors["s"].range is tensors["s"].saturated is None
    assert tensors["s"].seen is not None
    assert tensors["m"].quantized
    # It carries the noise of what is before it.
    assert 20 < (tensors["y"].sqnr_db or 0) < 70
    nothing = traced(model, without=("c", "m", "s", "y"))
    computed = [t for t in nothing.tensors if t.op]
    assert [t.sqnr_db for t in computed] == [math.inf] * 4
    assert nothing.tensors[0].sqnr_db is None  # an input as it was given


def test_saturation_and_histogram(model: ir.Model) -> None:
    usual = traced(model).tensors[0]
    assert usual.saturated == 0
    assert sum(usual.histogram) == 3 * 3 * 2 * 4 * 4
    assert len(usual.histogram) == 32
    wider = traced(model, batches=samples(scale=4.0))
    x = wider.tensors[0]
    assert x.range == usual.range
    assert x.range is not None
    data = np.concatenate([b["x"].reshape(-1) for b in samples(scale=4.0)])  # type: ignore[union-attr]
    assert x.seen == (float(data.min()), float(data.max()))
    outside = np.mean((data < x.range[0]) | (data > x.range[1]))
    assert x.saturated == pytest.approx(outside, abs=0.02)
    assert x.saturated > 0.1
    assert x.sqnr_db < usual.sqnr_db - 10  # type: ignore[operator]
    expected, _ = np.histogram(data, 32)
    assert np.abs(np.subtract(x.histogram, expected)).sum() < 0.2 * data.size


def test_memory_is_bounded(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that do not fit together are compared one after the other, with the same result."""
    whole = traced(model)
    opened = []
    monkeypatch.setattr(debug, "_MEMORY", 1)
    monkeypatch.setattr(
        debug, "open_session", lambda m: opened.append(len(m.graph.outputs)) or open_session(m)
    )
    assert traced(model) == whole
    assert opened
    assert set(opened) == {1}


def test_as_data(model: ir.Model) -> None:
    data = json.loads(json.dumps(traced(model).to_json()))
    assert data["form"] == "all"
    assert data["tensors"][1]["name"] == "r"
    assert data["tensors"][1]["range"][0] == 0
    assert len(data["tensors"][1]["histogram"]) == 32


def test_an_empty_tensor(model: ir.Model) -> None:
    empty: list[Feeds] = [{"x": np.zeros((0, 2, 4, 4), np.float32)}]
    report = traced(model, batches=empty)
    assert [(t.seen, t.saturated, t.histogram) for t in report.tensors] == [(None, 0.0, ())] * 5


def test_defaults_of_inputs() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[N,2] x, float[2,2] w) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> "
        "{ y = MatMul(x, w) }"
    )
    ir.infer_shapes(model)
    scheme = get("tensorrt").scheme
    assert scheme is not None
    units = Units(model, scheme)
    given: list[Feeds] = [{"x": np.ones((3, 2), np.float32)}]
    data = from_batches(given, model)
    report = trace("all", units, form_of(units, data), {"y"}, given, data)
    assert {t.name: t.sqnr_db is None for t in report.tensors} == {
        "x": False,
        "w": True,
        "y": False,
    }

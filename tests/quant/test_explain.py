"""Why each node is quantized or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt import ir
from graphopt.quant import Candidate, StaticForm, Units
from graphopt.quant.costs import Costs
from graphopt.quant.dynamic_form import DynamicForm
from graphopt.quant.explain import explain
from graphopt.quant.products import quantize_tables
from graphopt.rewrite import Rewriter
from graphopt.targets import Scheme, get

TARGET = get("cpu-x64")
NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,1,2,2] x) => (float[N,2] y)
   <float[1,1,1,1] w = {2}, float[4,2] v = {1,2,3,4,5,6,7,8}, int64[2] s = {-1,4}> {
  c = Conv(x, w)
  r = Relu(c)
  e = Erf(r)
  d = Conv(e, w)
  f = Reshape(d, s)
  y = MatMul(f, v)
}"""


@pytest.fixture
def scheme() -> Scheme:
    assert TARGET.scheme is not None
    return TARGET.scheme


@pytest.fixture
def model() -> ir.Model:
    model = ir.parse_text(NET)
    ir.infer_shapes(model)
    return model


def rows(
    model: ir.Model, scheme: Scheme, chosen: Candidate | None, *, skip: tuple[str, ...] = (),
    noises: dict[str, float] | None = None, **options: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    units = Units(model, scheme, skip=skip)
    dynamic = DynamicForm(model, scheme, TARGET, skip)
    dynamic.noises = noises or {}
    found = explain(units, dynamic, chosen, **options)
    return {r["name"]: r for r in found}


def test_static(model: ir.Model, scheme: Scheme) -> None:
    names = frozenset({"c", "f"})
    form = StaticForm(
        scheme, (), {}, {}, {"r": (0.0, 3.0)}, noise={"r": 1e-4}, weight_noise={"c": 1e-3}
    )
    costs = Costs(
        floating={"c": 5e-6, "d": 4e-6, "f": 0.0, "y": 3e-6},
        integer={"c": 1e-6, "d": 7.5e-6, "f": 0.0, "y": 1e-6},
        quantize={},
        dequantize={},
    )
    found = rows(model, scheme, Candidate("s", model, names), form=form, costs=costs)
    assert list(found) == ["c", "e", "d", "f", "y"], "the Relu is part of the first convolution"
    assert found["c"] == {
        "name": "c", "op": "Conv", "form": "static", "range": [0.0, 3.0],
        "noise_db": pytest.approx(40), "weight_noise_db": pytest.approx(30),
        "float_us": pytest.approx(5), "integer_us": pytest.approx(1),
    }  # fmt: skip
    assert found["e"]["reason"] == f"{scheme.name} has no static integer kernel for Erf"
    assert found["d"]["reason"] == (
        "its integer kernel takes 7.5 us, in floating point it takes 4.0 us"
    )
    assert found["d"]["range"] is found["d"]["noise_db"] is None
    assert found["f"]["form"] == "static"
    assert found["y"]["reason"] == (
        "what it gains would not pay for conversions, or for the noise it adds"
    )


def test_mixed(model: ir.Model, scheme: Scheme) -> None:
    chosen = Candidate("m", model, frozenset({"c"}), frozenset({"y"}))
    found = rows(model, scheme, chosen, noises={"y": 0.01})
    assert found["y"] == {
        "name": "y", "op": "MatMul", "form": "dynamic", "noise_db": pytest.approx(20),
    }  # fmt: skip
    assert found["c"]["form"] == "static"
    assert "integer kernel for Erf" in found["e"]["reason"]


def test_dynamic(model: ir.Model, scheme: Scheme) -> None:
    chosen = Candidate("d", model, dynamic=frozenset({"other"}))
    found = rows(model, scheme, chosen)
    assert found["y"]["reason"] == "on integers it would add more noise to the outputs than most"
    assert found["c"]["reason"] == f"{scheme.name} has no dynamic integer kernel for Conv"
    found = rows(model, scheme, chosen, skip=("MatMul",))
    assert found["y"]["reason"] == "it is among those to skip"


def test_nothing_was_taken(model: ir.Model, scheme: Scheme) -> None:
    found = rows(model, scheme, None)
    assert {r["form"] for r in found.values()} == {"float"}
    assert found["c"]["reason"] == "the model as a whole stays as it is"


def test_tables(scheme: Scheme) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[N] i, float[2,2] x) => (float[N,2] a, float[N,2] b)
       <float[3,2] t = {1,2,3,4,5,6}, float[3,2] u = {1,2,3,4,5,6}> {
      a = Gather(t, i)
      b = Gather(u, i)
    }"""
    before = ir.parse_text(text)
    ir.infer_shapes(before)
    after = ir.clone(before)
    rw = Rewriter(after)
    quantize_tables(rw, [next(iter(after.graph))], least_bytes=0)
    rw.remove_initializers()
    found = rows(before, scheme, Candidate("d", after, dynamic=frozenset({"z"})))
    assert (found["a"]["form"], found["b"]["form"]) == ("weights", "float")


def test_branches(models_dir: Path) -> None:
    """The LSTM of this model is in a branch; a control structure by itself computes nothing."""
    result = graphopt.quantize(models_dir / "digits_lstm.onnx", form="dynamic")
    found = result.report.passes[-1].details["nodes"]
    assert {r["op"] for r in found if r["form"] == "dynamic"} >= {"LSTM"}
    assert not {"If", "Loop", "Scan"} & {r["op"] for r in found}
    assert all(("reason" in r) == (r["form"] == "float") for r in found)

"""From samples to the form that pays; latencies are made up where they decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import from_batches
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget, Trial
from graphopt.quant import quantizer as module
from graphopt.quant.costs import Costs
from graphopt.quant.measure import Candidate
from graphopt.quant.quantizer import Options, Outcome, quantize
from graphopt.targets import get

Array = np.ndarray[Any, Any]
GRAPH = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[n,3,6,6] x) => (float[n,5] y) <float[1] w = {0}, float[1] fc = {0}, "
    "float[4] b = {0.5, -0.5, 0, 1}> { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) "
    "p = GlobalAveragePool(r) f = Flatten(p) t = Tanh(f) y = Gemm(t, fc) }"
)
ALL = Options(measured=False, equalize=False)


def build() -> ir.Model:
    model = ir.parse_text(GRAPH)
    rng = np.random.default_rng(1)
    for name, shape in (("w", (4, 3, 3, 3)), ("fc", (4, 5))):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32) / 3, name=name)
        value.shape = ir.Shape(shape)
    return model


def batches(count: int = 6) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(4, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


def run(options: Options, *, target: str = "cpu-x64", data: bool = True, **more: Any) -> Outcome:
    model = build()
    before = ir.dump(model)
    scheme = get(target).scheme
    assert scheme is not None
    found = quantize(
        model, get(target), scheme, from_batches(batches(), model) if data else None, options,
        **{"finish": ir.infer_shapes, **more},
    )  # fmt: skip
    assert ir.dump(model) == before
    if found.model is not None:
        ir.verify(found.model)
        assert ir.interface_difference(model, found.model) is None
    return found


def forms(found: Outcome) -> dict[str, str]:
    return {row["name"]: row["form"] for row in found.details["nodes"]}


def names(found: Outcome) -> list[str]:
    return [c["name"] for c in found.details["candidates"]]


def test_all_nodes_that_have_a_kernel() -> None:
    finished: list[ir.Model] = []
    found = run(ALL, finish=finished.append)
    assert found.model in finished
    assert names(found) == ["static, 4 of 4 nodes"]
    assert found.details["chosen"] == "static, 4 of 4 nodes"
    assert forms(found) == {
        "a": "static", "p": "static", "f": "static", "t": "float", "y": "static"
    }  # fmt: skip
    assert "latency was not measured" in found.reason
    assert "on 24 samples it was calibrated on" in found.reason


def test_it_is_the_same_on_any_executor_and_with_a_cache(tmp_path: Path) -> None:
    plain = run(ALL)
    with ThreadPoolExecutor(2) as executor:
        other = run(ALL, executor=executor)
    first, second = (run(ALL, cache=tmp_path) for _ in range(2))
    assert plain.model is not None
    for each in (other, first, second):
        assert each.model is not None
        assert ir.to_bytes(each.model) == ir.to_bytes(plain.model)
    assert list(tmp_path.iterdir())


def test_equalized() -> None:
    found = run(dataclasses.replace(ALL, equalize=True))
    assert found.model is not None
    assert found.details["candidates"][0]["sqnr_db"] > 25


def test_without_data() -> None:
    dynamic = dataclasses.replace(ALL, form="dynamic")
    found = run(dynamic, data=False)
    assert found.details["chosen"] == "dynamic"
    assert forms(found)["y"] == "dynamic"
    for options in (
        ALL,  # nobody who forgot them gets half of it
        dataclasses.replace(ALL, form="static"),
        dataclasses.replace(dynamic, budget=Budget(30.0)),
    ):
        with pytest.raises(NotApplicable, match="needs calibration data"):
            run(options, data=False)


def test_nothing_has_a_kernel() -> None:
    with pytest.raises(NotApplicable, match="computes none of the nodes"):
        run(dataclasses.replace(ALL, skip=("*",)))
    with pytest.raises(NotApplicable, match="computes none of the nodes"):
        run(dataclasses.replace(ALL, form="dynamic"), target="portable")


def test_moves_alone_are_nothing_to_quantize() -> None:
    with pytest.raises(NotApplicable, match="computes none of the nodes"):
        run(dataclasses.replace(ALL, skip=("Conv", "Gemm", "GlobalAveragePool")))


def test_a_dynamic_form() -> None:
    found = run(dataclasses.replace(ALL, form="dynamic"))
    held = forms(found)
    assert held.pop("y") == "dynamic"
    assert set(held.values()) == {"float"}
    assert names(found)[0].startswith("dynamic, 1 of 1")


def test_a_budget_that_no_form_meets() -> None:
    found = run(dataclasses.replace(ALL, budget=Budget(sqnr_db=150.0)))
    assert found.model is None
    assert found.reason.startswith("no int8 form keeps within the budget: SQNR")
    assert found.details["chosen"] is None
    assert set(forms(found).values()) == {"float"}
    assert all(row["reason"] for row in found.details["nodes"])
    assert "static, 0 of 4 nodes" not in names(found)  # that would be the original
    assert len(set(names(found))) == len(names(found))


class Machine:
    """A machine on which everything takes as long as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ratios: Mapping[str, float]) -> None:
        self.ratios, self.raced = ratios, []  # type: ignore[var-annotated]
        self.integer = 1.0
        monkeypatch.setattr(module, "runs_here", lambda _target: None)
        monkeypatch.setattr(module, "measure_costs", self.costs)
        monkeypatch.setattr(module, "raced", self.race)

    def costs(self, units: Any, *_args: Any, **_options: Any) -> Costs:
        each = {u.name for u in units}
        values = {v.name or "" for v in units.tensors()}
        return Costs(
            dict.fromkeys(each, 2.0), dict.fromkeys(each, self.integer),
            dict.fromkeys(values, 0.01), dict.fromkeys(values, 0.01),
        )  # fmt: skip

    def race(
        self, _original: ir.Model, candidates: Sequence[Candidate], *_args: Any, **_options: Any
    ) -> list[Candidate]:
        self.raced.append([c.name for c in candidates])
        found = []
        for c in candidates:
            ratio = next((r for key, r in self.ratios.items() if key in c.name), 0.5)
            found.append(dataclasses.replace(c, ratio=ratio, slowest=ratio))
        return found


MEASURED = Options(equalize=False)


def test_the_fastest_kind_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {"mixed": 0.9, "dynamic": 0.9, "static": 0.4})
    found = run(MEASURED)
    assert machine.raced[0] == ["fastest static", "fastest mixed", "fastest dynamic"]
    assert all(n.startswith("static") for n in machine.raced[1])
    assert found.model is not None
    assert found.reason.startswith("2.50x as fast as the original")
    assert {"fastest static", "fastest mixed", "fastest dynamic"} < set(names(found))


def test_a_dynamic_form_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, {"fastest dynamic": 0.4, "dynamic, 1": 0.4, "": 0.9})
    found = run(MEASURED)
    assert found.details["chosen"] == "dynamic, 1 of 1 nodes"
    assert forms(found)["y"] == "dynamic"


def test_products_are_dynamic_beside_static_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, {"mixed": 0.4, "fastest": 0.9, "": 0.4})
    found = run(MEASURED)
    assert found.model is not None
    assert forms(found)["a"] == "static"
    assert forms(found)["y"] == "dynamic"
    weights = found.model.graph.initializers
    assert "fc" not in weights


def test_what_is_slower_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, {"": 1.25})
    found = run(MEASURED)
    assert found.model is None
    assert found.reason == "its int8 form would not be faster than the original: 0.80x"
    assert set(forms(found).values()) == {"float"}


def test_kernels_that_are_slower_are_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {})
    machine.integer = 9.0
    found = run(dataclasses.replace(MEASURED, form="static"))
    assert machine.raced == []
    assert found.model is None
    assert found.reason == "none of its nodes would be faster on integers"
    rows = {row["name"]: row for row in found.details["nodes"]}
    assert "its integer kernel takes" in rows["a"]["reason"]


def test_measured_times_are_kept(tmp_path: Path) -> None:
    options = dataclasses.replace(MEASURED, form="static")
    run(options, target="cpu", cache=tmp_path)
    assert (tmp_path / "latency.json").exists()
    run(options, target="cpu", cache=tmp_path)


def test_batches_for_trying_and_for_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "affordable_rows", lambda *_a, **_k: 10)
    judged: list[int] = []

    def spy(model: ir.Model, given: Any) -> Trial:
        judged.append(len(given))
        return Trial(model, given)

    monkeypatch.setattr(module, "Trial", spy)
    run(ALL)
    assert judged == [3, 3]  # twelve rows in three batches, for want of more twice
    monkeypatch.setattr(module, "_ENOUGH", 24)
    judged.clear()
    found = run(ALL)
    assert judged == [3, 1]  # a quarter of 24 rows is a batch and a half
    assert "on 4 samples that decided nothing" in found.reason


MASKED = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[n,2,3] x) => (float[n,2,3] y) <float[3,3] w = {1, 2, 0, 0, 1, 1, 2, 0, 1}, "
    "float[2,2] mask = {0, MASK, 0, 0}> { q = MatMul(x, w) k = Transpose<perm=[0,2,1]>(x) "
    "s = MatMul(q, k) m = Add(s, mask) p = Softmax(m) y = MatMul(p, q) }"
)


def masked(mask: str, **more: Any) -> Outcome:
    model = ir.parse_text(MASKED.replace("MASK", mask))
    rng = np.random.default_rng(0)
    data: list[dict[str, Array]] = [
        {"x": rng.normal(size=(4, 2, 3)).astype(np.float32)} for _ in range(3)
    ]
    data += more.pop("data", [])
    scheme = get("portable").scheme
    assert scheme is not None
    return quantize(
        model, get("portable"), scheme, from_batches(data, model),
        dataclasses.replace(ALL, **more), finish=ir.infer_shapes,
    )  # fmt: skip


@pytest.mark.parametrize("mask", ["-inf", "-3.4e38"])
def test_masks_stay_in_floating_point(mask: str) -> None:
    found = masked(mask)
    assert found.model is not None
    kinds = forms(found)
    assert kinds["m"] == "float"
    assert kinds["q"] == kinds["y"] == "static"


def test_what_is_infinite_is_named() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[n,2] x) => (float[n,2] y) <float[2,2] w = {1, 2, 3, 1}, float[1] zero = {0}> "
        "{ a = MatMul(x, w) l = Reciprocal(zero) m = Add(a, l) t = Tanh(m) y = MatMul(t, w) }"
    )
    data = from_batches([{"x": np.eye(2, dtype=np.float32)}], model)
    scheme = get("portable").scheme
    assert scheme is not None
    found = quantize(model, get("portable"), scheme, data, ALL, finish=ir.infer_shapes)
    assert found.model is not None
    reasons = {row["name"]: row.get("reason") for row in found.details["nodes"]}
    assert reasons["m"] == "it reads or writes NaN or infinity"
    assert forms(found)["a"] == "static"


def test_infinite_samples_are_an_error() -> None:
    bad = np.full((4, 2, 3), np.inf, np.float32)
    with pytest.raises(CalibrationError, match="batch 3: input 'x' is inf"):
        masked("0", data=[{"x": bad}])


def test_a_model_that_does_not_run() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17, "some.where": 1]>\n'
        "g (float[n,4] x) => (float[n,4] y) <float[4,4] w = {" + ", ".join("1" * 16) + "}> "
        "{ a = MatMul(x, w) y = some.where.Odd(a) }"
    )
    data = from_batches([{"x": np.ones((2, 4), np.float32)}], model)
    target = get("cpu-x64")
    assert target.scheme is not None
    with pytest.raises(NotApplicable, match=r"does not run the model: .*Odd"):
        quantize(model, target, target.scheme, data, ALL, finish=lambda _m: None)

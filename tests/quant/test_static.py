"""From samples to a static form: what is observed, settled, and found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import Histogram, MinMax, Samples, from_batches
from graphopt.errors import CalibrationError
from graphopt.measure import Trial
from graphopt.quant.static import affordable_rows, observe, search, settle
from graphopt.quant.units import Units
from graphopt.targets import get

Array = np.ndarray[Any, Any]
GRAPH = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[n,3,6,6] x) => (float[n,5] y) <float[1] w = {0}, float[1] fc = {0}, "
    "float[4] b = {0.5, -0.5, 0, 1}, float[5] c = {0, 1, 2, 3, 4}> { "
    "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) "
    "y = Gemm<transB=1>(f, fc, c) }"
)


def batches(count: int = 6, outlier: float = 0.0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    found = [{"x": rng.normal(size=(4, 3, 6, 6)).astype(np.float32)} for _ in range(count)]
    if outlier:
        found[0]["x"][0, 0, 0, 0] = outlier
    return found


@pytest.fixture
def units() -> Units:
    model = ir.parse_text(GRAPH)
    rng = np.random.default_rng(1)
    for name, shape in (("w", (4, 3, 3, 3)), ("fc", (5, 4))):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32) / 3, name=name)
        value.shape = ir.Shape(shape)
    ir.infer_shapes(model)
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    return Units(model, scheme)


def samples(units: Units, **options: Any) -> Samples:
    return from_batches(batches(**options), units.model)


def test_what_is_observed(units: Units) -> None:
    seen = observe(units, samples(units))
    assert set(seen.activations) == {"x", "r", "p", "y"}  # Flatten only moves
    assert all(isinstance(o, Histogram) for o in seen.activations.values())
    assert set(seen.inputs) == {"a", "y"}
    assert all(g.count for g in seen.inputs.values())
    assert seen.method is None
    plain = observe(units, samples(units), method=("minmax", {}), rounding=False)
    assert all(type(o) is MinMax for o in plain.activations.values())
    assert plain.inputs == {}


def test_a_limit_of_batches(units: Units) -> None:
    few = observe(units, samples(units), rounding=False, limit=1).activations["x"]
    assert isinstance(few, Histogram)
    assert few.count == 4 * 3 * 6 * 6


def test_settled_with_the_range_that_was_seen(units: Units) -> None:
    seen = observe(units, samples(units), method=("minmax", {}), rounding=False)
    form = settle(units, seen, skip=("a*",))
    x = np.concatenate([b["x"] for b in batches()])
    assert form.ranges["x"] == (float(x.min()), float(x.max()))
    assert form.ranges["r"][0] == 0
    assert set(form.params) == {"x", "r", "p", "f", "y"}
    assert form.params["f"] is form.params["p"]
    assert set(form.weights) == {"a", "y"}
    assert form.noise == form.weight_noise == {}
    assert form.skip == ("a*",)
    given = settle(units, seen, ranges={"x": (-9.0, 9.0)})
    assert list(given.ranges["x"]) == [-9, 9]
    assert given.ranges["r"] == form.ranges["r"]


def test_written_into_any_copy(units: Units) -> None:
    form = settle(units, observe(units, samples(units)))
    cases: list[tuple[set[str] | None, int]] = [(None, 2), ({"a"}, 1), (set(), 0)]
    for chosen, count in cases:
        made = form.quantized(units.model, chosen)
        weights = [
            n for n in made.graph
            if n.op_type == "DequantizeLinear" and n.inputs[0].const_value is not None  # type: ignore[union-attr]
            and n.inputs[0].dtype == ir.DataType.INT8  # type: ignore[union-attr]
        ]  # fmt: skip
        assert len(weights) == count
        assert all(
            any(ir.use_count(v) or v.is_graph_output() for v in n.outputs) for n in made.graph
        )
        ir.verify(made)
    assert ir.dump(form.quantized(units.model, set())) == ir.dump(units.model)


def test_searching_is_no_worse_and_tells_the_noise(units: Units) -> None:
    data = batches(outlier=60.0)
    seen = observe(units, from_batches(data, units.model))
    trial = Trial(units.model, data)
    first = settle(units, seen)
    found = search(units, seen, trial, first)
    assert set(found.noise) == {"x", "r", "p", "y"}
    assert set(found.weight_noise) == {"a", "y"}
    assert all(v > 0 for v in found.noise.values())
    # What one rounding does, alone, is about what all of them do together.
    together = trial.noise(found.quantized(units.model))
    alone = sum(found.noise.values()) + sum(found.weight_noise.values())
    assert alone / 4 < together < alone * 4
    assert together <= trial.noise(first.quantized(units.model)) * 1.1


def test_a_given_method_is_not_searched(units: Units) -> None:
    data = batches(outlier=60.0)
    seen = observe(units, from_batches(data, units.model), method=("minmax", {}))
    first = settle(units, seen)
    found = search(units, seen, Trial(units.model, data), first)
    assert found.ranges == first.ranges
    assert found.ranges["x"][1] == 60
    assert found.noise


def test_clipping_is_found_where_it_pays(units: Units) -> None:
    # One element in thousands is far out, and one batch is not tried on.
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(64, 3, 6, 6)).astype(np.float32)} for _ in range(8)]
    data[0]["x"][0, 0, 0, 0] = 1e4
    seen = observe(units, from_batches(data, units.model))
    trial = Trial(units.model, data[1:])
    found = search(units, seen, trial, settle(units, seen, ranges={}))
    assert found.ranges["x"][1] < 1e3


def test_divisions(units: Units) -> None:
    from graphopt.quant.costs import Costs

    data = batches()
    seen = observe(units, from_batches(data, units.model))
    form = search(units, seen, Trial(units.model, data), settle(units, seen))

    def each(value: float) -> Mapping[str, float]:
        return {n: value for u in units for n in (u.name, *(v.name or "" for v in u.inputs))}

    costs = Costs(each(2.0), each(1.0), each(0.1), each(0.1))
    divisions = list(form.divisions(units, costs))
    assert divisions[0].integer == {u.name for u in units}
    for one, other in itertools.pairwise(divisions):
        assert other.noise <= one.noise
        assert other.seconds >= one.seconds
    assert all("a" not in d.integer for d in form.divisions(units, costs, fixed=["a"]))


def test_tensors_that_are_empty_in_every_sample() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[n,2] x, float[m,2] z) => (float[m,2] y, float[n,2] v) "
        "{ y = Add(z, z) v = Mul(x, x) }"
    )
    ir.infer_shapes(model)
    scheme = get("cpu-x64").scheme
    assert scheme is not None
    units = Units(model, scheme)
    data = [{"x": np.ones((3, 2), np.float32), "z": np.zeros((0, 2), np.float32)}]
    form = settle(units, observe(units, from_batches(data, model)))
    assert list(form.ranges["z"]) == list(form.ranges["y"]) == [0, 0]
    assert float(form.params["z"].scale) == 1


def test_bad_samples(units: Units) -> None:
    data = batches(2)
    data[1]["x"][0, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError, match="batch 1"):
        observe(units, from_batches(data, units.model))


def test_how_many_rows_are_affordable(units: Units) -> None:
    model = units.model
    assert affordable_rows(model, 1, seconds=1e9) == 128
    assert affordable_rows(model, 10**9, seconds=1.0) == 8
    assert affordable_rows(model, 0, seconds=1.0, most=64) == 64
    few = affordable_rows(model, 20, seconds=0.5, most=10**9)
    assert affordable_rows(model, 10, seconds=0.5, most=10**9) == pytest.approx(2 * few, abs=2)

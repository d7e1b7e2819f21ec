"""Decomposition as a whole. No clock takes part: models take the time that their work takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decompose.decomposed import Clock, decomposed
from decompose.test_parts import CASES, SHARED, batches
from pruning.pruned import Data, elements, valid
from pruning.test_noise import images, residual
from reconstruct.single import constant, network, normal

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.decompose import KINDS, decomposer, removals, timing
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget, Outcome, judge
from graphopt.pruning.biases import with_biases
from graphopt.reconstruct import layers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (judge, decomposer, removals, timing):
        monkeypatch.setattr(module, "race", found.race)
    monkeypatch.setattr(timing, "seconds_of", found.seconds)
    for other in (judge, decomposer):
        monkeypatch.setattr(other, "runs_here", lambda target: None)
    return found


def products() -> ir.Model:
    """Products alone, one of them beside a shortcut."""
    body = """
        a = MatMul(x, u) b = Add(a, p) c = Relu(b) d = MatMul(c, v) e = Add(d, x)
        y = Gemm(e, w, q)
    """
    return network(
        body, "N,12", u=normal(12, 24) / 4, p=normal(24), v=normal(24, 12, seed=1) / 5,
        w=normal(12, 8, seed=2), q=normal(8),
    )  # fmt: skip


ROWS: Data = [{"x": normal(16, 12, seed=i)} for i in range(8)]


def forms(found: Outcome) -> dict[str, str]:
    return {row["name"]: row["form"] for row in found.details["layers"]}


# Goals in size


SMALLER = ("spatial", "input", "output", "tucker")


@pytest.mark.parametrize(
    ("what", "left", "kinds"),
    [
        ("macs", 0.8, KINDS),
        ("macs", 0.5, KINDS),
        ("params", 0.6, KINDS),
        ("bytes", 0.6, KINDS),
        ("macs", 0.5, ("depthwise",)),
        ("bytes", 0.8, ("depthwise",)),
        ("macs", 0.5, SMALLER),
        ("params", 0.5, SMALLER),
    ],
)
def test_goals_are_met_and_the_sizes_said_are_those_of_the_model(
    what: str, left: float, kinds: Any
) -> None:
    model = with_biases(residual())
    before = ir.dump(model)
    found = decomposed(model, what, left, kinds=kinds)
    small = valid(model, found)
    assert ir.dump(model) == before
    shares = found.details["left"]
    assert shares["macs"] == Cost(small).macs / Cost(model).macs
    for name, one, other in zip(("params", "bytes"), elements(small), elements(model), strict=True):
        assert shares[name] == one / other
    assert left - 0.25 < shares[what] <= left
    assert f"{shares[what]:.3f} of the" in found.reason
    assert set(forms(found)) == {"s", "a", "c", "y"} - ({"y"} if kinds == ("depthwise",) else set())
    rows = found.details["layers"]
    assert 1 - sum(r["saved"]["macs"] for r in rows) / Cost(model).macs == pytest.approx(
        shares["macs"]
    )
    assert all((row["form"] == "whole") == (row["noise"] == 0) for row in rows)
    assert {fit["name"] for fit in found.details["fits"]} >= {
        name for name, form in forms(found).items() if form != "whole"
    }


def test_biases_that_layers_get_count() -> None:
    model = residual()
    found = decomposed(model, "params", 0.6)
    small = valid(model, found)
    saved = sum(row["saved"]["params"] for row in found.details["layers"])
    biases = elements(with_biases(model))[0] - elements(model)[0]
    assert biases > 0
    assert 0 <= elements(small)[0] - (elements(model)[0] - saved) <= biases
    assert found.details["left"]["params"] <= 0.6


def test_the_less_may_be_left_the_more_is_lost() -> None:
    ratios = [
        decomposed(residual(), "macs", left).details["quality"]["sqnr_db"]
        for left in (0.9, 0.6, 0.4)
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[2] + 3


def test_what_is_of_low_rank_is_found_without_loss() -> None:
    weight = normal(16, 4) @ normal(4, 16, seed=1)
    model = network("y = MatMul(x, w)", "N,16", w=weight)
    data = [{"x": normal(32, 16, seed=i)} for i in range(4)]
    found = decomposed(model, "macs", 0.5, data)
    small = valid(model, found, data)
    assert forms(found) == {"y": "output 4"}
    assert [node.op_type for node in small.graph] == ["MatMul", "MatMul"]
    assert found.details["quality"]["sqnr_db"] > 100


def test_layers_behind_make_up_for_what_is_lost() -> None:
    """Fitted one after the other, layers are better than each fitted for itself."""
    found = decomposed(products(), "macs", 0.6, ROWS)
    valid(products(), found, ROWS)
    fits = {fit["name"]: fit for fit in found.details["fits"]}
    changed = [name for name, form in forms(found).items() if form != "whole"]
    order = [layer.name for layer in layers(products())]
    behind = order[order.index(changed[0]) :]
    assert set(fits) == set(behind), "those that stay whole are fitted, too"


@pytest.mark.parametrize("name", CASES)
def test_layers_of_every_sort(name: str) -> None:
    model, sizes = CASES[name]
    data = batches(sizes)
    found = decomposed(model, "macs", 0.8, data, budget=Budget(sqnr_db=0.0))
    small = valid(model, found, data)
    assert Cost(small).macs <= 0.8 * Cost(model).macs
    assert found.details["quality"]["sqnr_db"] > 3
    assert forms(found)["y"] != "whole"


def test_models_of_products() -> None:
    model = products()
    small = valid(model, decomposed(model, "macs", 0.6, ROWS), ROWS)
    assert {node.op_type for node in small.graph} == {"MatMul", "Gemm", "Add", "Relu"}
    with pytest.raises(NotApplicable, match="no form of it is smaller"):
        decomposed(model, "macs", 0.6, ROWS, kinds=["depthwise"])


# What stays


def test_shared_weights_stay() -> None:
    data = [{"x": normal(16, 16, seed=i)} for i in range(4)]
    found = decomposed(SHARED, "macs", 0.9, data, budget=Budget(sqnr_db=0.0))
    small = valid(SHARED, found, data)
    assert forms(found).keys() == {"y"}
    reason = "its weights are used elsewhere, too"
    assert found.details["whole"] == [{"name": n, "reason": reason} for n in "ac"]
    first, second, *rest = (node for node in small.graph if node.op_type == "MatMul")
    assert first.inputs[1] is second.inputs[1]
    np.testing.assert_array_equal(ir.array(first.inputs[1]), normal(16, 16))
    assert len(rest) == 2


def test_what_is_skipped_stays() -> None:
    model = residual()
    found = decomposed(model, "macs", 0.7, skip=("a", "Gemm"))
    small = valid(model, found)
    assert {"name": "a", "reason": "skip names it"} in found.details["whole"]
    named = {layer.name: layer for layer in layers(small)}
    before = {layer.name: layer for layer in layers(model)}
    for name in ("a", "y"):
        np.testing.assert_array_equal(named[name].matrix(), before[name].matrix())
        np.testing.assert_array_equal(named[name].bias(), before[name].bias())
    with pytest.raises(NotApplicable, match="no layer can be computed in parts: skip names it"):
        decomposed(model, "macs", 0.7, skip=("*",))


def test_a_model_without_layers() -> None:
    model = network("y = Relu(x)", "N,3")
    with pytest.raises(NotApplicable, match="none has constant weights of 32-bit floats"):
        decomposed(model, "macs", 0.5, [{"x": normal(4, 3)}])


def test_layers_that_are_too_small() -> None:
    model = network("y = MatMul(x, w)", "N,2", w=normal(2, 2))
    with pytest.raises(NotApplicable, match="no form of it is smaller"):
        decomposed(model, "macs", 0.5, [{"x": normal(4, 2)}])


@pytest.mark.parametrize("shape", [(12, 12), (4, 4, 3, 3)])
def test_weights_of_zeros(shape: tuple[int, ...]) -> None:
    op, sizes = ("MatMul", (12,)) if len(shape) == 2 else ("Conv", (4, 6, 6))
    inputs = ",".join(map(str, ("N", *sizes)))
    model = network(f"a = {op}(x, w) y = Relu(a)", inputs, w=np.zeros(shape))
    found = decomposed(model, "macs", 0.6, batches(sizes))
    small = valid(model, found, batches(sizes))
    assert Cost(small).macs <= 0.6 * Cost(model).macs


def test_samples_that_tell_nothing() -> None:
    model = network("y = MatMul(x, w)", "N,12", w=normal(12, 12))
    for value in (0.0, 1.0):
        data = [{"x": np.full((8, 12), value, np.float32)}] * 4
        found = decomposed(model, "macs", 0.6, data)
        valid(model, found, data)
        assert found.details["quality"]["cosine"] > 0.999


def test_an_output_that_is_used_in_the_model_too() -> None:
    body = "y = MatMul(x, w) b = Relu(y) c = MatMul(b, v) d = Add(y, c)"
    model = network(body, "N,12", w=normal(12, 12) / 3, v=normal(12, 12, seed=1) / 3)
    valid(model, decomposed(model, "macs", 0.6, ROWS), ROWS)


def test_layers_beside_branches() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"m (float[N,12] x, bool c) => (float[N,12] y) <{constant('w', normal(12, 12))}> "
        "{ a = MatMul(x, w) y = If(c)<then_branch = t () => (float[N,12] p) { p = Relu(a) }, "
        "else_branch = e () => (float[N,12] q) { q = Neg(a) }> }"
    )
    model = ir.parse_text(text)
    ir.infer_shapes(model)
    data = [{"x": rows["x"], "c": np.array(i % 2 == 0)} for i, rows in enumerate(ROWS)]
    valid(model, decomposed(model, "macs", 0.7, data), data)


def test_embeddings_are_products_where_numbers_have_to_be_saved() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"m (int64[N,4] x) => (float[N,4,12] y) <{constant('e', normal(50, 12))}, "
        f"{constant('w', normal(12, 12))}> {{ a = Gather(e, x) y = MatMul(a, w) }}"
    )
    model = ir.parse_text(text)
    ir.infer_shapes(model)
    data = [{"x": np.random.default_rng(i).integers(0, 50, (16, 4))} for i in range(4)]
    found = decomposed(model, "params", 0.7, data)
    small = valid(model, found, data)
    assert forms(found)["a"].startswith("output ")
    assert elements(small)[0] <= 0.7 * elements(model)[0]
    assert found.details["left"]["params"] == elements(small)[0] / elements(model)[0]
    assert "a" not in forms(decomposed(model, "macs", 0.7, data))
    assert "a" not in forms(decomposed(model, "params", 0.9, data, skip=("Gather",)))


# Samples


def test_without_samples_there_is_nothing_to_fit_to() -> None:
    with pytest.raises(NotApplicable, match="needs calibration data"):
        decomposed(residual(), "macs", 0.6, None)


def test_samples_that_hold_nothing() -> None:
    with pytest.raises(CalibrationError, match="all samples are empty"):
        decomposed(residual(), "macs", 0.6, images(0))
    bad = [{"x": np.full((4, 3, 6, 6), np.nan, np.float32)}] * 2
    with pytest.raises(CalibrationError, match=r"NaN|is nan at"):
        decomposed(residual(), "macs", 0.6, bad)


def test_a_model_that_computes_nan_is_named() -> None:
    body = "a = Conv(x, w) b = Sqrt(a) c = Conv(b, v) y = GlobalAveragePool(c)"
    model = network(body, "N,3,6,6", w=normal(8, 3, 3, 3), v=normal(4, 8, 3, 3))
    with pytest.raises(CalibrationError, match="NaN"):
        decomposed(model, "macs", 0.6)


def test_one_batch_is_cut() -> None:
    model = residual()
    found = decomposed(model, "macs", 0.6, images(64))
    valid(model, found)
    assert found.details["quality"]["samples"] == 8
    assert found.details["quality"]["aside"]
    assert not found.remarks


def test_one_batch_that_cannot_be_cut() -> None:
    model = network("y = MatMul(x, w)", "8,12", w=normal(12, 12))
    data = [{"x": normal(8, 12)}]
    found = decomposed(model, "macs", 0.7, data)
    valid(model, found, data)
    assert not found.details["quality"]["aside"]
    assert any("parts were fitted to the samples" in remark for remark in found.remarks)
    with pytest.raises(NotApplicable, match="need samples that nothing is fitted to"):
        decomposed(model, "macs", 0.7, data, budget=Budget(sqnr_db=1.0))


def test_no_more_samples_than_asked_for() -> None:
    found = decomposed(residual(), "macs", 0.6, samples=32)
    assert found.details["quality"]["samples"] == 4


# Budgets


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(sqnr_db=80.0), "is below 80 dB"), (Budget(drop=0.1), "more than 0.1 %")],
)
def test_a_budget(budget: Budget, reason: str) -> None:
    found = decomposed(products(), "macs", 0.4, ROWS * 4, budget=budget)
    assert (found.model, found.missed) == (None, True)
    assert reason in found.reason
    assert "decomposed like this" in found.reason
    assert found.details["quality"]["sqnr_db"] < 80


def test_a_goal_out_of_reach() -> None:
    found = decomposed(residual(), "macs", 0.01, budget=Budget(sqnr_db=-300.0))
    assert (found.model, found.missed) == (None, True)
    assert "macs cannot be brought to 0.01 of the original's" in found.reason
    assert "whole" not in forms(found).values()


def test_doubts() -> None:
    model = network("y = MatMul(x, w)", "N,12", w=normal(12, 12))
    found = decomposed(model, "macs", 0.5, ROWS)
    assert found.model is not None, found.reason
    assert found.details["quality"]["sqnr_db"] < 10
    assert "check them with labels" in found.remarks[0]


# Time


@pytest.mark.parametrize("goal", [0.85, 0.5])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_latencies_are_met(clock: Clock, goal: float, power: float) -> None:
    clock.power = power
    model = residual()
    found = decomposed(model, "latency", goal)
    small = valid(model, found)
    share = (Cost(small).macs / Cost(model).macs) ** power
    assert 0.7 * goal < share <= 1.05 * goal
    assert f"{share:.3f} of the latency is left" in found.reason
    assert found.details["speedup"][0] == pytest.approx(1 / share)


def test_a_latency_out_of_reach(clock: Clock) -> None:
    found = decomposed(residual(), "latency", 0.02, budget=Budget(sqnr_db=-300.0))
    assert (found.model, found.missed) == (None, True)
    assert "latency cannot be brought to 0.02" in found.reason


def test_latency_that_cannot_be_measured() -> None:
    with pytest.raises(NotApplicable, match="portable is for other runtimes"):
        decomposed(residual(), "latency", 0.6)


def test_times_are_kept(clock: Clock, tmp_path: Path) -> None:
    decomposed(residual(), "latency", 0.6, cache=tmp_path)
    assert (tmp_path / "latency.json").is_file()
    once = clock.measured
    clock.clear()
    decomposed(residual(), "latency", 0.6, cache=tmp_path)
    assert 0 < clock.measured < once / 2


def test_a_slower_model_is_none(clock: Clock) -> None:
    clock.overhead = 2.0
    found = decomposed(residual(), "macs", 0.6)
    assert (found.model, found.missed) == (None, False)
    assert "the decomposed model would be slower" in found.reason


def test_work_saved_is_saved_in_time(clock: Clock) -> None:
    model = residual()
    found = decomposed(model, "macs", 0.6, payoff=0.9)
    small = valid(model, found)
    assert Cost(small).macs <= 0.6 * Cost(model).macs
    assert f"{Cost(model).macs / Cost(small).macs:.2f}x as fast" in found.reason
    assert any(row["faster"] > 0 for row in found.details["layers"])


@pytest.mark.parametrize(("what", "payoff"), [("macs", 0.0), ("params", 0.2), ("bytes", 0.2)])
def test_time_that_is_of_no_interest_is_measured_of_the_result_alone(
    clock: Clock, what: str, payoff: float
) -> None:
    found = decomposed(with_biases(residual()), what, 0.6, payoff=payoff)
    assert found.model is not None, found.reason
    assert (len(clock.raced), len(clock.alone)) == (1, 0)


# Dry runs


def test_a_dry_run_lists_layers_and_what_they_would_become() -> None:
    model = residual()
    found = decomposed(model, "macs", 0.6, dry=True, skip=("Gemm",))
    assert (found.model, found.missed) == (None, False)
    assert "a dry run only lists" in found.reason
    real = decomposed(model, "macs", 0.6, skip=("Gemm",))
    assert found.details["layers"] == real.details["layers"]
    assert found.details["whole"] == [{"name": "y", "reason": "skip names it"}]
    assert "fits" not in found.details
    assert "quality" not in found.details


def test_the_same_comes_out_every_time() -> None:
    one, other = (decomposed(residual(), "macs", 0.6).model for _ in range(2))
    assert one is not None
    assert other is not None
    assert ir.dump(one) == ir.dump(other)
    for a, b in zip(
        one.graph.initializers.values(), other.graph.initializers.values(), strict=True
    ):
        np.testing.assert_array_equal(ir.array(a), ir.array(b))


# Layers beside shortcuts


def test_layers_beside_shortcuts_go_whole_where_that_is_asked_for() -> None:
    body = "a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Add(c, x) y = MatMul(d, w)"
    model = network(
        body, "N,16", u=normal(16, 64) / 8, v=normal(64, 16, seed=1) / 200,
        w=normal(16, 16, seed=2),
    )  # fmt: skip
    data = [{"x": normal(32, 16, seed=i)} for i in range(8)]
    stays = decomposed(model, "macs", 0.3, data)
    assert stays.details["removed"] == []
    found = decomposed(model, "macs", 0.3, data, whole=True)
    small = valid(model, found, data)
    assert len(found.details["removed"]) == 1
    assert [node.op_type for node in small.graph] == ["MatMul"]
    assert found.details["left"]["macs"] == Cost(small).macs / Cost(model).macs
    assert found.details["quality"]["sqnr_db"] > stays.details["quality"]["sqnr_db"]
    kept = decomposed(model, "macs", 0.3, data, whole=True, skip=("a",))
    assert kept.details["removed"] == []

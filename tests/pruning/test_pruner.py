"""Pruning as a whole. No clock takes part: forms take the time that their work takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning.pruned import elements, pruned, valid
from pruning.test_noise import images, residual
from reconstruct.single import network, normal

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget, judge
from graphopt.pruning import CRITERIA, pruner, timing

WITHOUT: dict[str, Any] = {"criterion": "l2", "ranking": "local", "recover": False}


def twins() -> ir.Model:
    """Two inputs through the same layers, as to compare faces."""
    body = (
        "a = Conv(x, w, p) b = Relu(a) c = Conv(b, v, q) d = Relu(c) e = GlobalAveragePool(d) "
        "f = Neg(x) g = Conv(f, w, p) h = Relu(g) i = Conv(h, v, q) j = Relu(i) "
        "k = GlobalAveragePool(j) l = Sub(e, k) m = Flatten(l) y = Gemm(m, u, r)"
    )
    given = {"w": normal(16, 3, 3, 3), "v": normal(16, 16, 3, 3), "u": normal(16, 4)}
    vectors = {"p": normal(16), "q": normal(16), "r": normal(4)}
    return network(body, "N,3,6,6", **given, **vectors)


@dataclasses.dataclass
class Clock:
    """Forms take the time of their multiply-accumulates, to a power."""

    power: float = 1.0
    overhead: float = 0.0
    races: int = 0

    def __call__(
        self, original: ir.Model, models: Sequence[ir.Model], inputs: Sequence[Any], **_: Any
    ) -> list[list[float]]:
        self.races += len(models)
        shares = [Cost(m).macs / Cost(original).macs for m in models]
        return [[s**self.power + self.overhead] * len(inputs) for s in shares]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (judge, pruner, timing):
        monkeypatch.setattr(module, "race", found)
    for other in (judge, pruner):
        monkeypatch.setattr(other, "runs_here", lambda target: None)
    return found


@pytest.mark.parametrize("what", ["macs", "params", "bytes", "channels"])
@pytest.mark.parametrize("ranking", ["measured", "global", "local"])
def test_goals_are_met_and_the_sizes_said_are_those_of_the_model(what: str, ranking: str) -> None:
    model = residual()
    before = ir.dump(model)
    found = pruned(model, what, 0.6, ranking=ranking, whole=False)
    small = valid(model, found)
    assert ir.dump(model) == before
    left = found.details["left"]
    assert left["macs"] == pytest.approx(Cost(small).macs / Cost(model).macs)
    for name, one, other in zip(("params", "bytes"), elements(small), elements(model), strict=True):
        # Layers that had no bias have one now.
        assert left[name] == pytest.approx(one / other, rel=0.03)
    counts = found.details["groups"]
    channels = sum(g["left"] for g in counts) / sum(g["channels"] for g in counts)
    share = {**left, "channels": channels}[what]
    assert 0.3 < share <= 0.6
    assert f"{share:.3f} of the" in found.reason
    assert {"observe", "recover"} <= found.details["seconds"].keys()


@pytest.mark.parametrize("criterion", [*CRITERIA, "obs"])
def test_criteria(criterion: str) -> None:
    model = residual()
    if criterion == "bn-scale":
        with pytest.raises(NotApplicable, match="fused ones are gone"):
            pruned(model, "macs", 0.6, criterion=criterion)
        return
    valid(model, pruned(model, "macs", 0.6, criterion=criterion))


def test_scales_of_normalizations_that_stay() -> None:
    body = """
        r = Relu(x) a = Conv(r, w) n = Relu(a) b = BatchNormalization(n, s, t, m, v) c = Relu(b)
        y = Conv(c, u)
    """
    model = network(
        body, "N,3,6,6", w=normal(8, 3, 1, 1), s=np.arange(1, 9) / 8, t=normal(8), m=normal(8),
        v=np.ones(8), u=normal(2, 8, 1, 1),
    )  # fmt: skip
    found = pruned(model, "channels", 0.5, criterion="bn-scale", recover=False)
    small = valid(model, found)
    (norm,) = (node for node in small.graph if node.op_type == "BatchNormalization")
    np.testing.assert_allclose(ir.array(norm.inputs[1]), np.arange(5, 9) / 8)


def test_recovery_leaves_less_noise() -> None:
    model = residual()
    noises = {
        recover: pruned(model, "macs", 0.6, recover=recover).details["quality"]["sqnr_db"]
        for recover in (False, True)
    }
    assert noises[True] > noises[False] + 3


def test_without_samples_there_are_the_weights() -> None:
    model = residual()
    for criterion in ("l1", "l2", "median", "random"):
        for ranking in ("local", "global"):
            found = pruned(
                model, "macs", 0.6, None, criterion=criterion, ranking=ranking, recover=False
            )
            valid(model, found)
            assert "quality" not in found.details
            assert "SQNR" not in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "criterion=obs and ranking=measured and recover need calibration data"),
        ({**WITHOUT, "recover": True}, "^recover need"),
        ({**WITHOUT, "ranking": "measured"}, "^ranking=measured need"),
        ({**WITHOUT, "criterion": "obs"}, "^criterion=obs need"),
        ({**WITHOUT, "criterion": "taylor"}, "needs samples"),
        ({**WITHOUT, "criterion": "activation"}, "needs samples"),
    ],
)
def test_what_needs_samples_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        pruned(residual(), "macs", 0.6, None, **options)


def test_samples_that_hold_nothing() -> None:
    with pytest.raises(CalibrationError, match="all samples are empty"):
        pruned(residual(), "macs", 0.6, images(0))
    bad = [{"x": np.full((4, 3, 6, 6), np.nan, np.float32)}]
    with pytest.raises(CalibrationError, match="is nan at"):
        pruned(residual(), "macs", 0.6, bad)


def test_empty_batches_among_others_are_left_out(clock: Clock) -> None:
    model = residual()
    valid(model, pruned(model, "macs", 0.6, images(0, 8, 0, 8)))
    assert clock.races


# Latency


@pytest.mark.parametrize("ranking", ["measured", "global", "local"])
@pytest.mark.parametrize("goal", [0.85, 0.5])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_latencies_are_met(clock: Clock, ranking: str, goal: float, power: float) -> None:
    clock.power = power
    model = residual()
    found = pruned(model, "latency", goal, ranking=ranking, whole=False)
    small = valid(model, found)
    share = (Cost(small).macs / Cost(model).macs) ** power
    # Channels are few: more may have to go than was asked for.
    assert 0.7 * goal < share <= 1.05 * goal
    assert f"{share:.3f} of the latency is left" in found.reason
    assert found.details["speedup"][0] == pytest.approx(1 / share)


def test_a_latency_out_of_reach(clock: Clock) -> None:
    clock.overhead = 0.5
    found = pruned(residual(), "latency", 0.3)
    assert (found.model, found.missed) == (None, True)
    assert "latency cannot be brought to 0.3" in found.reason


def test_latency_that_cannot_be_measured() -> None:
    with pytest.raises(NotApplicable, match="portable is for other runtimes"):
        pruned(residual(), "latency", 0.6)
    with pytest.raises(NotApplicable, match="latency needs calibration data"):
        pruned(residual(), "latency", 0.6, None, **WITHOUT)


def test_times_are_kept(clock: Clock, tmp_path: Path) -> None:
    pruned(residual(), "latency", 0.6, cache=tmp_path)
    assert (tmp_path / "latency.json").is_file()
    once, clock.races = clock.races, 0
    pruned(residual(), "latency", 0.6, cache=tmp_path)
    assert 0 < clock.races < once


def test_a_slower_model_is_none(clock: Clock) -> None:
    clock.overhead = 2.0
    found = pruned(residual(), "macs", 0.6)
    assert (found.model, found.missed) == (None, False)
    assert "would be slower" in found.reason


def test_work_saved_is_saved_in_time(clock: Clock) -> None:
    model = residual()
    found = pruned(model, "macs", 0.6)
    small = valid(model, found)
    assert Cost(small).macs <= 0.6 * Cost(model).macs
    assert f"{Cost(model).macs / Cost(small).macs:.2f}x as fast" in found.reason
    assert any(sum(group["saved"].values()) > 0 for group in found.details["groups"])


# What is refused


@pytest.mark.parametrize("what", ["macs", "params"])
def test_layers_that_share_weights_go_on_to(what: str) -> None:
    model = twins()
    found = pruned(model, what, 0.6)
    small = valid(model, found)
    assert elements(small)[0] / elements(model)[0] == found.details["left"]["params"] < 0.75
    reasons = {fit["reason"] for fit in found.details["fits"] if fit["name"] in ("c", "i")}
    assert reasons == {"its weights are used elsewhere, too"}


def test_random_numbers_are_named() -> None:
    body = "a = Conv(x, w) n = RandomNormalLike(a) b = Add(a, n) c = Conv(b, v) y = Relu(c)"
    model = network(body, "N,3,6,6", w=normal(8, 3, 1, 1), v=normal(4, 8, 1, 1))
    with pytest.raises(NotApplicable, match="RandomNormalLike 'n' draws random numbers"):
        pruned(model, "macs", 0.6)


def test_a_model_that_computes_nan_is_named() -> None:
    body = "a = Conv(x, w) b = Sqrt(a) c = Conv(b, v) y = GlobalAveragePool(c)"
    model = network(body, "N,3,6,6", w=normal(8, 3, 1, 1), v=normal(4, 8, 1, 1))
    found = pruned(model, "macs", 0.6, criterion="l2", ranking="local", recover=False)
    assert "the model itself computes NaN" in found.remarks[0]
    with pytest.raises(CalibrationError, match="NaN"):
        pruned(model, "macs", 0.6)


def test_nothing_to_prune() -> None:
    with pytest.raises(NotApplicable, match="there are no heads to prune: no operator makes any"):
        pruned(residual(), "channels", 0.6, kind="heads")
    with pytest.raises(NotApplicable, match="to prune: it is to be skipped"):
        pruned(residual(), "macs", 0.6, skip=("*",))
    with pytest.raises(NotApplicable, match="it has too few channels"):
        pruned(residual(), "macs", 0.6, least=0.99)
    softmax = network("a = MatMul(x, w) b = Softmax(a) y = MatMul(b, v)", "N,3",
                      w=normal(3, 4), v=normal(4, 2))  # fmt: skip
    with pytest.raises(NotApplicable, match="Softmax"):
        pruned(softmax, "macs", 0.6, [{"x": normal(8, 3)}])


def test_weights_that_are_inputs_are_named() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "m (float[N,2] x, float[2,4] w) => (float y) <float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8},"
        " float[4,1] v = {1, 2, 3, 4}> { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    )
    ir.infer_shapes(model)
    with pytest.raises(NotApplicable, match="freeze-inputs turns weights that are inputs"):
        pruned(model, "macs", 0.6, None, **WITHOUT)


def test_a_goal_out_of_reach() -> None:
    found = pruned(residual(), "macs", 0.01, budget=Budget(sqnr_db=-300.0))
    assert (found.model, found.missed) == (None, True)
    assert "macs cannot be brought to 0.01 of the original's" in found.reason
    assert min(g["left"] for g in found.details["groups"]) <= 1


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(sqnr_db=80.0), "is below 80 dB"), (Budget(drop=0.1), "more than 0.1 %")],
)
def test_a_budget(budget: Budget, reason: str) -> None:
    model = network("a = MatMul(x, w) h = Relu(a) y = MatMul(h, v)", "N,3", w=normal(3, 16),
                    v=normal(16, 4, seed=1))  # fmt: skip
    data = [{"x": normal(256, 3)}]
    found = pruned(model, "macs", 0.3, data, budget=budget, recover=False)
    assert (found.model, found.missed) == (None, True)
    assert reason in found.reason
    assert found.details["quality"]["sqnr_db"] < 80


def test_doubts() -> None:
    found = pruned(residual(), "macs", 0.6, budget=Budget(drop=60.0))
    assert found.remarks == ()
    found = pruned(residual(), "macs", 0.95, budget=Budget(drop=5.0), whole=False)
    assert found.remarks == ("8 samples tell changed predictions in steps of 12.5 %",)
    found = pruned(residual(), "macs", 0.6, whole=False, recover=False)
    assert found.details["quality"]["sqnr_db"] < 10
    assert "check them with labels" in found.remarks[0]


def test_outputs_that_have_nothing_to_do_with_the_originals_are_refused() -> None:
    """Halves of two large numbers that cancel out."""
    w, v = np.ones((3, 4)), np.array([[100.0], [-100.0], [100.0], [-99.0]])
    model = network("a = MatMul(x, w) h = Relu(a) y = MatMul(h, v)", "N,3", w=w, v=v)
    data = [{"x": np.ones((8, 3), np.float32)}]
    found = pruned(model, "macs", 0.8, data, criterion="l2", recover=False)
    assert (found.model, found.missed) == (None, False)
    assert "is below 0 dB" in found.reason


def test_a_model_without_work() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "m (int64[N,3] x) => (float[N,3] y) <float[4,4] e = {1, 2, 3, 4, 1, 0, 1, 0, 5, 6, 7, 8, "
        "0, 1, 0, 1}, int64[1] last = {2}> "
        "{ a = Gather(e, x) b = Sigmoid(a) y = ReduceSum<keepdims = 0>(b, last) }"
    )
    ir.infer_shapes(model)
    data = [{"x": np.array([[0, 1, 2], [3, 1, 0]])}]
    with pytest.raises(NotApplicable, match="the model has no multiply-accumulates to save"):
        pruned(model, "macs", 0.5, data)
    small = valid(model, pruned(model, "params", 0.8, data), data)
    assert elements(small)[0] < 0.8 * elements(model)[0] + 1


# Dry runs


def test_a_dry_run_lists_groups_and_reasons() -> None:
    found = pruned(residual(), "macs", 0.6, dry=True)
    assert (found.model, found.missed) == (None, False)
    stream, inner = found.details["groups"]
    assert (stream["name"], stream["channels"], stream["whole"]) == ("s", 6, False)
    assert (inner["name"], inner["channels"], inner["whole"]) == ("a", 8, True)
    for group in found.details["groups"]:
        assert group["noise"][str(group["channels"])] == 0.0
        assert len(group["noise"]) > 2
        assert 0 <= group["left"] <= group["channels"]
    assert found.details["frozen"] == [{"name": "y", "reason": "'y' is an output of the model"}]
    assert "fits" not in found.details


def test_a_dry_run_without_samples_lists_groups() -> None:
    found = pruned(residual(), "macs", 0.6, None, dry=True)
    assert [(g["name"], g["left"]) for g in found.details["groups"]] == [("s", None), ("a", None)]

"""Pruning as a whole. No clock takes part: forms take the time that their work takes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning import networks, transformers
from pruning.building import Network
from pruning.test_noise import images, residual
from reconstruct.single import network, normal

from graphopt import PassManager, ir
from graphopt.analyses import Cost
from graphopt.calibration import from_batches
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget
from graphopt.pruning import CRITERIA, Goal, Options, Outcome, prune, pruner, timing
from graphopt.pruning.batches import split
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session
from graphopt.targets import get

Data = list[dict[str, Any]]
IMAGES = images(*[8] * 8)
WITHOUT: dict[str, Any] = {"criterion": "l2", "ranking": "local", "recover": False}


def pruned(
    model: ir.Model,
    what: str,
    left: float,
    data: Data | None = IMAGES,
    *,
    cache: Path | None = None,
    target: str = "portable",
    **options: Any,
) -> Outcome:
    """Prune, where nothing is measured in time unless a test says how long things take."""
    samples = None if data is None else from_batches(data, model)
    given = Options(Goal(what, left), **options)  # type: ignore[arg-type]
    return prune(model, get(target), samples, given, cache=cache)


def elements(model: ir.Model) -> tuple[int, int]:
    """Numbers and bytes of the constants that something reads."""
    tensors = [
        v.const_value
        for graph in ir.all_graphs(model)
        for v in graph.initializers.values()
        if v.const_value is not None
    ]
    return sum(t.size for t in tensors), sum(t.nbytes for t in tensors)


def valid(model: ir.Model, found: Outcome, data: Data = IMAGES) -> ir.Model:
    """The result, after it was checked and run with ONNX Runtime's optimizations on and off."""
    assert found.model is not None, found.reason
    ir.verify(found.model)
    ir.check(model, found.model)
    plain = []
    for optimize in (False, True):
        with open_session(found.model, optimize=optimize) as session:
            plain.append([np.asarray(v) for x in data for v in session.run(x).values()])
    for one, other in zip(*plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    return found.model


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
    for module in (pruner, timing):
        monkeypatch.setattr(module, "race", found)
    monkeypatch.setattr(pruner, "runs_here", lambda target: None)
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


# Models of many kinds


def test_a_batch_of_fixed_size() -> None:
    fixed = residual()
    fixed.graph.inputs[0].shape = ir.Shape([1, 3, 6, 6])
    ir.infer_shapes(fixed)
    data = images(*[1] * 12)
    small = valid(fixed, pruned(fixed, "macs", 0.6, data), data)
    assert ir.dims(small.graph.inputs[0]) == (1, 3, 6, 6)


def test_half_precision_goes_without_fits() -> None:
    casts = "w = Cast<to = 10>(u) v = Cast<to = 10>(z) h = Cast<to = 10>(x)"
    model = network(
        f"{casts} a = MatMul(h, w) b = Relu(a) c = MatMul(b, v) y = Cast<to = 1>(c)", "N,3",
        u=normal(3, 8), z=normal(8, 2),
    )  # fmt: skip
    rw = Rewriter(model)
    for node in list(model.graph):
        weight = ir.array(node.inputs[0])
        if weight is not None:
            rw.replace(node.outputs[0], rw.const(weight.astype(np.float16), "half"))
            rw.erase(node)
    data = [{"x": normal(32, 3)}]
    found = pruned(model, "macs", 0.6, data)
    small = valid(model, found, data)
    assert Cost(small).macs <= 0.6 * Cost(model).macs
    assert found.details["fits"] == []


def test_inputs_of_varying_length() -> None:
    model = network("a = MatMul(x, w) h = Relu(a) m = MatMul(h, v) y = ReduceMean<axes = [1]>(m)",
                    "N,S,3", w=normal(3, 8), v=normal(8, 4, seed=1))  # fmt: skip
    data = [{"x": normal(2, n, 3, seed=n)} for n in (3, 5, 7, 9, 4, 6, 8, 10)]
    small = valid(model, pruned(model, "macs", 0.6, data), data)
    assert ir.dims(small.graph.inputs[0]) == ir.dims(model.graph.inputs[0])


def test_sequences_between_layers() -> None:
    body = """
        a = MatMul(x, w) b = Relu(a) one = Constant<value_int = 1>()
        s = SplitToSequence<axis = 1, keepdims = 1>(x) t = SequenceAt(s, one)
        c = MatMul(b, v) d = Relu(c) e = Mul(d, t) f = ConcatFromSequence<axis = 1>(s)
        g = MatMul(f, u) h = Add(e, g) y = MatMul(h, z)
    """
    model = network(body, "N,3", w=normal(3, 8), v=normal(8, 6, seed=1), u=normal(3, 6, seed=2),
                    z=normal(6, 2, seed=3))  # fmt: skip
    data = [{"x": normal(16, 3, seed=s)} for s in range(4)]
    valid(model, pruned(model, "macs", 0.7, data), data)


def test_channels_that_a_branch_reads() -> None:
    net = networks.if_capture()
    model = PassManager("O2").run(net.model).model
    small = valid(model, pruned(model, "macs", 0.8, net.feeds), net.feeds)
    assert any(node.op_type == "If" for node in small.graph)


def test_outputs_that_are_no_floats_stay() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "m (float[N,2] x) => (float y, int64 k) <float[2,4] w = {1, 2, -3, 4, 5, -6, 7, 8},"
        " float[4,2] v = {1, 2, 3, 4, 5, -6, 7, -8}> "
        "{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) k = ArgMax<axis = 1>(y) }"
    )
    ir.infer_shapes(model)
    data = [{"x": normal(32, 2)}]
    small = valid(model, pruned(model, "macs", 0.6, data), data)
    assert [v.name for v in small.graph.outputs] == ["y", "k"]


def test_outputs_of_zeros() -> None:
    model = network("a = MatMul(x, w) h = Relu(a) y = MatMul(h, v)", "N,3", w=normal(3, 8),
                    v=np.zeros((8, 2)))  # fmt: skip
    found = pruned(model, "macs", 0.6, [{"x": normal(16, 3)}])
    assert found.model is not None
    assert found.details["quality"]["sqnr_db"] is None, "there is no noise"


W, V, U = normal(3, 8), normal(8, 8, seed=1), normal(8, 2, seed=2)
ROWS = [{"x": normal(64, 3, seed=s)} for s in range(4)]
LOOP = """
    a = MatMul(x, w) h = Relu(a) n = Constant<value_int = 3>() t = Cast<to = 9>(n)
    z = Loop(n, t, h) <body = b (int64 i, bool c, float[N,8] p) => (bool d, float[N,8] q) {
        d = Identity(c) BODY }>
    y = MatMul(z, u)
"""
KINDS: dict[str, tuple[str, str, dict[str, Any], Data]] = {
    "two groups in one layer": (
        "a = MatMul(x, w) b = MatMul(x, o) h = Concat<axis = 1>(a, b) r = Relu(h) y = MatMul(r, z)",
        "N,3", {"w": W, "o": normal(3, 8, seed=5), "z": normal(16, 2)}, ROWS,
    ),
    "a sum beside a layer": (
        "a = MatMul(x, w) h = Relu(a) b = MatMul(h, u) s = ReduceSum<keepdims = 1>(h, last)"
        " y = Add(b, s)",
        "N,3", {"w": W, "u": U}, ROWS,
    ),
    "products of four dims": (
        "a = MatMul(x, w) h = Tanh(a) y = MatMul(h, u)",
        "N,2,5,3", {"w": W, "u": U}, [{"x": normal(4, 2, 5, 3)}],
    ),
    "factors of Gemm": (
        "a = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) h = Relu(a)"
        " y = Gemm<alpha = 2.0, transB = 1>(h, z)",
        "N,3", {"w": W, "b": normal(8), "z": normal(2, 8)}, ROWS,
    ),
    "biases that are spread": (
        "a = Gemm(x, w, b) h = Relu(a) y = Gemm(h, u, d)",
        "N,3", {"w": W, "b": normal(1), "u": U, "d": np.float32(0.5)}, ROWS,
    ),
    "a bias in front": (
        "a = MatMul(x, w) b = Add(s, a) h = Relu(b) y = MatMul(h, u)",
        "N,3", {"w": W, "s": normal(1, 8), "u": U}, ROWS,
    ),
    "a weight that is read elsewhere": (
        "a = MatMul(x, w) h = Relu(a) b = MatMul(h, v) k = Relu(b) q = MatMul(k, u)"
        " s = ReduceSum<keepdims = 0>(v) y = Add(q, s)",
        "N,3", {"w": W, "v": V, "u": U}, ROWS,
    ),
    "units that are never on": (
        "a = MatMul(x, w) b = Sub(a, k) h = Relu(b) y = MatMul(h, u)",
        "N,3", {"w": W, "k": np.full(8, 100.0), "u": U}, ROWS,
    ),
    "an output that nothing has an effect on": (
        "a = MatMul(x, w) h = Relu(a) q = MatMul(h, u) z = Mul(q, n) y = Add(z, o)",
        "N,3", {"w": W, "u": U, "n": np.zeros(2), "o": np.ones(2)}, ROWS,
    ),
    "images of any size": (
        'a = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) h = Relu(a)'
        " b = Conv<pads = [1, 1, 1, 1]>(h, v) g = GlobalAveragePool(b) y = Flatten(g)",
        "N,3,H,W", {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 3, 3)},
        [{"x": normal(4, 3, n, n)} for n in (8, 10)],
    ),
    "one sample": (
        "a = MatMul(x, w) h = Relu(a) y = MatMul(h, u)", "N,3", {"w": W, "u": U},
        [{"x": normal(1, 3)}],
    ),
    "optional values": (
        "o = Optional(x) e = OptionalHasElement(o) g = OptionalGetElement(o) a = MatMul(g, w)"
        " h = Relu(a) q = MatMul(h, u) f = Cast<to = 1>(e) y = Mul(q, f)",
        "N,3", {"w": W, "u": U}, ROWS,
    ),
    "a loop": (
        LOOP.replace("BODY", "r = Sigmoid(p) q = Add(r, p)"), "N,3", {"w": W, "u": U}, ROWS,
    ),
    "a layer in a loop": (
        LOOP.replace("BODY", "r = MatMul(p, v) q = Tanh(r)"),
        "N,3", {"w": W, "v": V / 4, "u": U}, ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_models_of_many_kinds(name: str) -> None:
    body, x, constants, data = KINDS[name]
    if "last" in body:
        body = f"last = Constant<value_ints = [1]>() {body}"
    model = PassManager("O1").run(network(body, x, **constants)).model
    budget = Budget() if name == "one sample" else Budget(sqnr_db=0.5)
    found = pruned(model, "macs", 0.6, data, budget=budget)
    small = valid(model, found, data)
    assert elements(small)[0] < elements(model)[0] + 16
    assert found.details["left"]["macs"] <= 0.6
    if "loop" not in name:  # what is inside of loops counts as it is
        assert Cost(small).macs <= 0.6 * Cost(model).macs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["channels", "heads"])
@pytest.mark.parametrize(
    "made",
    [
        networks.resnet_option_a, networks.resnet_projection, networks.resnext,
        networks.mobilenet_v2, networks.mobilenet_v3, networks.shufflenet_v1,
        networks.shufflenet_v2, networks.densenet, networks.unet_transpose, networks.unet_resize,
        networks.superres, networks.superres_folded, networks.conv1d, networks.conv3d,
        networks.qdq_cnn, networks.if_capture, networks.lstm, networks.bilstm, networks.gru,
        networks.bigru, transformers.vit, transformers.bert, transformers.gpt_expand,
        transformers.gpt_tile,
    ],
)  # fmt: skip
def test_architectures(made: Callable[[], Network], kind: str) -> None:
    net = made()
    model = PassManager("O2").run(net.model).model
    if kind == "heads" and made.__module__ != "pruning.transformers":
        with pytest.raises(NotApplicable, match="no heads"):
            pruned(model, "channels", 0.7, net.feeds, kind=kind)
        return
    goal = ("macs", 0.8) if kind == "channels" else ("channels", 0.7)
    # Weights are random and samples few: what is left of the outputs on others is up to chance.
    _, aside = split(from_batches(net.feeds, model), 512)
    budget = Budget(sqnr_db=-20.0) if aside else Budget()
    found = pruned(model, *goal, net.feeds, kind=kind, budget=budget)
    small = valid(model, found, net.feeds)
    share = Cost(small).macs / Cost(model).macs
    whole = any(g["left"] == 0 for g in found.details["groups"])
    # Of a layer that goes whole everything goes, what no group counts, too.
    assert share <= found.details["left"]["macs"] + 1e-9
    if not whole:
        assert share == pytest.approx(found.details["left"]["macs"], rel=1e-3)


@pytest.mark.slow
def test_a_sentence_encoder(shared_data: Path) -> None:
    """Several inputs of varying length; neurons go first, then heads."""
    model = PassManager("O2").run(ir.load(shared_data / "models" / "minilm_l6.onnx")).model
    with np.load(shared_data / "minilm_calib.npz") as archive:
        ids, offsets = archive["token_ids"].astype(np.int64), archive["offsets"]
    rows = [ids[a:b][None] for a, b in itertools.pairwise(offsets[:41])]
    data = [
        {"input_ids": r, "attention_mask": np.ones_like(r), "token_type_ids": np.zeros_like(r)}
        for r in rows
    ]
    for what, left, kind in (("macs", 0.85, "channels"), ("channels", 0.84, "heads")):
        found = pruned(model, what, left, data, kind=kind, least=0.5)
        small = valid(model, found, data[:2])
        assert Cost(small).macs < Cost(model).macs
        assert found.details["quality"]["cosine"] > 0.9
        model = small

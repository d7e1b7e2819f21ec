from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning.test_noise import images, residual

from graphopt import PassManager, ir, load
from graphopt.analyses import Cost
from graphopt.calibration import load_data
from graphopt.errors import CalibrationError
from graphopt.manager.runner import Result
from graphopt.measure import Trial
from graphopt.passes.pruning import PruneChannels
from graphopt.pruning import pruner
from graphopt.runtime import open_session
from graphopt.testing import check_pass

# Two of four neurons are copies of the others, so that nothing is lost without them.
BEFORE = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y)
<float[2,4] u = {1, 0.5, 1, 0.5, -0.5, 1, -0.5, 1},
 float[4,2] v = {1, 2, 3, 4, 0.5, 0.5, 0.25, 0.5}> {
  a = MatMul (x, u)
  b = Relu (a)
  y = MatMul (b, v)
}"""
AFTER = """
graph(%x: float[N,2]) {
  const %u.1: float[2,2]
  const %v.2: float[2,2]
  %a = MatMul(%x, %u.1)
  %b = Relu(%a)
  %y = MatMul(%b, %v.2)
  return %y
}
"""
DATA = [{"x": np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)}]
WEIGHTS = {"criterion": "l2", "ranking": "local", "recover": False}


def reasons(result: Result) -> str:
    (record,) = result.report.passes
    return "; ".join([*record.declined, *record.remarks, record.reason or ""])


def test_neurons_are_taken_out() -> None:
    each = PruneChannels(channels=0.5, round_to=2)
    after = AFTER.replace("%v.2", "%v.1.2")  # it was fitted, and cut
    result = check_pass(each, BEFORE, after, data=DATA, target="portable")
    assert "0.500 of the channels are left" in reasons(result)


def test_copies_are_taken_out_without_loss() -> None:
    result = PassManager(PruneChannels(channels=0.5, round_to=2), data=DATA, target="portable").run(
        ir.parse_text(BEFORE)
    )
    (record,) = result.report.passes
    assert record.details["quality"]["sqnr_db"] > 30
    kept = ir.array(next(n for n in result.model.graph if n.op_type == "MatMul").inputs[1])
    assert kept is not None
    np.testing.assert_allclose(sorted(kept.T.tolist()), [[0.5, 1.0], [1.0, -0.5]])


def test_without_data_by_weights_alone() -> None:
    each = PruneChannels(macs=0.5, round_to=2, **WEIGHTS)
    result = check_pass(each, BEFORE, AFTER, target="portable")
    assert "0.500 of the multiply-accumulates are left" in reasons(result)


@pytest.mark.parametrize(
    ("each", "data", "reason"),
    [
        (PruneChannels(), None, "need calibration data (--data)"),
        (PruneChannels(skip=("a",)), DATA, "it is to be skipped"),
        (PruneChannels(skip=("*",), **WEIGHTS), None, "it is to be skipped"),
        (PruneChannels(least=0.9), DATA, "it has too few channels"),
        (PruneChannels(round_to=8), DATA, "it has too few channels"),
        (PruneChannels(macs=0.1), DATA, "macs cannot be brought to 0.1"),
        (PruneChannels(macs=0.3, min_sqnr=150), DATA, "is below 150 dB"),
        (PruneChannels(latency=0.5), DATA, "latency cannot be measured"),
        (PruneChannels(dry=True), DATA, "a dry run only lists"),
        (PruneChannels(dry=True), None, "a dry run only lists"),
        (PruneChannels(criterion="bn-scale"), DATA, "fused ones are gone"),
    ],
)
def test_declines(each: PruneChannels, data: Any, reason: str) -> None:
    result = check_pass(each, BEFORE, None, data=data, target="portable")
    assert reason in reasons(result)


def test_patterns_that_match_nothing_are_named() -> None:
    each = PruneChannels(macs=0.5, skip=("a", "zzz*"), **WEIGHTS)
    result = check_pass(each, BEFORE, None, target="portable")
    assert "nothing matches 'zzz*', which was to be skipped" in reasons(result)
    assert "'a'" not in reasons(result)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("b = Relu (a)", "b = Softmax (a)", "Softmax"),
        ("=> (float[N,2] y)", "=> (float[N,2] y, float[N,4] b)", "output of the model"),
        ("g (float[N,2] x)", "g (float[N,2] x, float[2,4] u)", "freeze-inputs turns weights"),
        ("b = Relu (a)", "c, i = TopK (a, k) b = Relu(c)", "TopK"),
    ],
)
def test_must_not_match(old: str, new: str, reason: str) -> None:
    text = BEFORE.replace(old, new)
    if "TopK" in new:
        text = text.replace("<float[2,4] u", "<int64[1] k = {4}, float[2,4] u")
    each = PruneChannels(macs=0.5, **WEIGHTS)
    result = check_pass(each, text, None, target="portable")
    assert reason in reasons(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "params": 0.5}, "macs and params are different goals; give one"),
        ({"macs": 0.5, "latency": 0.5, "channels": 0.5}, "give one"),
        ({"macs": 0.0}, r"in \(0, 1\), not 0.0"),
        ({"params": 1.0}, r"in \(0, 1\)"),
        ({"bytes": -0.5}, r"in \(0, 1\)"),
        ({"latency": 50.0}, "the fraction that remains"),
        ({"channels": float("nan")}, r"in \(0, 1\)"),
        ({"least": 1.0}, r"in \[0, 1\)"),
        ({"least": -0.1}, r"in \[0, 1\)"),
        ({"payoff": 1.0}, r"payoff is a share"),
        ({"round_to": 0}, "round-to has to be 1 or more"),
        ({"samples": 0}, "1 or more"),
        ({"threads": 0}, "1 or more"),
        ({"max_drop": 101.0}, r"in \[0, 100\]"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneChannels(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 2), np.nan, np.float32), "is nan at"),
        (np.empty((0, 2), np.float32), "all samples are empty"),
        (np.ones((4, 3), np.float32), "takes"),
    ],
)
def test_samples_that_are_none_leave_the_model_as_it_was(values: Any, message: str) -> None:
    model = ir.parse_text(BEFORE)
    with pytest.raises(CalibrationError, match=message):
        PassManager(PruneChannels(), data=[{"x": values}], target="portable").run(model)
    assert ir.dump(model) == ir.dump(ir.parse_text(BEFORE))


def test_a_pass_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(pruner.Trial, "quality", fail)
    model = ir.parse_text(BEFORE)
    result = PassManager(PruneChannels(), data=DATA, target="portable").run(model)
    assert not result.report.changed
    assert "raised RuntimeError: no" in reasons(result)
    assert ir.dump(result.model) == ir.dump(model) == ir.dump(ir.parse_text(BEFORE))


def test_layers_in_the_branches_of_an_if() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,2] x, bool c) => (float[N,2] y)
    <float[2,4] u = {1, 0.5, 1, 0.5, -0.5, 1, -0.5, 1},
     float[4,2] v = {1, 2, 3, 4, 0.5, 0.5, 0.25, 0.5}> {
      a = MatMul (x, u)
      b = Relu (a)
      y = If (c) <
        then_branch = yes () => (float[N,2] p) { p = MatMul (b, v) },
        else_branch = no () => (float[N,2] q) { r = Neg (b) q = MatMul (r, v) }>
    }"""
    data = [{"x": DATA[0]["x"], "c": np.array(c)} for c in (True, False)]
    model = ir.parse_text(text)
    result = PassManager(PruneChannels(channels=0.5, round_to=2), data=data, target="portable").run(
        model
    )
    assert result.report.changed, reasons(result)
    ir.verify(result.model)
    ir.check(model, result.model)
    assert ir.dims(next(n for n in result.model.graph if n.op_type == "Relu").outputs[0]) == (
        "N",
        2,
    )
    with open_session(model) as one, open_session(result.model) as other:
        for feeds in data:
            np.testing.assert_array_equal(one.run(feeds)["y"].shape, other.run(feeds)["y"].shape)


class Digits:
    """A reference model, and how many digits it reads. Test images take no part in any choice."""

    def __init__(self, folder: Path, name: str) -> None:
        self.model = load(folder / f"{name}.onnx")
        self.data = load_data(folder / "digits_calib.npz", self.model)
        self.images = np.load(folder / "digits_test.npz")["image"]
        self.labels = np.load(folder / "digits_test_labels.npy")

    def run(self, text: str, data: bool = True) -> Result:
        given = self.data if data else None
        return PassManager(text, data=given, target="portable").run(self.model)

    def accuracy(self, model: ir.Model, *, optimize: bool = True) -> float:
        with open_session(model, optimize=optimize) as session:
            (logits,) = session.run({"image": self.images}).values()
        return float((logits.argmax(axis=1) == self.labels).mean())


def check(digits: Digits, result: Result, share: float) -> None:
    """Everything that a pruned model has to be."""
    ir.verify(result.model)
    ir.check(digits.model, result.model)
    for one, other in (
        (digits.model.graph.inputs, result.model.graph.inputs),
        (digits.model.graph.outputs, result.model.graph.outputs),
    ):
        for before, after in zip(one, other, strict=True):
            assert (before.name, before.dtype) == (after.name, after.dtype)
            # Of the free dims only names may become known.
            for n, m in zip(ir.dims(before) or (), ir.dims(after) or (), strict=True):
                assert n == m or not isinstance(n, int)
                assert isinstance(n, int) == isinstance(m, int)
    base = PassManager("O2").run(digits.model).model
    assert Cost(result.model).macs <= share * Cost(base).macs * 1.0001


FLOORS = [
    # The originals read 0.991, 0.993, 0.987, 0.987 and 0.984 of the digits.
    ("digits_resnet", "macs=0.6 samples=64", 0.6, 0.98),
    ("digits_mobilenet", "macs=0.6 samples=64", 0.6, 0.97),
    ("digits_transformer", "macs=0.7 samples=64", 0.7, 0.96),
    ("digits_lstm", "macs=0.8 samples=64", 0.8, 0.92),
]
SLOW = [
    ("digits_vgg", "macs=0.3", 0.3, 0.98),
    ("digits_resnet", "macs=0.4", 0.4, 0.98),
    ("digits_mobilenet", "macs=0.5", 0.5, 0.96),
    ("digits_transformer", "macs=0.6", 0.6, 0.95),
    ("digits_lstm", "macs=0.6", 0.6, 0.85),
]


@pytest.mark.parametrize(
    ("name", "options", "share", "floor"),
    [*FLOORS, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)],
)
def test_reference_models(
    models_dir: Path, name: str, options: str, share: float, floor: float
) -> None:
    digits = Digits(models_dir, name)
    before = ir.dump(digits.model)
    result = digits.run(f"prune-channels{{{options}}}")
    assert result.report.changed, reasons(result)
    assert ir.dump(digits.model) == before
    check(digits, result, share)
    assert digits.accuracy(result.model) >= floor
    assert digits.accuracy(result.model, optimize=False) >= floor


@pytest.mark.parametrize("name", ["digits_resnet", "digits_lstm"])
def test_without_data(models_dir: Path, name: str) -> None:
    digits = Digits(models_dir, name)
    result = digits.run(
        "prune-channels{macs=0.8 ranking=local criterion=l2 recover=false}", data=False
    )
    check(digits, result, 0.8)


@pytest.mark.slow
def test_pruned_and_quantized(models_dir: Path) -> None:
    digits = Digits(models_dir, "digits_mobilenet")
    result = digits.run("prune-channels{macs=0.6 samples=64},quantize-int8")
    assert [record.changed for record in result.report.passes] == [True, True]
    assert digits.accuracy(result.model) >= 0.95


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("prune-channels{macs=0.6},quantize-int8", 10.0),
        # Weights that are integers are not fitted.
        ("quantize-int8,prune-channels{macs=0.6}", 0.0),
    ],
)
def test_a_small_model_pruned_and_quantized(text: str, least: float) -> None:
    model, data = residual(), images(*[8] * 8)
    result = PassManager(text, data=data, target="portable").run(model)
    assert [record.changed for record in result.report.passes] == [True, True], [
        (r.reason, r.declined) for r in result.report.passes
    ]
    assert any("QuantizeLinear" in node.op_type for node in result.model.graph)
    ir.verify(result.model)
    ir.check(model, result.model)
    assert Trial(model, data).quality(result.model).sqnr_db > least
    (remarks,) = (r.remarks for r in result.report.passes if r.name == "prune-channels")
    assert any("prune before quantizing" in text for text in remarks) == (least == 0.0)
    assert Cost(result.model).macs <= 0.61 * Cost(model).macs


def test_what_is_left_can_be_pruned_again(models_dir: Path) -> None:
    digits = Digits(models_dir, "digits_lstm")
    once = digits.run("prune-channels{macs=0.8 samples=64}")
    twice = PassManager(
        "prune-channels{macs=0.8 samples=64}", data=digits.data, target="portable"
    ).run(once.model)
    assert twice.report.changed
    nodes = [[node.op_type for node in r.model.graph] for r in (once, twice)]
    assert nodes[0] == nodes[1]
    results = [[v.name for v in r.model.graph.outputs] for r in (once, twice)]
    assert results[0] == results[1] == ["logits"]


def test_it_goes_with_other_pruning(models_dir: Path) -> None:
    digits = Digits(models_dir, "digits_transformer")
    result = digits.run("prune-layers{count=1},prune-channels{macs=0.9 samples=32}")
    assert [record.changed for record in result.report.passes] == [True, True]
    assert digits.accuracy(result.model) >= 0.9

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, ir, load
from graphopt.analyses import Cost
from graphopt.calibration import load_data
from graphopt.manager.runner import Result
from graphopt.passes.pruning import PruneLayers
from graphopt.runtime import open_session
from graphopt.testing import check_pass

BEFORE = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y)
<float[2,2] u = {1, 2, 3, 4}, float[2,2] v = {0.1, 0, 0, 0.1}, float[2,2] w = {0.1, 0, 0.2, 0.1}> {
  h = MatMul (x, u)
  a = MatMul (h, v)
  b = Relu (a)
  c = MatMul (b, w)
  s = Add (h, c)
  y = Relu (s)
}"""
DATA = [{"x": np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)}]


def reasons(result: Result) -> str:
    (record,) = result.report.passes
    return "; ".join([*record.declined, *record.remarks, record.reason or ""])


def test_a_branch_is_taken_out() -> None:
    check_pass(
        PruneLayers(keep=0, reconstruct=False),
        BEFORE,
        """
        graph(%x: float[N,2]) {
          const %u: float[2,2]
          %h = MatMul(%x, %u)
          %y = Relu(%h)
          return %y
        }
        """,
        data=DATA,
        target="portable",
    )


@pytest.mark.parametrize(
    ("each", "data", "reason"),
    [
        (PruneLayers(), DATA, "1 layers that may go, 1 stay"),
        (PruneLayers(keep=0, reconstruct=False), None, "needs calibration data"),
        (PruneLayers(keep=0, min_sqnr=60), DATA, "is below 60 dB"),
        (PruneLayers(keep=0, skip=("b",)), DATA, ""),
        (PruneLayers(skip=("zzz",)), DATA, "nothing matches 'zzz'"),
        (PruneLayers(keep=0, dry=True), DATA, ""),
    ],
)
def test_declines(each: PruneLayers, data: Any, reason: str) -> None:
    assert reason in reasons(check_pass(each, BEFORE, None, data=data, target="portable"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("a = MatMul (h, v)", "a = MatMul (x, v)", "neither summand is computed from the other"),
        ("y = Relu (s)", "y = Mul (s, b)", "inside of it, is used elsewhere"),
    ],
)
def test_must_not_match(old: str, new: str, reason: str) -> None:
    each = PruneLayers(keep=0, reconstruct=False)
    found = check_pass(each, BEFORE.replace(old, new), None, data=DATA, target="portable")
    assert reason in reasons(found)


def test_a_shortcut_of_another_shape_stays() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,2] x) => (float[N,2] y)
    <float[2,2] v = {1, 2, 3, 4}> {
      h = ReduceMean <axes = [0]> (x)
      m = Mul (x, h)
      a = MatMul (m, v)
      y = Add (h, a)
    }"""
    found = check_pass(
        PruneLayers(keep=0, reconstruct=False), text, None, data=DATA, target="portable"
    )
    assert "its shortcut has another shape" in reasons(found)


UNBOUNDED = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y)
<float[2,2] v = {1, 0, 0, 1}, float[2,2] w = {0.1, 0, 0, 0.1}, float huge = {1e38}, float o = {0}> {
  a = MatMul (x, v)
  s = Add (x, a)
  h = Mul (s, huge)
  m = MatMul (h, w)
  c = Clip (m, o, o)
  r = Add (s, c)
  y = Relu (r)
}"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (UNBOUNDED, "nothing makes up for %s: 'm' cannot be fitted: on these samples it reads or"),
        (BEFORE, "nothing makes up for %s: no layers of 32-bit floats are behind it"),
    ],
)
def test_layers_that_cannot_be_fitted_are_told(text: str, reason: str) -> None:
    each = PruneLayers(keep=0, skip=("r",))
    manager = PassManager(each, data=DATA, target="portable", on_mismatch="raise")
    result = manager.run(ir.parse_text(text))
    assert result.report.changed
    assert reason in reasons(result)


def test_outputs_that_are_no_numbers_any_more() -> None:
    """Without the layer, a logarithm reads what is not positive."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,2] x) => (float[N,2] y)
    <float[2,2] v = {-1, 0, 0, -1}, float one = {1}, float[2,1] ones = {1, 1}> {
      n = Neg (x)
      a = MatMul (n, v)
      b = Abs (a)
      c = Add (b, one)
      d = Sub (c, n)
      s = Add (n, d)
      y = Log (s)
    }"""
    with np.errstate(invalid="ignore"):
        found = check_pass(PruneLayers(keep=0), text, None, data=DATA, target="portable")
    assert "outputs have nothing to do with the original's" in reasons(found)
    assert "missed" not in found.report.passes[0].details  # nobody asked for a quality


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1, "ratio": 0.5}, "give one"),
        ({"count": 0}, "1 or more"),
        ({"ratio": 1.5}, r"in \(0, 1\]"),
        ({"latency": 0.0}, r"in \(0, 1\]"),
        ({"max_drop": 101.0}, r"in \[0, 100\]"),
        ({"keep": -1}, "0 or more"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneLayers(**options)


class Digits:
    """A reference model, optimized, and how many digits it reads."""

    def __init__(self, folder: Path, name: str) -> None:
        self.model = PassManager("O2").run(load(folder / f"{name}.onnx")).model
        self.data = load_data(folder / "digits_calib.npz", self.model)
        self.images = np.load(folder / "digits_test.npz")["image"]
        self.labels = np.load(folder / "digits_test_labels.npy")

    def pruned(self, text: str) -> Result:
        return PassManager(text, data=self.data, target="portable").run(self.model)

    def accuracy(self, model: ir.Model) -> float:
        with open_session(model, optimize=True) as session:
            (logits,) = session.run({"image": self.images}).values()
        return float((logits.argmax(axis=1) == self.labels).mean())


@pytest.fixture(scope="module")
def transformer(models_dir: Path) -> Digits:
    return Digits(models_dir, "digits_transformer")


@pytest.mark.parametrize(
    ("name", "count", "floor"),
    [
        # Without fitting what stays: 0.958, 0.127 and 0.902 of the digits.
        ("digits_transformer", 2, 0.97),
        ("digits_resnet", 2, 0.97),
        ("digits_mobilenet", 1, 0.97),
    ],
)
def test_reference_models(models_dir: Path, name: str, count: int, floor: float) -> None:
    digits = Digits(models_dir, name)
    result = digits.pruned(f"prune-layers{{count={count}}}")
    (record,) = result.report.passes
    listed = record.details["layers"]
    assert sorted(x["removed"] for x in listed if x["removed"]) == list(range(1, count + 1))
    assert all((x["sqnr_db"] is None) == (x["reason"] is not None) for x in listed)
    assert digits.accuracy(result.model) >= floor
    assert Cost(result.model).seconds < Cost(digits.model).seconds


def test_fitting_what_stays_matters(transformer: Digits) -> None:
    fitted = transformer.pruned("prune-layers{ratio=0.5}")
    plain = transformer.pruned("prune-layers{ratio=0.5 reconstruct=false}")
    assert transformer.accuracy(fitted.model) > transformer.accuracy(plain.model) + 0.03


def test_a_budget_stops_before_it_is_missed(transformer: Digits) -> None:
    result = transformer.pruned("prune-layers{count=5 min-sqnr=8 reconstruct=false}")
    (record,) = result.report.passes
    went = [x for x in record.details["layers"] if x["removed"]]
    assert 1 <= len(went) < 5
    assert float(record.remarks[0].split("SQNR ")[1].split(" dB")[0]) >= 8


def test_a_dry_run_measures_and_changes_nothing(transformer: Digits) -> None:
    result = transformer.pruned('prune-layers{skip="attention" dry}')
    (record,) = result.report.passes
    assert not result.report.changed
    listed = record.details["layers"]
    assert [x["reason"] for x in listed] == ["to be skipped", None] * 3
    assert all((x["sqnr_db"] is None) == (x["kind"] == "attention") for x in listed)
    assert not any(x["removed"] for x in listed)


def test_latency(transformer: Digits) -> None:
    """The target does not run here, so that times are estimates, the same everywhere."""
    result = transformer.pruned("prune-layers{latency=0.8 reconstruct=false}")
    (record,) = result.report.passes
    assert "of the time (estimated)" in record.remarks[0]
    assert Cost(result.model).seconds <= 0.8 * Cost(transformer.model).seconds * 1.02


def test_a_latency_that_cannot_be_met(transformer: Digits) -> None:
    result = transformer.pruned("prune-layers{latency=0.05 reconstruct=false}")
    (record,) = result.report.passes
    assert record.details["missed"].startswith("latency 0.")
    assert "not 0.05" in record.details["missed"]

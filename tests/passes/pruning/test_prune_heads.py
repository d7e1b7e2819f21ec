from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, ir, load
from graphopt.analyses import Cost
from graphopt.calibration import load_data
from graphopt.manager.runner import Result
from graphopt.passes.pruning import PruneHeads
from graphopt.runtime import open_session
from graphopt.testing import check_pass


def _numbers(*shape: int, seed: int) -> str:
    drawn = np.random.default_rng(seed).normal(size=shape).ravel()
    return f"{{{', '.join(f'{v:.3f}' for v in drawn)}}}"


# Two heads of two channels.
BEFORE = f"""<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,4] x) => (float[N,3,2] y)
<float[4,4] wq = {_numbers(4, 4, seed=0)}, float[4,4] wk = {_numbers(4, 4, seed=1)},
 float[4,4] wv = {_numbers(4, 4, seed=2)}, float[4,2] wo = {_numbers(4, 2, seed=3)},
 int64[4] apart = {{0, 3, 2, 2}}, int64[3] back = {{0, 3, 4}}> {{
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  qr = Reshape (q, apart)
  kr = Reshape (k, apart)
  vr = Reshape (v, apart)
  qt = Transpose <perm = [0, 2, 1, 3]> (qr)
  kt = Transpose <perm = [0, 2, 3, 1]> (kr)
  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
  s = MatMul (qt, kt)
  p = Softmax <axis = -1> (s)
  o = MatMul (p, vt)
  ot = Transpose <perm = [0, 2, 1, 3]> (o)
  c = Reshape (ot, back)
  y = MatMul (c, wo)
}}"""
DATA = [{"x": np.random.default_rng(s).normal(size=(16, 3, 4)).astype(np.float32)} for s in (0, 1)]
WEIGHTS = {"criterion": "l2", "ranking": "local", "recover": False}


def reasons(result: Result) -> str:
    (record,) = result.report.passes
    return "; ".join([*record.declined, *record.remarks, record.reason or ""])


AFTER = """
graph(%x: float[N,3,4]) {
  const %apart.6: int64[4] = [0, 3, 1, 2]
  const %back.8: int64[3] = [0, 3, 2]
  const %shape: int64[4] = [0, 1, 3, 2]
  const %wk.2: float[4,2]
  const %wo.4: float[2,2]
  const %wq.1: float[4,2]
  const %wv.3: float[4,2]
  %q = MatMul(%x, %wq.1)
  %k = MatMul(%x, %wk.2)
  %v = MatMul(%x, %wv.3)
  %kr = Reshape(%k, %apart.6)
  %reshape = Reshape(%q, %shape)
  %kt = Transpose(%kr) {perm=[0, 2, 3, 1]}
  %reshape.2 = Reshape(%v, %shape)
  %s = MatMul(%reshape, %kt)
  %p = Softmax(%s) {axis=-1}
  %o = MatMul(%p, %reshape.2)
  %reshape.3 = Reshape(%o, %back.8)
  %y = MatMul(%reshape.3, %wo.4)
  return %y
}
"""


@pytest.mark.parametrize("options", [{}, WEIGHTS])
def test_a_head_is_taken_out(options: dict[str, Any]) -> None:
    data = None if options else DATA
    after = AFTER if options else AFTER.replace("%wo.4", "%wo.1.4")  # it was fitted, and cut
    each = PruneHeads(channels=0.5, **options)
    result = check_pass(each, BEFORE, after, data=data, target="portable")
    assert "0.500 of the channels are left" in reasons(result)


@pytest.mark.parametrize(
    ("each", "data", "reason"),
    [
        (PruneHeads(), None, "need calibration data (--data)"),
        (PruneHeads(skip=("*t",)), DATA, "it is to be skipped"),
        (PruneHeads(least=0.6), DATA, "it has too few channels"),
        (PruneHeads(channels=0.4), DATA, "channels cannot be brought to 0.4"),
        (PruneHeads(min_sqnr=150), DATA, "is below 150 dB"),
        (PruneHeads(latency=0.5), DATA, "latency cannot be measured"),
        (PruneHeads(dry=True), DATA, "a dry run only lists"),
    ],
)
def test_declines(each: PruneHeads, data: Any, reason: str) -> None:
    result = check_pass(each, BEFORE, None, data=data, target="portable")
    assert reason in reasons(result)


def test_a_model_without_heads() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,2] x) => (float[N,2] y) <float[2,2] u = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}> {
      a = MatMul (x, u)
      b = Relu (a)
      y = MatMul (b, v)
    }"""
    data = [{"x": np.ones((4, 2), np.float32)}]
    result = check_pass(PruneHeads(), text, None, data=data, target="portable")
    assert "there are no heads to prune" in reasons(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "channels": 0.5}, "macs and channels are different goals; give one"),
        ({"channels": 1.5}, r"in \(0, 1\)"),
        ({"least": 1.0}, r"in \[0, 1\)"),
        ({"samples": 0}, "1 or more"),
        ({"max_drop": -1.0}, r"in \[0, 100\]"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneHeads(**options)


@pytest.mark.parametrize(
    "options", ["", "{criterion=taylor}", "{macs=0.9}", "{ranking=global criterion=l1}"]
)
def test_heads_of_the_reference_model(models_dir: Path, options: str) -> None:
    model = load(models_dir / "digits_transformer.onnx")
    data = load_data(models_dir / "digits_calib.npz", model)
    result = PassManager(f"prune-heads{options}", data=data, target="portable").run(model)
    (record,) = result.report.passes
    assert record.changed, reasons(result)
    ir.verify(result.model)
    ir.check(model, result.model)
    groups = record.details["groups"]
    assert {group["kind"] for group in groups} == {"heads"}
    assert sum(g["left"] for g in groups) < sum(g["channels"] for g in groups)
    base = PassManager("O2").run(model).model
    share = Cost(result.model).macs / Cost(base).macs
    assert share == pytest.approx(record.details["left"]["macs"], rel=1e-3)
    images = np.load(models_dir / "digits_test.npz")["image"]
    labels = np.load(models_dir / "digits_test_labels.npy")
    for optimize in (False, True):
        with open_session(result.model, optimize=optimize) as session:
            (logits,) = session.run({"image": images}).values()
        assert float((logits.argmax(axis=1) == labels).mean()) >= 0.96

"""Times of kernels by the names of their nodes; nothing here depends on how long they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import SessionError
from graphopt.runtime.kernels import KernelTime, _middle, kernel_times

MODEL = (
    '<ir_version: 8, opset_import: ["": 17]>\n'
    "g (float[64,64] x) => (float[64,64] y) { a = MatMul(x, x) b = Tanh(a) y = Neg(b) }"
)
FEEDS = {"x": np.zeros((64, 64), np.float32)}


def named() -> ir.Model:
    model = ir.parse_text(MODEL)
    for node in model.graph:
        node.name = f"my {node.op_type}"
    return model


def test_every_kernel_once_and_in_order() -> None:
    found = kernel_times(named(), FEEDS, seconds=0.01, runs=(3, 5))
    assert [(t.node, t.op) for t in found] == [
        ("my MatMul", "MatMul"), ("my Tanh", "Tanh"), ("my Neg", "Neg")
    ]  # fmt: skip
    assert all(t == KernelTime(*t) and t.seconds >= 0 for t in found)
    assert found[0].seconds > 0


def test_subgraphs_belong_to_their_node() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[64,64] x, bool p) => (float[?,?] y) { "
        "y = If(p) <then_branch = t () => (float[?,?] a) { a = MatMul(x, x) }, "
        "else_branch = e () => (float[?,?] b) { b = Neg(x) }> }"
    )
    next(iter(model.graph)).name = "the if"
    found = kernel_times(model, {**FEEDS, "p": np.array(True)}, seconds=0.01, optimize=False)
    assert "the if" in {t.node for t in found}


def test_models_that_do_not_run() -> None:
    with pytest.raises(SessionError):
        kernel_times(named(), {"x": np.zeros((2, 3), np.float32)}, seconds=0.01)
    with pytest.raises(SessionError):
        kernel_times(ir.parse_text(MODEL.replace("Neg(b)", "Foo(b)")), FEEDS, seconds=0.01)


def test_no_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    kernel_times(named(), FEEDS, seconds=0.01, runs=(1, 1))
    assert list(tmp_path.iterdir()) == []


def test_the_mean_leaves_out_extremes() -> None:
    assert _middle([5.0]) == 5.0
    assert _middle([1.0, 3.0]) == 2.0
    assert _middle([2.0] * 18 + [0.0, 1000.0]) == 2.0

"""``graphopt check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from graphopt import ir

if TYPE_CHECKING:
    from .conftest import Run

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
    a = Relu(x)
    b = HardSwish(a)
    y = Relu(b)
}"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    ir.save(ir.parse_text(TEXT), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def vgg(models_dir: Path) -> Path:
    return models_dir / "digits_vgg.onnx"


def test_what_a_target_takes(run: Run, vgg: Path) -> None:
    done = run("check", vgg)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "cpu computes 30 of 30 nodes"
    assert "rule" not in done.out
    assert run("check", vgg, "--strict").code == 0


def test_counts_remedies_and_examples(run: Run, small: Path) -> None:
    done = run("check", small, "--target", "nnapi")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert ["HardSwish", "1", "0"] in lines
    assert ["Relu", "2", "2"] in lines
    assert "nnapi does not compute HardSwish" in done.out
    assert "some can be expressed by others (lower-ops)" in done.out
    assert "nnapi_supported_ops.md" in done.out
    assert lines[-1][:6] == ["nnapi", "computes", "2", "of", "3", "nodes;"]


def test_every_node(run: Run, small: Path) -> None:
    out = run("check", small, "--target", "nnapi", "-v").out
    verdicts = [line.split()[-1] for line in out.splitlines() if " Relu " in f" {line} "]
    assert verdicts.count("ok") == 2
    assert out.splitlines()[-1] == "nnapi computes 2 of 3 nodes"


def test_long_lists_are_cut(run: Run, vgg: Path) -> None:
    done = run("check", vgg, "--target", "nnapi")
    assert "and 23 more" in done.out
    assert "(fix-shapes)" in done.out
    assert "and 23 more" not in run("check", vgg, "--target", "nnapi", "-v").out


def test_strict(run: Run, small: Path) -> None:
    assert run("check", small, "--target", "nnapi", "--strict").code == 5
    assert run("check", small, "--target", "qnn", "--strict").code == 0


def test_slow_is_not_an_error(run: Run, tmp_path: Path) -> None:
    ir.save(ir.parse_text(TEXT.replace("float[", "float16[")), tmp_path / "half.onnx")
    done = run("check", tmp_path / "half.onnx", "--target", "cpu-x64", "--strict")
    assert done.code == 0
    assert "slow, but runs: keep 32-bit floats" in done.out
    assert "computes 3 of 3 nodes" in done.out
    assert run("check", tmp_path / "half.onnx", "--target", "nnapi", "--strict").code == 5


def test_json(run: Run, small: Path, tmp_path: Path) -> None:
    done = run("check", small, "--target", "nnapi", "--json", "-")
    data = json.loads(done.out)
    assert data["schema"] == "graphopt.check/1"
    assert (data["target"], data["node_count"], data["supported"]) == ("nnapi", 3, 2)
    assert [n["supported"] for n in data["nodes"]] == [True, False, True]
    (violation,) = data["violations"]
    assert violation["node"] == 1
    assert violation["rule"] == "operators"
    assert set(violation) == {"node", "rule", "reason", "hint", "fix", "source", "slow"}
    file = tmp_path / "out.json"
    assert run("check", small, "--target", "nnapi", "--json", file, "--strict").code == 5
    assert json.loads(file.read_text()) == data


def test_remarks_about_the_whole_model(run: Run, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 22]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
    ir.save(ir.parse_text(text), tmp_path / "new.onnx")
    done = run("check", tmp_path / "new.onnx", "--target", "portable", "--strict")
    assert done.code == 5
    assert "the model is of opset 22; portable takes 11 to 21" in done.out
    assert "convert-opset" in done.out
    verbose = run("check", tmp_path / "new.onnx", "--target", "portable", "-v").out
    assert "(the model)" in verbose
    data = json.loads(
        run("check", tmp_path / "new.onnx", "--target", "portable", "--json", "-").out
    )
    assert data["violations"][0]["node"] is None


def test_bad_input(run: Run, vgg: Path, tmp_path: Path) -> None:
    done = run("check", vgg, "--target", "nnapu")
    assert (done.code, done.err) == (
        2, "error: there is no target 'nnapu'; did you mean 'nnapi'?\n",
    )  # fmt: skip
    assert run("check", tmp_path / "absent.onnx").code == 3
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert run("check", tmp_path / "bad.onnx").code == 3
    done = run("check", vgg, "--json", vgg)
    assert done.code == 2
    assert "would overwrite" in done.err

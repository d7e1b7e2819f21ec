"""``graphopt export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from graphopt import ir

if TYPE_CHECKING:
    from .conftest import Run


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    """A model whose image size is open."""
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }
    """)
    (path,) = ir.save(model, tmp_path / "image.onnx")
    return path


def test_writes_a_folder(run: Run, tmp_path: Path, resnet: Path, samples: Path) -> None:
    done = run("export", resnet, "--target", "nnapi", "-o", tmp_path / "out", "--data", samples)
    assert done.code == 0, done.err
    assert "nnapi: takes all of it" in done.out
    assert "input image: float[1,1,32,32]" in done.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json", "model.onnx", "run.py",
    ]  # fmt: skip
    again = run("export", resnet, "--target", "nnapi", "-o", tmp_path / "out", "-q")
    assert (again.code, again.out) == (0, "")


def test_json(run: Run, tmp_path: Path, resnet: Path) -> None:
    done = run("export", resnet, "--target", "nnapi", "-o", tmp_path / "out", "--json", "-")
    shown = json.loads(done.out)
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert shown == {**written, "model": str(resnet), "directory": str(tmp_path / "out")}
    assert shown["schema"] == "graphopt.export/1"


@pytest.mark.parametrize(
    "options", [("--shape", "x:2,3,8,9"), ("--dim", "N=2", "--dim", "H=8", "--shape", "x:?,3,?,9")]
)
def test_shapes(run: Run, tmp_path: Path, image_model: Path, options: tuple[str, ...]) -> None:
    done = run("export", image_model, "--target", "nnapi", "-o", tmp_path / "out", *options)
    assert done.code == 0, done.err
    assert "input x: float[2,3,8,9]" in done.out


def test_missing_shapes(run: Run, tmp_path: Path, image_model: Path) -> None:
    done = run("export", image_model, "--target", "nnapi", "-o", tmp_path / "out")
    assert done.code == 5
    assert "give --dim N=SIZE --dim H=SIZE --dim W=SIZE" in done.err
    assert not (tmp_path / "out").exists()


def test_violations(run: Run, tmp_path: Path, models_dir: Path) -> None:
    model = models_dir / "digits_lstm.onnx"
    done = run("export", model, "--target", "nnapi", "-o", tmp_path / "out")
    assert done.code == 5
    assert "nnapi does not take all of the model, so nothing was written" in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []
    done = run("export", model, "--target", "nnapi", "-o", tmp_path / "out", "--allow-violations")
    assert done.code == 0
    assert "violations" in done.out


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (("--shape", "x=1,2"), 2, "write INPUT:1,3,224,224"),
        (("--shape", "x:1,a"), 2, "write INPUT:1,3,224,224"),
        (("--dim", "N"), 2, "write NAME=SIZE"),
        (("--dim", "N=one"), 2, "write NAME=SIZE"),
        (("--dim", "M=1"), 5, "no input has a dimension 'M'"),
        (("--passes", "nothing-like-it"), 2, "nothing-like-it"),
    ],
)
def test_bad_options(
    run: Run, tmp_path: Path, image_model: Path, options: tuple[str, ...], code: int, why: str
) -> None:
    shape = () if "--shape" in options else ("--dim", "N=1", "--dim", "H=4", "--dim", "W=4")
    done = run("export", image_model, "--target", "nnapi", "-o", tmp_path / "out", *shape, *options)
    assert done.code == code
    assert why in done.err
    assert not (tmp_path / "out").exists()


def test_bad_places(run: Run, tmp_path: Path, resnet: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    done = run("export", resnet, "--target", "nnapi", "-o", tmp_path / "out")
    assert done.code == 2
    assert "it holds mine.txt, which no export wrote" in done.err
    assert run("export", resnet, "--target", "nnapy", "-o", tmp_path / "new").code == 2
    assert run("export", tmp_path / "no.onnx", "--target", "cpu", "-o", tmp_path / "new").code == 3

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ExportError, ir
from graphopt.bundle import check_folder, folder, write_folder

MANIFEST: dict[str, Any] = {"schema": "graphopt.export/1"}


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def write(path: Path, model: ir.Model, **more: Any) -> list[Path]:
    return write_folder(path, model, MANIFEST, **{"external_data": None, **more})[0]


def test_what_is_written(tmp_path: Path, plain: ir.Model) -> None:
    files, manifest = write_folder(tmp_path / "out", plain, MANIFEST, external_data=None)
    assert [f.name for f in files] == ["model.onnx", "manifest.json", "run.py"]
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == sorted(f.name for f in files)
    assert json.loads(files[1].read_text()) == manifest
    (told,) = manifest["files"]
    data = files[0].read_bytes()
    assert told["bytes"] == len(data)
    assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert ir.dump(ir.load(files[0])) == ir.dump(plain)


def test_external_data(tmp_path: Path) -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1024] x) => (float[1024] y) <float[1024] w = {0}> { y = Add(x, w) }
    """)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.ones(1024, np.float32), name="w")
    files, manifest = write_folder(tmp_path / "out", model, MANIFEST, external_data=True)
    assert [f.name for f in files][:2] == ["model.onnx", "model.onnx.data"]
    assert [f["path"] for f in manifest["files"]] == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(os.fspath(files[0]))


def test_an_earlier_export_is_replaced(tmp_path: Path, plain: ir.Model, model: ir.Model) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one will do
    write(out, plain)
    write(out, model)
    assert ir.dump(ir.load(out / "model.onnx")) == ir.dump(model)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "model.onnx", "manifest.json"])
def test_foreign_files_are_left_alone(tmp_path: Path, plain: ir.Model, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(ExportError, match=f"it holds {name}, which no export wrote"):
        write(tmp_path / "out", plain)
    assert names(tmp_path / "out") == [name]


def test_a_file_added_to_an_export_counts_as_foreign(tmp_path: Path, plain: ir.Model) -> None:
    write(tmp_path / "out", plain)
    (tmp_path / "out" / "labels.txt").touch()
    with pytest.raises(ExportError, match=r"labels\.txt"):
        check_folder(tmp_path / "out")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="it is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(ExportError, match="there is no folder"):
        check_folder(tmp_path / "no" / "out")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, plain: ir.Model, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        write(out, plain)
    before = names(out) if there else None

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_put", fail)
    with pytest.raises(ExportError, match="No space left"):
        write(out, plain)
    assert names(tmp_path) == (["out"] if there else [])
    assert (names(out) if there else None) == before


def test_a_failed_move_is_taken_back(
    tmp_path: Path, plain: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(out, plain)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ExportError, match="Input/output"):
        write(out, plain)
    assert names(out) == ["manifest.json", "model.onnx", "run.py"]
    assert names(tmp_path) == ["out"]


def test_leftovers_of_killed_exports_go(tmp_path: Path, plain: ir.Model) -> None:
    dead = tmp_path / ".out.new.999999999.graphopt-tmp"
    alive = tmp_path / ".out.new.1.graphopt-tmp"
    dead.mkdir()
    alive.mkdir()
    write(tmp_path / "out", plain)
    assert names(tmp_path) == [alive.name, "out"]

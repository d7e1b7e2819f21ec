"""Samples from ``module:function`` and from folders of .npy files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from graphopt import ir
from graphopt.calibration import load_data
from graphopt.errors import CalibrationError

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
ONE = ir.parse_text(HEADER + "g (float[N, 3] x) => (float[N, 3] y) {y = Relu(x)}")
TWO = ir.parse_text(HEADER + "g (float[N] a, int64[M] b) => (float[N] y) {y = Relu(a)}")

MODULE = """
import numpy as np

calls = []

def stream():
    calls.append(1)
    for n in (2, 5, 1):
        yield {"x": np.full((n, 3), n, np.float32)}

class Lists:
    @staticmethod
    def listed():
        return [{"x": np.ones((1, 3))}, {"x": np.ones((4, 3))}]

def broken():
    yield {"x": np.ones((1, 3), np.float32)}
    raise ValueError("no more disks")

def refusing():
    raise OSError("no disk")

def empty(): return []
def single(): return {"x": np.ones((1, 3))}
def numbers(): return [1, 2]
def wrong(): return [{"x": np.ones((1, 3))}, {"z": np.ones((1, 3))}]
def shaped(): return [{"x": np.ones((1, 3))}, {"x": np.ones((1, 4))}]
def invalid(): return [{"x": np.array([[1, np.inf, 2]])}]
constant = 3
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "calib_mod.py").write_text(MODULE)
    (tmp_path / "calib_bad.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "calib_mod"
    assert sys.path == before
    sys.modules.pop("calib_mod", None)


def test_a_function_is_called_anew(name: str) -> None:
    data = load_data(f"{name}:stream", ONE)
    assert len(data) == 3
    for _ in range(2):
        assert [b["x"].shape[0] for b in data] == [2, 5, 1]
    assert len(sys.modules[name].calls) == 3


def test_lists_and_methods(name: str) -> None:
    data = load_data(f"{name}:Lists.listed", ONE)
    assert [b["x"].dtype for b in data] == [np.float32] * 2
    assert data.remarks == ["input 'x': float64 was converted to float32"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "there is no function calib_mod:nothing"),
        ("constant", "calib_mod:constant is no function, but int"),
        ("empty", "calib_mod:empty returned no batches"),
        ("single", "calib_mod:single returned dict, not an iterable of dicts"),
        ("refusing", "calib_mod:refusing raised OSError: no disk"),
        ("broken", "calib_mod:broken, batch 1 raised ValueError: no more disks"),
        ("numbers", "calib_mod:numbers, batch 0 is no dict of arrays by input name, but int"),
        ("wrong", "calib_mod:wrong, batch 1 has no array for input 'x', it holds 'z'"),
        ("shaped", r"calib_mod:shaped, batch 1: input 'x' takes \[N, 3\], not \[1, 4\]"),
        ("invalid", r"calib_mod:invalid, batch 0: input 'x' is inf at \[0, 1\]"),
    ],
)
def test_functions_that_do_not_fit(name: str, function: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        list(load_data(f"{name}:{function}", ONE))


def test_modules_that_are_not_there(name: str) -> None:
    with pytest.raises(CalibrationError, match="there is no function calib_none:f: No module"):
        load_data("calib_none:f", ONE)
    with pytest.raises(CalibrationError, match="of calib_bad:f does not load: ZeroDivisionError"):
        load_data("calib_bad:f", ONE)


def test_an_npy_file(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.save(tmp_path / "data.npy", x)
    data = load_data(tmp_path / "data.npy", ONE, batch_size=5)
    assert (len(data), data.count) == (2, 10)
    assert_array_equal(np.concatenate([b["x"] for b in data]), x)
    with pytest.raises(
        CalibrationError, match="holds one array, but the model has the inputs a, b"
    ):
        load_data(tmp_path / "data.npy", TWO)
    (tmp_path / "data.npy").write_bytes((tmp_path / "data.npy").read_bytes()[:-8])
    with pytest.raises(
        CalibrationError, match=r"data\.npy is truncated or not in the \.npy format"
    ):
        list(data)


def test_a_folder_of_npy_files_is_a_batch_each(tmp_path: Path) -> None:
    for i, n in enumerate((2, 7, 1)):
        np.save(tmp_path / f"{i}.npy", np.full((n, 3), i, np.float32))
    data = load_data(tmp_path, ONE)
    assert [b["x"].shape for b in data] == [(2, 3), (7, 3), (1, 3)]
    np.save(tmp_path / "1.npy", np.full((1, 3), np.nan, np.float32))
    with pytest.raises(CalibrationError, match=r"1\.npy: input 'x' is nan at \[0, 0\]"):
        list(data)
    (tmp_path / "1.npy").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"1\.npy is truncated"):
        list(data)
    with pytest.raises(
        CalibrationError, match="has no array for input 'a', it holds '0', '1', '2'"
    ):
        load_data(tmp_path, TWO)


def test_a_folder_of_npy_files_named_after_the_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32))
    np.save(tmp_path / "b.npy", np.arange(6))
    data = load_data(tmp_path, TWO, batch_size=2)
    assert [list(b["a"]) for b in data] == [[0, 1], [2, 3], [4, 5]]
    np.save(tmp_path / "b.npy", np.arange(4))
    with pytest.raises(CalibrationError, match=r"different numbers of samples \(a: 6, b: 4\)"):
        load_data(tmp_path, TWO)


def test_folders_of_npy_files_named_after_the_inputs(tmp_path: Path) -> None:
    for i, n in enumerate((3, 1)):
        (tmp_path / f"{i}").mkdir()
        np.save(tmp_path / f"{i}" / "a.npy", np.full(n, i, np.float32))
        np.save(tmp_path / f"{i}" / "b.npy", np.arange(n + 1))
    data = load_data(tmp_path, TWO)
    assert [(b["a"].size, b["b"].size) for b in data] == [(3, 4), (1, 2)]


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    np.save(folder / "0.npy", np.ones((1, 3), np.float32))
    assert len(load_data(folder, ONE)) == 1

"""What does not fit into memory goes to files, and comes back as it was; nothing is left behind."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import CalibrationError
from graphopt.reconstruct.held import Held


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> int:
    return sum(p.is_file() for p in folder.rglob("*"))


def test_beyond_the_limit_are_files(folder: Path) -> None:
    held = Held(limit=100)
    given = [np.full(10, i, np.float32) for i in range(4)]  # 40 bytes each
    for value in given:
        held.add("x", value)
    assert files(folder) == 2
    assert "x" in held
    assert list(held) == ["x"]
    for value, back in zip(given, held.all("x"), strict=True):
        np.testing.assert_array_equal(value, back)
        assert back.dtype == np.float32
    assert held.all("x")[1] is given[1]
    np.testing.assert_array_equal(held.all("x")[-1], given[-1])
    assert [a[0] for a in held.all("x")[1:3]] == [1, 2]
    held.drop("x", 3)
    assert files(folder) == 1
    held.drop("x")
    assert files(folder) == 0
    assert "x" not in held
    held.close()
    assert list(folder.iterdir()) == []


def test_dropping_makes_room(folder: Path) -> None:
    held = Held(limit=100)
    for name in ("a", "b"):
        held.add(name, np.zeros(20, np.float32))
        held.drop(name)
    held.add("c", np.zeros(25, np.float32))
    assert files(folder) == 0


@pytest.mark.parametrize(
    "value", [["a sequence"], None, np.array(["text"], object), np.empty((0, 3), np.float32)]
)
def test_what_no_file_can_hold_stays(value: Any, folder: Path) -> None:
    held = Held(limit=0)
    held.add("x", value)
    assert held.get("x", 0) is value
    assert files(folder) == 0


def test_what_is_lent_does_not_count(folder: Path) -> None:
    held = Held(limit=100)
    held.lend("x", [np.zeros(1000), np.ones(1000)])
    held.add("y", np.zeros(25, np.float32))
    assert files(folder) == 0
    assert held.get("x", 1)[0] == 1
    held.drop("x")
    assert "x" not in held


def test_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    held = Held(limit=0)
    with pytest.raises(CalibrationError, match=r"no room for what layers read: .*No space left"):
        held.add("x", np.zeros(3))
    held.close()
    assert list(folder.iterdir()) == []

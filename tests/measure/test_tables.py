"""Times are kept by machine, and a table that is broken is measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.measure import LatencyTable, machine_name
from graphopt.targets import get

TARGET = get("cpu-x64")


def test_a_table_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    one = LatencyTable(path, "one")
    assert one.entries == {}
    one.entries["Conv"] = 1e-6
    one.save()
    other = LatencyTable(path, "other")
    assert other.entries == {}
    other.entries["Conv"] = 2e-6
    other.save()
    assert LatencyTable(path, "one").entries == {"Conv": 1e-6}
    assert LatencyTable(path, "other").entries == {"Conv": 2e-6}
    assert [p.name for p in tmp_path.iterdir()] == ["latency.json"]
    LatencyTable(None, "one").save()  # nowhere


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"one"', "[1]", '{"one": 3}', '{"one": ["Conv"]}',
        '{"one": {"Conv": "x"}}', '{"one": {"Conv": null}}', '{"one": null}', "\x00\xff",
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_ignored(text: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(text, encoding="latin-1")
    table = LatencyTable(path, "one")
    assert table.entries == {}
    table.entries["Conv"] = 1e-6
    table.save()
    assert LatencyTable(path, "one").entries == {"Conv": 1e-6}
    assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)


def test_entries_that_are_no_times_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text('{"one": {"a": NaN, "b": Infinity, "c": -1, "d": 2, "e": 0}}', encoding="utf-8")
    assert LatencyTable(path, "one").entries == {"d": 2, "e": 0}


def test_a_table_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    table = LatencyTable(tmp_path / "cache" / "latency.json", "one")
    table.entries["Conv"] = 1e-6
    table.save()
    assert LatencyTable(table.path, "one").entries == {"Conv": 1e-6}


def test_machines_have_names() -> None:
    name = machine_name(TARGET, 4)
    assert name == machine_name(TARGET, 4)
    assert name != machine_name(TARGET, 1)
    assert name != machine_name(get("cpu-x64-avx2"), 4)
    assert "onnxruntime" in name

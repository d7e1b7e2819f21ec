"""The report as data, as JSON, and on a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from rich.console import Console

from graphopt.errors import ConfigError
from graphopt.manager.report import SCHEMA, PassRecord, Report, Size
from graphopt.manager.report_view import format_bytes, format_change, format_seconds, render


def sample() -> Report:
    return Report(
        pipeline="fuse-conv-bn,quantize{bits=4},dead-code",
        target="cpu",
        before=Size(nodes=1200, bytes=1_234_567, parameters=300_000, cost=0.0123),
        after=Size(nodes=900, bytes=1_200_000, parameters=300_000, cost=0.0101),
        passes=[
            PassRecord(
                text="fuse-conv-bn",
                name="fuse-conv-bn",
                seconds=0.0123,
                changed=True,
                before=Size(1200, 1_234_567),
                after=Size(900, 1_200_000),
                rewrites={"conv-bn": 20, "conv-mul": 1},
                declined={"conv-bn: in training mode": 3},
                remarks=["[bold]kept[/bold] \x1b[31mnode 7"],
                error={"ok": True, "max_abs": 1.2e-7},
            ),
            PassRecord(
                text="quantize{bits=4}",
                name="quantize",
                exactness="lossy",
                changed=True,
                status="reverted",
                reason="output y differs",
                before=Size(900, 1_200_000),
                after=Size(900, 1_200_000),
            ),
            PassRecord(
                text="dead-code",
                name="dead-code",
                exactness="bitwise",
                status="unchanged",
                before=Size(900, 1_200_000),
                after=Size(900, 1_200_000),
            ),
        ],
        oracle={
            "mode": "end",
            "verdict": "equal",
            "promise": "rounding",
            "feeds": {"samples": 2, "batches": 8, "made": 2, "dims": [{"n": 1}, {"n": 3}]},
            "error": {"max_abs": 1.23e-6, "max_rel": 4.56e-7, "sqnr_db": 101.26},
        },
        remarks=["opset 9 is old"],
        versions={"onnx": "1.0"},
        seconds=1.25,
    )


# --- data ---------------------------------------------------------------------------------------


def test_changed_and_reverted() -> None:
    report = sample()
    assert report.changed
    assert [record.name for record in report.reverted] == ["quantize"]
    assert not Report(passes=report.passes[1:]).changed
    assert not Report().changed


def test_json_round_trip() -> None:
    report = sample()
    data = report.to_json()
    assert list(data)[:2] == ["schema", "changed"]
    assert data["schema"] == SCHEMA
    text = json.dumps(data, allow_nan=False)
    assert Report.from_json(json.loads(text)) == report
    assert Report.from_json({**data, "from the future": 1}) == report


COUNTS = st.dictionaries(st.text(), st.integers(0, 10**12), max_size=3)
SIZES = st.builds(
    Size,
    nodes=st.integers(0),
    bytes=st.integers(0),
    parameters=st.integers(0),
    cost=st.floats(0, allow_nan=False),
)
RECORDS = st.builds(
    PassRecord,
    text=st.text(),
    name=st.text(),
    exactness=st.sampled_from(["bitwise", "rounding", "lossy"]),
    seconds=st.floats(0, 1e6),
    changed=st.booleans(),
    status=st.sampled_from(["ok", "unchanged", "reverted", "not-applicable", "skipped"]),
    reason=st.none() | st.text(),
    before=SIZES,
    after=SIZES,
    rewrites=COUNTS,
    declined=COUNTS,
    remarks=st.lists(st.text(), max_size=3),
    details=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
            ),
            max_leaves=4,
        ),
        max_size=2,
    ),
    error=st.none() | st.dictionaries(st.text(), st.none() | st.booleans() | st.integers()),
)


@hypothesis.given(
    st.builds(
        Report,
        pipeline=st.text(),
        before=SIZES,
        after=SIZES,
        passes=st.lists(RECORDS, max_size=3),
        versions=st.dictionaries(st.text(), st.text(), max_size=2),
    )
)
def test_json_round_trip_of_any_report(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    render(report, Console(file=io.StringIO(), width=80), verbose=True)


def test_json_is_plain() -> None:
    facts: dict[Any, Any] = {
        "a": np.float32(0.5),
        "b": math.nan,
        "c": (1, -math.inf),
        "d": Path("x"),
        "e": np.bool_(True),
        4: None,
    }
    report = Report(
        before=Size(nodes=np.int64(3), cost=math.inf),  # type: ignore[arg-type]
        oracle=facts,
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["before"] == {"nodes": 3, "bytes": 0, "parameters": 0, "cost": "inf"}
    assert data["oracle"] == {
        "a": 0.5,
        "b": "nan",
        "c": [1, "-inf"],
        "d": "x",
        "e": True,
        "4": None,
    }
    assert Report.from_json(data).before.cost == math.inf
    with pytest.raises(TypeError) as raised:
        Report(oracle={"a": {1}}).to_json()
    assert str(raised.value) == "a report cannot hold {1}"


def test_reading_what_is_no_report() -> None:
    data = sample().to_json()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "expected a report with the schema 'graphopt.report/1', found None"),
        (
            {**data, "schema": "graphopt.report/2"},
            "expected a report with the schema 'graphopt.report/1', found 'graphopt.report/2'",
        ),
        (
            {key: value for key, value in data.items() if key != "passes"},
            "the report lacks the key 'passes'",
        ),
        (
            {**data, "passes": [{**data["passes"][0], "status": "fine"}]},
            "a report has no status 'fine'",
        ),
    ]
    for bad, message in cases:
        with pytest.raises(ConfigError) as raised:
            Report.from_json(bad)
        assert str(raised.value) == message


def test_details_become_plain_data() -> None:
    record = PassRecord(
        text="a",
        name="a",
        details={
            "nodes": [{"name": "c", "range": (np.float32(-1), 2.5), "noise_db": math.inf}],
            "chosen": None,
        },
    )
    data = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert data["details"] == {
        "nodes": [{"name": "c", "range": [-1.0, 2.5], "noise_db": "inf"}],
        "chosen": None,
    }
    assert PassRecord.from_json(data).details == data["details"]
    del data["details"]  # as reports were before
    assert PassRecord.from_json(data).details == {}


def test_every_field_is_in_the_json() -> None:
    data = sample().to_json()
    assert set(data) == {f.name for f in dataclasses.fields(Report)} | {"schema", "changed"}
    assert set(data["passes"][0]) == {f.name for f in dataclasses.fields(PassRecord)}
    assert set(data["before"]) == {f.name for f in dataclasses.fields(Size)}


# --- view ---------------------------------------------------------------------------------------


def shown(report: Report, width: int = 80, verbose: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    render(report, console, verbose=verbose)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_view() -> None:
    assert shown(sample()) == [
        "                 before    after   change",
        "─────────────────────────────────────────",
        "nodes             1,200      900  -25.0 %",
        "parameters      300,000  300,000",
        "size            1.23 MB   1.2 MB   -2.8 %",
        "estimated time  12.3 ms  10.1 ms  -17.9 %",
        "",
        "pass              result      ms  rewrites         nodes               size",
        "───────────────────────────────────────────────────────────────────────────",
        "fuse-conv-bn      ok        12.3        21  1,200 -> 900  1.23 MB -> 1.2 MB",
        "quantize{bits=4}  reverted   0.0                     900             1.2 MB",
        "",
        "1 other pass had nothing to do, 3 rewrites declined for 1 reason (--verbose",
        "lists them)",
        "",
        "remarks",
        "  opset 9 is old",
        "  fuse-conv-bn: [bold]kept[/bold] \\x1b[31mnode 7",
        "",
        "Outputs agree with the original's up to rounding on 2 of 8 batches of data and 2",
        "made-up inputs (n=1; n=3); they differ by at most 1.2e-06 (4.6e-07 of their RMS,",
        "SQNR 101.3 dB).",
        "",
        "undone: 1 pass",
        "  quantize{bits=4}: output y differs",
        "",
        "1.25 s for target cpu.",
    ]


def test_verbose_view() -> None:
    lines = shown(sample(), verbose=True)
    assert sum(line.startswith(("fuse-", "quantize{", "dead-")) for line in lines) == 3
    assert not any("nothing to do" in line for line in lines)
    at = lines.index("declined")
    assert lines[at + 1] == "  3 x conv-bn: in training mode"


def test_passes_that_did_not_run_have_their_reason_and_long_reasons_are_indented() -> None:
    record = PassRecord(text="int8", name="int8", status="not-applicable", reason="needs " * 9)
    lines = shown(Report(passes=[record, record]), width=40)
    at = lines.index("not run")
    assert lines[at + 1] == "  int8: needs needs needs needs needs"
    assert lines[at + 2] == "  needs needs needs needs"
    assert lines[at + 3] == ""


def test_a_pass_that_did_something_once_is_not_idle() -> None:
    busy = PassRecord(text="a", name="a", changed=True)
    idle = PassRecord(text="a", name="a", status="unchanged")
    assert not any("nothing to do" in line for line in shown(Report(passes=[busy, idle])))


def test_view_of_a_model_that_nobody_looked_into() -> None:
    size = Size(bytes=500)
    assert shown(Report(before=size, after=size))[:4] == [
        "      before  after  change",
        "───────────────────────────",
        "size   500 B  500 B",
        "",
    ]


def test_view_of_an_empty_report() -> None:
    assert shown(Report()) == [
        "            before  after  change",
        "─────────────────────────────────",
        "nodes            0      0",
        "parameters       0      0",
        "size           0 B    0 B",
        "",
        "Outputs were not compared.",
        "0 us for target cpu.",
    ]


@pytest.mark.parametrize(
    ("oracle", "line"),
    [
        ({"mode": "off", "verdict": "not run"}, "Outputs were not compared."),
        (
            {"mode": "end", "verdict": "unavailable", "reason": "no onnxruntime"},
            "Outputs were not compared: no onnxruntime.",
        ),
        ({"mode": "end", "verdict": "unavailable"}, "Outputs were not compared: unavailable."),
        ({"mode": "end", "verdict": "unchanged"}, "The model is as it was."),
        ({"mode": "end", "verdict": "equal"}, "Outputs agree with the original's."),
        (
            {
                "mode": "each",
                "verdict": "equal",
                "feeds": {"samples": 0, "made": 1},
                "error": {"max_abs": 0.0, "max_rel": 0.0},
            },
            "Outputs agree with the original's on 1 made-up input, without any difference.",
        ),
        (
            {"verdict": "equal", "promise": "bitwise", "feeds": {"samples": 0, "batches": 3}},
            "Outputs are bit by bit the original's on none of 3 batches of data.",
        ),
        (
            {
                "verdict": "equal",
                "promise": "lossy",
                "feeds": {"made": 1, "dims": [dict.fromkeys("abcde", 1)] * 2},
                "error": {"max_abs": 0.5, "max_rel": None, "sqnr_db": 30.0},
            },
            "Outputs differ from the original's on purpose on 1 made-up input (2 settings of 5 "
            "dynamic dimensions); they differ by at most 0.5 (SQNR 30.0 dB).",
        ),
        (
            {
                "verdict": "equal",
                "promise": "lossy",
                "feeds": {"samples": 2, "batches": 8, "made": 1, "dims": [{"n": 3}]},
                "error": {"max_abs": 0.5, "max_rel": None, "sqnr_db": 30.0},
            },
            "Outputs differ from the original's on purpose on 2 of 8 batches of data, which "
            "passes may be fitted to; they differ by at most 0.5 (SQNR 30.0 dB); on 1 made-up "
            "input (n=3) they are finite.",
        ),
        (
            {
                "verdict": "equal",
                "promise": "lossy",
                "feeds": {"samples": 1, "batches": 1, "made": 0},
                "error": {"max_abs": 0.0, "max_rel": 0.0},
            },
            "Outputs differ from the original's on purpose on 1 batch of data, which passes may "
            "be fitted to, without any difference.",
        ),
        (
            {"verdict": "equal", "feeds": {"samples": 2000}, "error": {"max_abs": None}},
            "Outputs agree with the original's on 2,000 batches of data.",
        ),
    ],
)
def test_oracle_line(oracle: dict[str, Any], line: str) -> None:
    assert shown(Report(oracle=oracle), width=200)[-2] == line


def test_units() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_400, 999_600, 10**9, 24 * 10**11)] == [
        "0 B",
        "999 B",
        "1 kB",
        "999 kB",
        "1 MB",
        "1 GB",
        "2.4 TB",
    ]
    assert [format_seconds(s) for s in (0, 1e-6, 9.996e-4, 0.5, 59.99, 1234.5, math.inf)] == [
        "0 us",
        "1 us",
        "1 ms",
        "500 ms",
        "60 s",
        "1,234 s",
        "unknown",
    ]
    pairs = ((8, 7), (8, 8), (0, 8), (8, 16), (8, math.inf), (1e6, 999_970))
    assert [format_change(*pair) for pair in pairs] == [
        "-12.5 %",
        "",
        "",
        "+100.0 %",
        "",
        "-0.003 %",
    ]


def test_rich_is_imported_when_a_report_is_shown() -> None:
    code = (
        "import sys; from graphopt.manager import report, report_view; "
        "assert not {'rich', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""What ``graphopt prune`` prints of reports, as data makes them."""

from __future__ import annotations

import io
from typing import Any

from graphopt import ir
from graphopt.cli.common import console
from graphopt.cli.prune_view import curve, show_result
from graphopt.manager.report import PassRecord, Report
from graphopt.manager.runner import Result

MODEL = ir.parse_text(
    '<ir_version: 8, opset_import: ["": 17]>\ng (float[n,4] x) => (float[n,4] y) { y = Relu(x) }'
)


def group(**changes: Any) -> dict[str, Any]:
    noise = {"16": 0.0, "12": 1e-4, "8": 1e-3, "4": 1e-1, "0": 1.0}
    row = {"name": "g", "kind": "channels", "channels": 16, "left": 8, "whole": True}
    return {**row, "noise": noise, "saved": {}, **changes}


def test_curves() -> None:
    assert curve(group(), -40, 0) == "·▁[▃]▆|█"
    assert curve(group(left=16), -40, 0) == "[·]▁▃▆|█"
    assert curve(group(left=0), -40, 0) == "·▁▃▆|[█]"
    assert curve(group(left=None), -20, 0) == "·▁▁▅|█"
    # JSON spells infinity as text.
    assert curve(group(noise={"16": 0.0, "8": "inf", "4": 0.0}), -40, 0) == "·[█]▁"


def shown(
    rows: list[dict[str, Any]], verbose: bool, more: dict[str, Any] | None = None, **record: Any
) -> list[str]:
    details = {
        "groups": rows,
        "frozen": [{"name": f"f{i}", "reason": "Softmax mixes them"} for i in range(5)],
        "macs": [2e9, 1.5e9],
        "speedup": [1.25, 2.0],
        "quality": {"sqnr_db": None, "cosine": 1.0, "agreement": None, "samples": 3, "aside": True},
        "left": {"macs": 0.75, "params": 0.5, "bytes": 0.5},
        **(more or {}),
    }
    each = PassRecord(
        text="prune-channels{macs=0.75}", name="prune-channels", details=details,
        **{"changed": True, **record},
    )  # fmt: skip
    text = io.StringIO()
    result = Result(MODEL, Report(passes=[each]))
    show_result(console(file=text), result, [], 1000, verbose)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_the_report_of_many_groups() -> None:
    saved = {"16": 0.0, "12": 0.01, "8": 0.021, "4": 0.03, "0": 0.1}
    rows = [group(name=f"g{i}\x1b", saved=saved) for i in range(30)]
    rows[3] = group(name="loud", left=4, saved=saved)
    rows[4] = group(name="whole", left=0, saved=saved)
    rows[5] = group(name="kept", left=16, saved=saved)
    lines = shown(rows, False)
    assert "MACs 2.00 G -> 1.50 G -25.0 %" in lines
    assert "speed 1.25x as fast on one sample, 2.00x on a batch" in lines
    assert "quality SQNR inf dB, cosine 1.00000 on 3 samples kept aside" in lines
    assert "channels of before left noise dB noise by level time saved" in lines
    assert "loud 16 4 -10.0 ·▁▃[▆]|█ 3.0 %" in lines
    assert "whole 16 0, the layer 0.0 ·▁▃▆|[█] 10.0 %" in lines
    assert r"g0\x1b 16 8 -30.0 ·▁[▃]▆|█ 2.1 %" in lines
    assert not any(line.startswith("kept") for line in lines)
    assert "6 more groups (--verbose lists them)" in lines
    assert any("| the whole layer" in line for line in lines)
    assert not any("Softmax" in line for line in lines)
    lines = shown(rows, True)
    assert sum(line.startswith("g") for line in lines) == 27
    assert "kept 16 16 [·]▁▃▆|█" in lines
    assert "f4 Softmax mixes them" in lines


def test_the_report_of_a_dry_run() -> None:
    lines = shown([group()], False, changed=False, status="unchanged")
    assert "5 Softmax mixes them f0, f1, f2, 2 more" in lines
    assert any(line.startswith("Left would be 0.750 of the multiply-acc") for line in lines)


def test_reasons_that_differ_in_names_alone_count_together() -> None:
    frozen = [{"name": n, "reason": f"Add '{n}' joins it with others"} for n in "ab"]
    frozen.append({"name": "y", "reason": "'y' is an output of the model"})
    lines = shown([group()], False, {"frozen": frozen}, changed=False, status="unchanged")
    assert "2 Add ... joins it with others a, b" in lines
    assert "1 'y' is an output of the model y" in lines


def test_the_report_of_layers() -> None:
    row = {"name": "s1", "kind": "attention", "nodes": 5, "sqnr_db": None, "removed": None}
    may, may_not = {**row, "reason": None}, {**row, "name": "s2", "reason": "another shape"}
    lines = shown([], False, {"layers": [may, may_not]}, changed=False, status="unchanged")
    assert lines.count("layer kind nodes") == 1
    assert "s1 attention 5" in lines
    assert "1 more layer stays (--verbose lists them)" in lines
    lines = shown([], True, {"layers": [may, may_not]}, changed=False, status="unchanged")
    assert "s2 attention 5 another shape" in lines
    lines = shown([], False, {"layers": [may_not]}, changed=False, status="unchanged")
    assert "s2 attention 5 another shape" in lines
    gone = {**may, "name": "s3", "removed": 1, "sqnr_db": 12.25}
    lines = shown([], False, {"layers": [may, gone]})
    assert "layer kind nodes SQNR dB without" in lines
    assert "s3 attention 5 12.2 removed as number 1" in lines
    assert not any(line.startswith("s1") for line in lines)

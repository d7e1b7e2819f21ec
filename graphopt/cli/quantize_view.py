"""What ``graphopt quantize`` prints: the result, and the debug report."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli.optimize import print_files
from graphopt.manager.report_view import (
    describe_oracle,
    format_bytes,
    format_change,
    make_table,
    make_text,
    print_line,
    print_list,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from graphopt.manager.report import PassRecord, Report
    from graphopt.manager.runner import Result

__all__ = ["show_debug", "show_result"]

# Reasons that are listed without -v, and operators with each.
_SHOWN = 5
_OPERATORS = 4
_SLOWER = "slower"
_FORMS = {
    "static": "static",
    "dynamic": "dynamic (activations quantized at each run)",
    "weights": "weights only",
}
_BARS = "▁▂▃▄▅▆▇█"


def show_result(
    out: Console,
    result: Result,
    files: list[Path],
    before: int | None,
    verbose: bool,
) -> None:
    """Print what was quantized, how good and how fast it is, and what was left out and why."""
    report = result.report
    record = _record(report)
    rows: list[dict[str, Any]] = record.details.get("nodes", [])
    if record.status == "ok":
        out.print(_summary(record, rows, before, sum(f.stat().st_size for f in files)))
    else:
        print_line(out, f"Not quantized: {record.reason}.", "bold yellow")
    if verbose and record.details.get("candidates"):
        out.print()
        out.print(_candidates(record))
    left = [row for row in rows if row["form"] == "float"]
    if left and (verbose or record.status == "ok"):
        out.print()
        out.print(_every_node(left) if verbose else _groups(left))
        if not verbose:
            print_line(out, "(--verbose lists them)")
    print_list(out, "remarks", dict.fromkeys(report.remarks))
    out.print()
    if record.status == "ok":
        _fit(out, result)
    if files:
        print_line(out, describe_oracle(report.oracle))
    print_files(out, files, before)


def _fit(out: Console, result: Result) -> None:
    """Say where the target does not take the model as it is."""
    from graphopt.targets import check

    found = [v for v in check(result.model, result.report.target) if not v.slow]
    if found:
        name = result.report.target
        print_line(
            out,
            f"{name} does not take all of it as it is ({len(found)} violations; graphopt check "
            f"lists them): graphopt export MODEL --target {name} --passes O2,quantize-int8 "
            "brings models into its form.",
            "bold yellow",
        )


def show_debug(out: Console, report: Report) -> None:
    """Print what quantization does to every tensor, and why nodes stay in floating point."""
    record = _record(report)
    found: Mapping[str, Any] | None = record.details.get("debug")
    if found is None:
        print_line(out, "No static form of the model was tried: there are no ranges to look at.")
    else:
        batches = found["batches"]
        print_line(
            out,
            f"{found['form']}: signal-to-noise ratio against the model in floating point, on "
            f"{batches} {'batch' if batches == 1 else 'batches'} of data; range of the integers; "
            "values seen; how many of them are beyond the range, and how they are distributed",
        )
        out.print()
        out.print(_tensors(found["tensors"]))
    left = [row for row in record.details.get("nodes", []) if row["form"] == "float"]
    if left:
        out.print()
        out.print(_every_node(left))


def _record(report: Report) -> PassRecord:
    return next(r for r in reversed(report.passes) if r.name == "quantize-int8")


def _summary(
    record: PassRecord, rows: Sequence[Mapping[str, Any]], before: int | None, after: int
) -> Table:
    table = make_table("quantized", "")
    counts = {
        form: sum(r["form"] == form for r in rows) for form in ("static", "dynamic", "weights")
    }
    told = ", ".join(f"{n} {_FORMS[form]}" for form, n in counts.items() if n)
    table.add_row("nodes", f"{sum(counts.values())} of {len(rows)}: {told}")
    chosen = _chosen(record)
    if chosen is None or chosen["cosine"] is None:
        table.add_row("quality", "not measured, for want of samples (--data)")
    else:
        table.add_row("quality", f"{_quality(chosen)} on {chosen['samples']} samples")
    if chosen is not None and chosen["speedup"] is not None:
        table.add_row("speed", f"{chosen['speedup']:.2f}x as fast as in floating point")
    else:
        why = record.details.get("unmeasured") or "there are no samples to run"
        table.add_row("speed", make_text(f"not measured: {why}"))
    was = "" if before is None else f"{format_bytes(before)} -> "
    table.add_row("size", f"{was}{format_bytes(after)}  {format_change(before or after, after)}")
    return table


def _chosen(record: PassRecord) -> Mapping[str, Any] | None:
    name = record.details.get("chosen")
    rows: list[dict[str, Any]] = record.details.get("candidates", [])
    return next((row for row in reversed(rows) if row["name"] == name), None)


def _quality(row: Mapping[str, Any]) -> str:
    sqnr = "inf" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
    told = f"SQNR {sqnr} dB, cosine {row['cosine']:.5f}"
    if row["agreement"] is not None:
        told += f", {100 * row['agreement']:.2f} % same predictions"
    return told


def _candidates(record: PassRecord) -> Table:
    table = make_table("tried", ">speed", "quality")
    for row in record.details["candidates"]:
        speed = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
        quality = "" if row["cosine"] is None else _quality(row)
        table.add_row(make_text(row["name"]), speed, quality)
    return table


def _groups(left: Sequence[Mapping[str, Any]]) -> Table:
    """Nodes in floating point by reason; first those that take the most time, if that is known."""
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in left:
        groups[_kind(row)].append(row)
    ordered = sorted(
        groups.items(),
        key=lambda item: (-sum(r.get("float_us", 0) for r in item[1]), -len(item[1])),
    )
    table = make_table(">left", "because", "operators")
    for kind, rows in ordered[:_SHOWN]:
        why = kind
        if kind == _SLOWER:
            integer, floating = (sum(r[k] for r in rows) for k in ("integer_us", "float_us"))
            why = f"on integers {integer:.1f} us, in floating point {floating:.1f} us"
        counts = Counter(r["op"] for r in rows).most_common()
        told = ", ".join(f"{n} {op}" for op, n in counts[:_OPERATORS])
        more = f", {len(counts) - _OPERATORS} more" if len(counts) > _OPERATORS else ""
        table.add_row(str(len(rows)), *map(make_text, (why, told + more)))
    others = sum(len(rows) for _, rows in ordered[_SHOWN:])
    if others:
        table.add_row(str(others), "for other reasons", "")
    return table


def _kind(row: Mapping[str, Any]) -> str:
    """The reason, without what differs from node to node."""
    if row.get("integer_us", 0) >= row.get("float_us", math.inf):
        return _SLOWER
    return str(row["reason"]).removesuffix(f" for {row['op']}")


def _every_node(left: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table("left in floating point", "operator", "because")
    for row in left:
        table.add_row(*map(make_text, (row["name"], row["op"], row["reason"])))
    return table


def _tensors(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table(
        "tensor", "operator", "in", ">SQNR dB", ">range", ">seen", ">beyond", "histogram"
    )
    for row in rows:
        beyond = row["saturated"]
        table.add_row(
            make_text(row["name"]),
            make_text(row["op"] or "(input)"),
            "int8" if row["quantized"] else "float",
            _number(row["sqnr_db"]),
            _interval(row["range"]),
            _interval(row["seen"]),
            "" if beyond is None else f"{100 * beyond:.3f} %",
            _sparkline(row["histogram"]),
        )
    return table


def _number(value: Any) -> str:
    # JSON spells infinity as text.
    return "" if value is None else f"{float(value):.1f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{float(ends[0]):.4g} .. {float(ends[1]):.4g}"


def _sparkline(counts: Sequence[int]) -> str:
    """Bars whose heights are logarithms of the counts."""
    top = math.log1p(max(counts, default=0))
    if not top:
        return ""
    last = len(_BARS) - 1
    return "".join(" " if not n else _BARS[round(math.log1p(n) / top * last)] for n in counts)

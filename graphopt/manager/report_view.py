"""The report for a terminal.

Everything that comes from a model or a plugin is shown as it is: no markup is interpreted and
control characters are escaped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from graphopt.manager.report import PassRecord, Report

__all__ = ["format_bytes", "format_change", "format_seconds", "render"]

_STYLES = {"ok": "green", "reverted": "bold red", "not-applicable": "yellow", "skipped": "dim"}


def render(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print a report: sizes, a table of passes, reasons, declined rewrites, remarks, the oracle.

    Args:
        report: What to print.
        console: Where to print it.
        verbose: Whether passes that found nothing to do have a row, instead of a common line.
    """
    console.print(_sizes(report))
    rows = [each for each in report.passes if verbose or each.status != "unchanged"]
    if rows:
        console.print()
        console.print(_passes(rows))
    idle = list(dict.fromkeys(each.name for each in report.passes if each not in rows))
    if idle:
        console.print()
        _line(console, f"nothing to do for: {', '.join(idle)}")
    reasons = [f"{each.name} {each.status}: {each.reason}" for each in rows if each.reason]
    _list(console, "why", dict.fromkeys(reasons))
    declined: Counter[str] = Counter()
    for record in report.passes:
        declined.update(record.declined)
    _list(console, "declined", (f"{count} x {why}" for why, count in declined.most_common()))
    remarks = [*report.remarks]
    for record in report.passes:
        remarks += [f"{record.name}: {remark}" for remark in record.remarks]
    _list(console, "remarks", dict.fromkeys(remarks))
    console.print()
    _line(console, _oracle(report.oracle), "bold")
    _line(console, f"{format_seconds(report.seconds)} for target {report.target}.")


def format_bytes(count: int) -> str:
    """Return a number of bytes with a decimal unit, such as ``1.25 MB``."""
    size = float(count)
    if size < 1000:
        return f"{count} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.3g} TB"


def format_seconds(seconds: float) -> str:
    """Return a time with a unit, such as ``1.25 ms``."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale * 0.9995:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def format_change(before: float, after: float) -> str:
    """Return a relative change such as ``-12.5 %``; empty without one or without a base."""
    if before == after or not before or not math.isfinite(after / before):
        return ""
    return f"{(after / before - 1) * 100:+.1f} %"


def _sizes(report: Report) -> Table:
    """Return the table of the model before and after."""
    before, after = report.before, report.after
    rows: list[tuple[str, str, str, float, float]] = [
        ("nodes", f"{before.nodes:,}", f"{after.nodes:,}", before.nodes, after.nodes),
        (
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            before.parameters,
            after.parameters,
        ),
        ("size", format_bytes(before.bytes), format_bytes(after.bytes), before.bytes, after.bytes),
    ]
    if before.cost or after.cost:
        costs = format_seconds(before.cost), format_seconds(after.cost)
        rows.append(("estimated time", *costs, before.cost, after.cost))
    table = _table("", ">before", ">after", ">change")
    for name, old, new, was, now in rows:
        table.add_row(_text(name), _text(old), _text(new), _text(format_change(was, now)))
    return table


def _passes(records: Iterable[PassRecord]) -> Table:
    """Return the table of passes."""
    table = _table("pass", "result", ">ms", ">rewrites", ">nodes", ">size")
    for record in records:
        before, after = record.before, record.after
        rewrites = sum(record.rewrites.values())
        table.add_row(
            _text(record.text),
            _text(record.status, _STYLES.get(record.status, "")),
            _text(f"{record.seconds * 1e3:,.1f}"),
            _text(f"{rewrites:,}" if rewrites else ""),
            _text(_step(f"{before.nodes:,}", f"{after.nodes:,}")),
            _text(_step(format_bytes(before.bytes), format_bytes(after.bytes))),
        )
    return table


def _step(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _oracle(facts: Mapping[str, Any]) -> str:
    """Return what the oracle found, in a sentence."""
    verdict = facts.get("verdict", "not run")
    if verdict == "not run":
        return "Outputs were not compared."
    if verdict == "unchanged":
        return "The model is as it was."
    if verdict != "equal":
        reason = facts.get("reason")
        return f"Outputs were not compared: {reason or verdict}."
    feeds = facts.get("feeds") or {}
    inputs = [_count(feeds.get("samples"), "sample"), _count(feeds.get("made"), "made-up input")]
    on = " and ".join(filter(None, inputs))
    return f"Outputs agree with the original's{f' on {on}' if on else ''}{_difference(facts)}."


def _count(count: object, what: str) -> str:
    if not isinstance(count, int) or not count:
        return ""
    return f"{count:,} {what}{'s' if count > 1 else ''}"


def _difference(facts: Mapping[str, Any]) -> str:
    """Return how far the outputs are apart, to append to a sentence."""
    error = facts.get("error")
    largest = error.get("max_abs") if isinstance(error, Mapping) else None
    if not isinstance(error, Mapping) or not isinstance(largest, float):
        return ""
    if not largest:
        return ", without any difference"
    relative = error.get("max_rel")
    of_rms = f" ({relative:.2g} of their RMS)" if isinstance(relative, float) else ""
    return f"; they differ by at most {largest:.2g}{of_rms}"


def _table(*headings: str) -> Table:
    """Return an empty table; columns whose heading starts with ``>`` are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for heading in headings:
        if heading.startswith(">"):
            table.add_column(heading[1:], justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", no_wrap=heading == "result")
    return table


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text(safe, style)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(_text(text, style))


def _list(console: Console, heading: str, lines: Iterable[str]) -> None:
    """Print a heading and lines below it, or nothing if there are none."""
    shown = list(lines)
    if shown:
        console.print()
        _line(console, heading, "bold")
        for line in shown:
            _line(console, f"  {line}")

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

__all__ = [
    "describe_difference",
    "describe_feeds",
    "describe_lossy",
    "describe_oracle",
    "format_bytes",
    "format_change",
    "format_seconds",
    "make_table",
    "make_text",
    "print_line",
    "print_list",
    "render",
]

_STYLES = {"ok": "green", "reverted": "bold red", "not-applicable": "yellow", "skipped": "dim"}


def render(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print a report: sizes, a table of passes, remarks, the oracle and, last, what was undone.

    Args:
        report: What to print.
        console: Where to print it.
        verbose: Whether passes that found nothing to do have a row, instead of a common line, and
            declined rewrites are listed, instead of counted.
    """
    console.print(_sizes(report))
    rows = [each for each in report.passes if verbose or each.status != "unchanged"]
    if rows:
        console.print()
        console.print(_passes(rows))
    _aside(report, console, rows, verbose=verbose)
    asides = [each for each in report.passes if each.reason and each.status != "reverted"]
    print_list(console, "not run", dict.fromkeys(f"{r.text}: {r.reason}" for r in asides))
    remarks = [*report.remarks]
    for record in report.passes:
        remarks += [f"{record.name}: {remark}" for remark in record.remarks]
    print_list(console, "remarks", dict.fromkeys(remarks))
    console.print()
    unchecked = report.oracle.get("verdict") == "unavailable"
    print_line(console, describe_oracle(report.oracle), "bold yellow" if unchecked else "bold")
    undone = dict.fromkeys(f"{each.text}: {each.reason}" for each in report.reverted)
    print_list(console, f"undone: {_count(len(undone), 'pass', 'passes')}", undone, "bold red")
    if undone:
        console.print()
    print_line(console, f"{format_seconds(report.seconds)} for target {report.target}.")


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
    percent = (after / before - 1) * 100
    return f"{percent:+.1f} %" if abs(percent) >= 0.05 else f"{percent:+.1g} %"


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
    if not before.nodes and not after.nodes and before.bytes:
        rows = rows[-1:]  # a model that is carried through as it is: nobody looked inside
    if before.cost or after.cost:
        costs = format_seconds(before.cost), format_seconds(after.cost)
        rows.append(("estimated time", *costs, before.cost, after.cost))
    table = make_table("", ">before", ">after", ">change")
    for name, old, new, was, now in rows:
        table.add_row(name, old, new, format_change(was, now))
    return table


def _passes(records: Iterable[PassRecord]) -> Table:
    """Return the table of passes."""
    table = make_table("pass", "result", ">ms", ">rewrites", ">nodes", ">size")
    for record in records:
        before, after = record.before, record.after
        rewrites = sum(record.rewrites.values())
        table.add_row(
            make_text(record.text),
            make_text(record.status, _STYLES.get(record.status, "")),
            make_text(f"{record.seconds * 1e3:,.1f}"),
            make_text(f"{rewrites:,}" if rewrites else ""),
            make_text(_step(f"{before.nodes:,}", f"{after.nodes:,}")),
            make_text(_step(format_bytes(before.bytes), format_bytes(after.bytes))),
        )
    return table


def _step(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _aside(report: Report, console: Console, rows: list[PassRecord], *, verbose: bool) -> None:
    """Count the passes without a row and the rewrites that were declined, or list the latter."""
    declined: Counter[str] = Counter()
    for record in report.passes:
        declined.update(record.declined)
    if verbose:
        print_list(console, "declined", (f"{n} x {why}" for why, n in declined.most_common()))
        return
    named = {each.name for each in rows}
    idle = {each.name for each in report.passes} - named
    other = "other " if named else ""
    found = []
    if idle:
        found.append(f"{_count(len(idle), f'{other}pass', f'{other}passes')} had nothing to do")
    if declined:
        rewrites, reasons = _count(declined.total(), "rewrite"), _count(len(declined), "reason")
        found.append(f"{rewrites} declined for {reasons}")
    if found:
        console.print()
        print_line(console, f"{', '.join(found)} (--verbose lists them)")


def describe_oracle(facts: Mapping[str, Any]) -> str:
    """Return what the oracle found, in a sentence."""
    verdict = facts.get("verdict", "not run")
    if verdict == "not run":
        return "Outputs were not compared."
    if verdict == "unchanged":
        return "The model is as it was."
    if verdict != "equal":
        reason = facts.get("reason")
        return f"Outputs were not compared: {str(reason or verdict).rstrip('.')}."
    said = _AGREEMENT.get(facts.get("promise", ""), "agree with the original's")
    feeds = facts.get("feeds") or {}
    if facts.get("promise") == "lossy" and feeds.get("samples"):
        told = describe_lossy(feeds, facts.get("error") or {}, ", which passes may be fitted to")
        return f"Outputs {said}{told}."
    told = describe_feeds(feeds)
    return f"Outputs {said}{f' on {told}' if told else ''}{_difference(facts)}."


_AGREEMENT = {
    "bitwise": "are bit by bit the original's",
    "rounding": "agree with the original's up to rounding",
    "lossy": "differ from the original's on purpose",
}


def describe_feeds(feeds: Mapping[str, Any]) -> str:
    """Return what outputs were compared on, such as ``2 of 8 batches of data``.

    Args:
        feeds: What ``Oracle.feeds_summary`` says.
    """
    samples, batches, made = (feeds.get(key) for key in ("samples", "batches", "made"))
    parts = []
    if batches and samples != batches:
        parts.append(f"{samples or 'none'} of {_count(batches, 'batch', 'batches')} of data")
    elif samples:
        parts.append(f"{_count(samples, 'batch', 'batches')} of data")
    if made:
        parts.append(_count(made, "made-up input") + _settings(feeds.get("dims") or ()))
    return " and ".join(parts)


def describe_lossy(feeds: Mapping[str, Any], error: Mapping[str, Any], caveat: str = "") -> str:
    """Return how far the outputs of a lossy change are apart, to append to a sentence.

    With data, differences are those on data alone; see ``Oracle.check``.

    Args:
        feeds: What ``Oracle.feeds_summary`` says; it has samples.
        error: What ``Comparison.to_json`` says.
        caveat: To append to what the data are.
    """
    data = describe_feeds({**feeds, "made": 0}) + caveat
    made = describe_feeds({**feeds, "samples": 0, "batches": 0})
    finite = f"; on {made} they are finite" if made else ""
    return f" on {data}{describe_difference(error)}{finite}"


def _settings(dims: Iterable[Mapping[str, int]]) -> str:
    """Return the sizes that dynamic dimensions had, to append to a count of inputs."""
    settings = [each for each in dims if each]
    if not settings:
        return ""
    if max(map(len, settings)) > 4:
        return f" ({_count(len(settings), 'setting')} of {len(settings[0])} dynamic dimensions)"
    shown = (" ".join(f"{name}={size}" for name, size in each.items()) for each in settings)
    return f" ({'; '.join(shown)})"


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _difference(facts: Mapping[str, Any]) -> str:
    """Return how far the outputs are apart, to append to a sentence."""
    error = facts.get("error")
    if not isinstance(error, Mapping) or facts.get("promise") == "bitwise":
        return ""
    return describe_difference(error)


def describe_difference(error: Mapping[str, Any]) -> str:
    """Return how far outputs are apart, to append to a sentence; empty if nobody knows.

    Args:
        error: What ``Comparison.to_json`` says.
    """
    largest, relative, sqnr = (error.get(key) for key in ("max_abs", "max_rel", "sqnr_db"))
    if not isinstance(largest, float):
        return ""
    if not largest and not relative:
        return ", without any difference"
    more = [f"{relative:.2g} of their RMS"] if isinstance(relative, float) else []
    more += [f"SQNR {sqnr:.1f} dB"] if isinstance(sqnr, float) else []
    told = f" ({', '.join(more)})" if more else ""
    return f"; they differ by at most {largest:.2g}{told}"


def make_table(*headings: str) -> Table:
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


def make_text(text: str, style: str = "") -> Text:
    """Return text to print as it is, control characters escaped."""
    from rich.text import Text

    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text(safe, style)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line."""
    console.print(make_text(text, style))


def print_list(console: Console, heading: str, lines: Iterable[str], style: str = "bold") -> None:
    """Print a heading and lines below it, or nothing if there are none."""
    from rich.padding import Padding

    shown = list(lines)
    if shown:
        console.print()
        print_line(console, heading, style)
        for line in shown:
            console.print(Padding(make_text(line), (0, 0, 0, 2), expand=False))

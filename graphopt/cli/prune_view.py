"""What ``graphopt prune`` prints: what is left, and what each group loses and would lose."""

from __future__ import annotations

import math
import re
from collections import defaultdict
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
    from rich.text import Text

    from graphopt.manager.report import PassRecord, Report
    from graphopt.manager.runner import Result

__all__ = ["curve", "show_result"]

# Groups and reasons that are listed without -v, and names with each reason.
_GROUPS = 24
_SHOWN = 5
_NAMES = 3
_BARS = "▁▂▃▄▅▆▇█"
# Noise below is drawn like none.
_QUIET_DB = -60.0
_PLANS = {"macs": "multiply-accumulates", "params": "parameters", "bytes": "bytes of weights"}


def show_result(
    out: Console,
    result: Result,
    files: list[Path],
    before: int | None,
    verbose: bool,
) -> None:
    """Print what was pruned and what it costs, or in a dry run what could be."""
    from graphopt.compressing import pruning_records

    report = result.report
    records = pruning_records(report)
    if any(record.status == "ok" for record in records):
        out.print(_summary(report, records, before, sum(f.stat().st_size for f in files)))
    for record in records:
        if record.status not in ("ok", "unchanged"):
            print_line(out, f"Not pruned ({record.text}): {record.reason}.", "bold yellow")
    if all(record.status == "unchanged" for record in records):
        print_line(out, "A dry run: nothing was changed or written.", "bold")
    for record in records:
        _show(out, record, verbose)
    told = [r for each in records for r in each.remarks if r != each.details.get("outcome")]
    print_list(out, "remarks", dict.fromkeys([*report.remarks, *told]))
    out.print()
    if files:
        print_line(out, describe_oracle(report.oracle))
    print_files(out, files, before)


# The model as a whole.


def _summary(
    report: Report, records: Sequence[PassRecord], before: int | None, after: int
) -> Table:
    table = make_table("pruned" if after else "pruned, but not written", "")
    done = [record for record in records if record.status == "ok"]
    work = [record.details["macs"] for record in done]
    table.add_row("MACs", _step(work[0][0], work[-1][1]))
    table.add_row("parameters", _step(report.before.parameters, report.after.parameters))
    size = after or report.after.bytes
    was = before or report.before.bytes
    told = f"{format_bytes(was)} -> {format_bytes(size)}  {format_change(was, size)}"
    table.add_row("size", told)
    facts = done[-1].details.get("total", done[-1].details if len(done) == 1 else {})
    table.add_row("speed", make_text(_speed(facts.get("speedup"), report.target)))
    table.add_row("quality", _quality(facts.get("quality")))
    return table


def _step(before: float, after: float) -> str:
    return f"{_count(before)} -> {_count(after)}  {format_change(before, after)}"


def _count(number: float) -> str:
    if number < 1e6:
        return f"{number:,.0f}"
    return f"{number / 1e9:,.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _speed(ratios: Sequence[float] | None, target: str) -> str:
    if not ratios:
        from graphopt.measure import runs_here
        from graphopt.targets import get

        return f"not measured: {runs_here(get(target)) or 'there are no samples to run'}"
    told = f"{ratios[0]:.2f}x as fast"
    return f"{told} on one sample, {ratios[1]:.2f}x on a batch" if len(ratios) > 1 else told


def _quality(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "not measured, for want of samples (--data)"
    ratio = "inf" if facts["sqnr_db"] is None else f"{float(facts['sqnr_db']):.1f}"
    told = f"SQNR {ratio} dB, cosine {facts['cosine']:.5f}"
    if facts["agreement"] is not None:
        told += f", {100 * facts['agreement']:.2f} % same predictions"
    which = "kept aside" if facts["aside"] else "that layers were fitted on, too"
    return f"{told} on {facts['samples']} samples {which}"


# What each pass did.


def _show(out: Console, record: PassRecord, verbose: bool) -> None:
    details = record.details
    if "layers" in details:
        _blocks(out, details["layers"], verbose)
    if "groups" not in details:
        return
    what = "heads" if record.name == "prune-heads" else "channels"
    rows = details["groups"]
    frozen = details.get("frozen", [])
    planned = details.get("left") if record.status == "unchanged" else None
    if rows or planned:
        _groups(out, what, rows, verbose, dry=record.status == "unchanged")
    else:
        out.print()
        print_line(out, f"There are no {what} that may go.")
    if planned:
        told = ", ".join(f"{planned[k]:.3f} of the {word}" for k, word in _PLANS.items())
        print_line(out, f"Left would be {told} ({record.text}).")
    if frozen and (verbose or record.status != "ok"):
        out.print()
        out.print(_every(frozen, what) if verbose else _reasons(frozen, what))


def _groups(
    out: Console, what: str, rows: Sequence[Mapping[str, Any]], verbose: bool, *, dry: bool
) -> None:
    tried = [row for row in rows if len(row["noise"]) > 1]
    timed = any(row["saved"] for row in rows)
    low, high = _bounds(tried)
    losing = [row for row in rows if row["left"] is None or row["left"] < row["channels"]]
    shown = list(rows if verbose or dry else losing)
    if not verbose and len(shown) > _GROUPS:
        # In the order of the graph, those of the most noise.
        loudest = sorted(shown, key=lambda row: -_noise_of(row))[:_GROUPS]
        shown = [row for row in shown if any(row is each for each in loudest)]
    headings = [f"{what} of", ">now" if dry else ">before", ">left"]
    headings += [">noise dB", "noise by level"] if tried else []
    headings += [">time saved"] if timed else []
    table = make_table(*headings)
    for row in shown:
        left = "?" if row["left"] is None else str(row["left"])
        cells: list[str | Text] = [make_text(row["name"]), str(row["channels"])]
        cells.append("0, the layer" if row["left"] == 0 else left)
        if tried:
            noise = 10 * math.log10(n) if 0 < (n := _noise_of(row)) < math.inf else None
            cells += ["" if noise is None else f"{noise:.1f}", make_text(curve(row, low, high))]
        if timed:
            saved = row["saved"].get(str(row["left"]), 0.0)
            cells.append(f"{100 * saved:.1f} %" if saved else "")
        table.add_row(*cells)
    out.print()
    out.print(table)
    if tried:
        print_line(
            out,
            f"bars: noise at the outputs where this group alone loses {what}, more to the right, "
            f"from {round(low)} dB ({_BARS[0]}) to {round(high)} dB ({_BARS[-1]}); · none lost, "
            "[ ] taken"
            + (", | the whole layer" if any("0" in row["noise"] for row in tried) else ""),
        )
    if len(shown) < len(rows):
        rest = len(rows) - len(shown)
        print_line(out, f"{rest} more {'group' if rest == 1 else 'groups'} (--verbose lists them)")


def curve(row: Mapping[str, Any], low: float, high: float) -> str:
    """Draw the noise of a group's levels as bars, all channels first, in brackets the one taken.

    Args:
        row: A group as passes report it: ``noise`` by number of channels left, and ``left``.
        low: Noise in dB that the lowest bar stands for.
        high: Noise in dB that the highest bar stands for.
    """
    drawn = []
    for level, noise in row["noise"].items():
        if int(level) == row["channels"]:
            bar = "·"
        else:
            decibels = 10 * math.log10(noise) if (noise := float(noise)) > 0 else -math.inf
            share = (min(max(decibels, low), high) - low) / (high - low)
            bar = _BARS[round(share * (len(_BARS) - 1))]
        bar = f"[{bar}]" if int(level) == row["left"] else bar
        drawn.append(f"|{bar}" if level == "0" else bar)
    return "".join(drawn)


def _noise_of(row: Mapping[str, Any]) -> float:
    return float(row["noise"].get(str(row["left"]), 0.0))


def _bounds(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Least and largest noise of all groups in dB, so that bars compare."""
    noises = [float(n) for row in rows for n in row["noise"].values()]
    found = [10 * math.log10(n) for n in noises if 0 < n < math.inf]
    low, high = min(found, default=_QUIET_DB), max(found, default=0.0)
    return max(low, high + _QUIET_DB), high if high > low else low + 1.0


def _blocks(out: Console, rows: Sequence[Mapping[str, Any]], verbose: bool) -> None:
    out.print()
    if not rows:
        print_line(out, "There are no layers beside shortcuts.")
        return
    gone = [row for row in rows if row["removed"] is not None]
    may = [row for row in rows if row["reason"] is None]
    shown = list(rows) if verbose else (gone or may or list(rows))[:_GROUPS]
    tried = any(row["sqnr_db"] is not None for row in shown)
    told = any(row["removed"] or row["reason"] for row in shown)
    headings = ["layer", "kind", ">nodes", *([">SQNR dB without"] if tried else [])]
    table = make_table(*headings, *([""] if told else []))
    for row in shown:
        cells: list[str | Text] = [make_text(row["name"]), row["kind"], str(row["nodes"])]
        if tried:
            cells.append("" if row["sqnr_db"] is None else f"{float(row['sqnr_db']):.1f}")
        if told:
            number, why = row["removed"], row["reason"] or ""
            cells.append(make_text(f"removed as number {number}" if number else why))
        table.add_row(*cells)
    out.print(table)
    if len(shown) < len(rows):
        rest = len(rows) - len(shown)
        word = "layer stays" if rest == 1 else "layers stay"
        print_line(out, f"{rest} more {word} (--verbose lists them)")


def _reasons(frozen: Sequence[Mapping[str, str]], what: str) -> Table:
    """Groups that stay, by reason; the most common first."""
    alike: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in frozen:
        # What is named in it differs from group to group.
        alike[re.sub(r"'[^']*'", "...", row["reason"])].append(row)
    ordered = sorted(alike.items(), key=lambda item: -len(item[1]))
    table = make_table(">frozen", "because", f"{what} of")
    for kind, rows in ordered[:_SHOWN]:
        reason = kind if len(rows) > 1 else rows[0]["reason"]
        more = f", {len(rows) - _NAMES} more" if len(rows) > _NAMES else ""
        told = ", ".join(row["name"] for row in rows[:_NAMES]) + more
        table.add_row(str(len(rows)), make_text(reason), make_text(told))
    others = sum(len(rows) for _, rows in ordered[_SHOWN:])
    if others:
        table.add_row(str(others), "for other reasons", "")
    return table


def _every(frozen: Sequence[Mapping[str, str]], what: str) -> Table:
    table = make_table(f"frozen {what} of", "because")
    for row in frozen:
        table.add_row(make_text(row["name"]), make_text(row["reason"]))
    return table

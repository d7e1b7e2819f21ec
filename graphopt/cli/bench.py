"""``graphopt bench``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import (
    check_json,
    data_option,
    json_option,
    output,
    show_json,
    target_option,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "command"]

SCHEMA = "graphopt.bench/1"


@click.command("bench")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@data_option
@target_option
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Threads within an operator.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True,
    help="Roughly how long to measure.",
)  # fmt: skip
@click.option(
    "--ort-optimizations/--no-ort-optimizations", "optimize", default=True,
    help="Let ONNX Runtime optimize both models, as its users run them (default).",
)  # fmt: skip
@json_option
def command(
    a: str,
    b: str,
    data: str | None,
    target: str | None,
    threads: int,
    seconds: float,
    optimize: bool,
    json_file: str | None,
) -> None:
    """Compare the latency of models A and B by interleaved runs.

    The speedup is one over the median, over rounds, of B's time in units of A's: above 1, B is
    faster. Both run on the first batch of the data or, without data, on one made-up input.
    """
    from graphopt import api
    from graphopt.cli.progress import busy

    check_json(json_file, Path(a), Path(b))
    target = target or "cpu"
    with busy("reading models") as say:
        first, second = api.load(a), api.load(b)
        probe = api.bench_input(first, second, data, target)
        say("measuring")
        found = api.race(
            first, second, probe, threads=threads, optimize=optimize, target=target, seconds=seconds
        )
    ratio = found["b"]
    result = {
        "schema": SCHEMA,
        "models": {"a": os.fspath(a), "b": os.fspath(b)},
        "target": target,
        "threads": threads,
        "ort_optimizations": optimize,
        "input": {"source": probe.source, "shapes": {k: _shape(v) for k, v in probe.feeds.items()}},
        "speedup": {
            "median": 1 / ratio.ratio,
            "low": 1 / ratio.ratio_high,
            "high": 1 / ratio.ratio_low,
        },
        **found.to_json(),
    }
    if not show_json(result, json_file):
        with output() as out:
            _show(out, result)


def _shape(value: Any) -> list[int] | None:
    """Shape of an input; None for what is no tensor."""
    shape = getattr(value, "shape", None)
    return None if shape is None else [int(n) for n in shape]


def _show(out: Console, result: dict[str, Any]) -> None:
    from graphopt.manager.report_view import format_seconds, make_table, print_line

    table = make_table("", "model", ">median", ">quartiles", ">rounds")
    for name, model in result["models"].items():
        t = result[name]
        quartiles = f"{format_seconds(t['low'])} to {format_seconds(t['high'])}"
        table.add_row(name, model, format_seconds(t["median"]), quartiles, f"{t['rounds']:,}")
    out.print(table)
    out.print()
    speedup = result["speedup"]
    low, high = speedup["low"], speedup["high"]
    told = f"{speedup['median']:.2f}x, quartiles {low:.2f} to {high:.2f}"
    if low <= 1 <= high:
        print_line(out, f"no clear difference: b runs at {told}", "bold")
    else:
        print_line(out, f"b is {'faster' if low > 1 else 'slower'}: {told}", "bold")
    print_line(out, _conditions(result))


def _conditions(result: dict[str, Any]) -> str:
    shapes = result["input"]["shapes"].items()
    fed = ", ".join(
        f"{k} {'x'.join(map(str, v)) or 'scalar' if v is not None else '(no tensor)'}"
        for k, v in shapes
    )
    made = "made-up input" if result["input"]["source"] == "made" else "first batch of the data"
    threads = result["threads"]
    return (
        f"on {result['target']}, {threads} thread{'s' if threads > 1 else ''}, ONNX Runtime's "
        f"optimizations {'on' if result['ort_optimizations'] else 'off'}; {made}: {fed or 'none'}"
    )

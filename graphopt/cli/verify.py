"""``graphopt verify``."""

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
    seed_option,
    show_json,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "command"]

SCHEMA = "graphopt.verify/1"

_EQUAL = {
    "bitwise": "equal bit by bit",
    "rounding": "equal up to rounding",
    "lossy": "equal in names, types and shapes",
}


@click.command("verify")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@data_option
@click.option(
    "--samples", type=click.IntRange(1), default=32, show_default=True, metavar="N",
    help="How many batches of the data to compare on, at most.",
)  # fmt: skip
@click.option(
    "--exactness", type=click.Choice(["bitwise", "rounding", "lossy"]), default="rounding",
    show_default=True,
    help="How equal outputs have to be; lossy wants the same names, types and shapes, and reports "
    "the signal-to-noise ratio.",
)  # fmt: skip
@seed_option
@json_option
def command(
    a: str,
    b: str,
    data: str | None,
    samples: int,
    exactness: str,
    seeds: tuple[int, ...],
    json_file: str | None,
) -> int:
    """Compare the outputs of models A and B, with ONNX Runtime's optimizations off.

    Exit code 0 if they are equal, 4 if they are not.
    """
    from graphopt import api, ir
    from graphopt.cli.progress import busy

    check_json(json_file, Path(a), Path(b))
    with busy("reading models") as say:
        first, second = api.load(a), api.load(b)
        say("comparing outputs")
        batches = api.samples(data, first)
        found, oracle = api.judge(
            first, second, data=batches, exactness=exactness, seeds=seeds or (0, 1), batches=samples
        )
    remarks = [*oracle.remarks, *(batches.remarks if batches is not None else ())]
    declared = ir.interface_difference(first, second)
    if declared is not None:
        remarks.append(f"declarations differ: {_short(declared)}")
    result = {
        "schema": SCHEMA,
        "a": os.fspath(a),
        "b": os.fspath(b),
        "exactness": exactness,
        **found.to_json(),
        "feeds": oracle.feeds_summary,
        "remarks": remarks,
    }
    if not show_json(result, json_file):
        with output() as out:
            _show(out, result)
    return 0 if found.ok else 4


def _show(out: Console, result: dict[str, Any]) -> None:
    from graphopt.manager.report_view import (
        describe_difference,
        describe_feeds,
        describe_lossy,
        print_line,
    )

    for remark in result["remarks"]:
        print_line(out, f"remark: {remark}")
    feeds = describe_feeds(result["feeds"])
    difference = describe_difference(result)
    if result["ok"]:
        said = _EQUAL[result["exactness"]]
        on = f" on {feeds}{difference}"
        if result["exactness"] == "lossy" and result["feeds"]["samples"]:
            on = describe_lossy(result["feeds"], result)
        print_line(out, f"{said}{on}", "bold green")
    else:
        print_line(out, f"different: {result['reason']}{difference}", "bold red")


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]} ..."

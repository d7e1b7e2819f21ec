"""``graphopt bisect``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graphopt.cli.common import (
    check_json,
    data_option,
    json_option,
    output,
    seed_option,
    show_json,
    target_option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.manager.bisect import BisectResult

__all__ = ["SCHEMA", "command"]

SCHEMA = "graphopt.bisect/1"


@click.command("bisect")
@click.argument("model", type=click.Path())
@click.option("--passes", default="O2", show_default=True, metavar="TEXT", help="Pipeline text.")
@target_option
@data_option
@seed_option
@json_option
def command(
    model: str,
    passes: str,
    target: str | None,
    data: str | None,
    seeds: tuple[int, ...],
    json_file: str | None,
) -> int:
    """Find the first rewrite of a pipeline after which MODEL computes something else.

    Exit code 0 if the whole pipeline is good, 4 if a bad rewrite was found.
    """
    from graphopt import api
    from graphopt.cli.progress import busy
    from graphopt.manager.bisect import bisect
    from graphopt.manager.text import parse
    from graphopt.runtime.session import ort
    from graphopt.targets import get

    check_json(json_file, Path(model))
    pipeline = parse(passes)
    chosen = get(target or "cpu")
    ort()
    with busy(f"reading {model}") as say:
        source = api.load(model)
        say("bisecting")
        found = bisect(
            source,
            pipeline,
            target=chosen,
            data=api.samples(data, source),
            seeds=seeds or (0,),
        )
    result = {
        "schema": SCHEMA,
        "model": os.fspath(model),
        "pipeline": str(pipeline),
        **dataclasses.asdict(found),
    }
    if not show_json(result, json_file):
        with output() as out:
            _show(out, found)
    return 0 if found.action is None else 4


def _show(out: Console, found: BisectResult) -> None:
    from graphopt.manager.report_view import print_line

    if found.action is None:
        actions = f"all {found.actions} actions are" if found.actions != 1 else "the one action is"
        print_line(out, f"{actions} good" if found.actions else "the pipeline does nothing")
        return
    print_line(
        out, f"first bad action: {found.index} of {found.actions}: {found.action}", "bold red"
    )
    print_line(out, f"in the pass: {found.within}")
    print_line(out, f"after it: {found.reason}")
    print_line(out, f"found in {found.runs} runs")

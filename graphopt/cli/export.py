"""``graphopt export``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import (
    cache_option,
    check_json,
    data_option,
    executor_option,
    json_option,
    output,
    seed_option,
    show_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.exporting import Export

__all__ = ["command"]


@click.command("export")
@click.argument("model", type=click.Path())
@click.option("--target", required=True, metavar="T", help="What to export for, such as nnapi.")
@click.option(
    "-o", "--output", "directory", type=click.Path(), metavar="DIR", required=True,
    help="Folder to write: new, empty, or an earlier export, which is replaced.",
)  # fmt: skip
@click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT:1,3,224,224",
    help="Shape of an input; repeatable. ? leaves a dimension as it is.",
)  # fmt: skip
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE",
    help="Size of a dimension that has a name; repeatable.",
)  # fmt: skip
@click.option(
    "--passes", metavar="TEXT", default="O2",
    help="Pipeline (default: O2). What the target needs is added.",
)  # fmt: skip
@data_option
@executor_option
@cache_option
@click.option(
    "--oracle", type=click.Choice(["each", "end", "off"]), default="end",
    help="Compare outputs after each pass, at the end (default), or not.",
)  # fmt: skip
@click.option(
    "--allow-violations", is_flag=True,
    help="Write the model even if the target does not take all of it.",
)  # fmt: skip
@click.option(
    "--require-verified", is_flag=True,
    help="Write nothing where outputs cannot be compared; exit code 4.",
)  # fmt: skip
@seed_option
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Show idle passes and why rewrites were declined."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    target: str,
    directory: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    data: str | None,
    seeds: tuple[int, ...],
    json_file: str | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Bring MODEL into the form that a target takes and write it to a folder.

    The folder gets model.onnx, manifest.json (providers, session options, inputs and outputs, what
    was done) and run.py, which runs it. Exit code 5, and nothing written, where the target does not
    take all of it.
    """
    from graphopt.cli.progress import Progress, busy
    from graphopt.exporting import export
    from graphopt.targets import get

    wanted: dict[str, int | Sequence[int]] = {**_shapes(shapes), **_dims(dims)}
    if seeds:
        options["seeds"] = seeds
    get(target)
    check_json(json_file, Path(model), Path(directory))
    with busy(f"reading {model}") as say:
        options["instruments"] = [Progress(say)]
        result = export(model, target, directory, shapes=wanted, data=data, **options)
    for report in result.reports:
        if report.oracle.get("verdict") == "unavailable":
            click.echo(f"warning: outputs were not compared: {report.oracle['reason']}", err=True)
    shown = {**result.manifest, "model": os.fspath(model), "directory": os.fspath(directory)}
    if not show_json(shown, json_file) and not quiet:
        with output() as out:
            _show(out, result, directory, verbose=verbose)


def _shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        parts = [p.strip() for p in sizes.split(",")] if sizes else []
        if not name or not colon or not all(p == "?" or p.isdigit() for p in parts):
            raise click.UsageError(f"--shape {text}: write INPUT:1,3,224,224, with ? for any size")
        found[name] = tuple(-1 if p == "?" else int(p) for p in parts)
    return found


def _dims(texts: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, equals, size = text.rpartition("=")
        if not name or not equals or not size.strip().isdigit():
            raise click.UsageError(f"--dim {text}: write NAME=SIZE")
        found[name.strip()] = int(size)
    return found


def _show(out: Console, result: Export, directory: str, *, verbose: bool) -> None:
    from graphopt.manager.report_view import print_line, render

    for report in result.reports:
        render(report, out, verbose=verbose)
    manifest = result.manifest
    for kind in ("inputs", "outputs"):
        for value in manifest[kind]:
            dims = value["shape"]
            shape = "?" if dims is None else ",".join("?" if d is None else str(d) for d in dims)
            print_line(out, f"{kind[:-1]} {value['name']}: {value['dtype']}[{shape}]")
    serious = [v for v in manifest["violations"] if not v["slow"]]
    took = f"{len(serious)} violations" if serious else "takes all of it"
    print_line(out, f"{manifest['target']}: {took}", "bold yellow" if serious else "bold green")
    for each in serious:
        print_line(out, f"  {each['operator'] or 'model'} {each['node'] or ''}: {each['reason']}")
    size = sum(each["bytes"] for each in manifest["files"])
    print_line(
        out, f"wrote {directory}: {', '.join(f.name for f in result.files)} ({size:,} bytes)"
    )

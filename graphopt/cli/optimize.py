"""``graphopt optimize``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from graphopt.cli.common import (
    cache_option,
    check_json,
    check_writable,
    data_option,
    executor_option,
    json_option,
    output,
    seed_option,
    show_json,
    target_option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt import ir
    from graphopt.cli.progress import Say
    from graphopt.manager.config import Config
    from graphopt.manager.instruments import Reproducer
    from graphopt.manager.runner import Result

__all__ = ["View", "command", "optimize", "print_files"]

# Prints a result: to what, which, the files written, the bytes of the original, and how much.
View: TypeAlias = "Callable[[Console, Result, list[Path], int | None, bool], None]"


@click.command("optimize")
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", "destination", type=click.Path(), metavar="OUTPUT", required=True,
    help="Where to write the result; MODEL itself is allowed.",
)  # fmt: skip
@click.option(
    "-O", "level", type=click.IntRange(0, 3), metavar="LEVEL",
    help="-O0 nothing, -O1 bitwise equal, -O2 equal up to rounding (default), -O3 tries more.",
)  # fmt: skip
@click.option("--passes", metavar="TEXT", help="Pipeline text, such as cleanup,fold-constants.")
@click.option("--config", type=click.Path(), help="TOML file that describes the pipeline.")
@target_option
@data_option
@click.option(
    "--oracle", type=click.Choice(["each", "end", "off"]), default=None,
    help="Compare outputs after each pass, at the end (default), or not.",
)  # fmt: skip
@click.option(
    "--on-mismatch", type=click.Choice(["revert", "raise"]), default=None,
    help="Undo a pass that fails its check and go on (default), or stop and write nothing.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(["cost", "bytes", "nodes", "none"]), default=None,
    help="What no pass may make worse (default: estimated cost).",
)  # fmt: skip
@click.option("--allow-growth", is_flag=True, default=None, help="Let the file become larger.")
@click.option(
    "--external-data/--inline", default=None,
    help="Weights in a file of their own, or in the model; by default as in MODEL, and above 2 GB.",
)  # fmt: skip
@click.option(
    "--require-verified", is_flag=True,
    help="Write nothing where outputs cannot be compared; exit code 4.",
)  # fmt: skip
@seed_option
@executor_option
@cache_option
@click.option("--dump", type=click.Path(), metavar="DIR", help="Write the model after each change.")
@click.option(
    "--reproducer", type=click.Path(), metavar="DIR",
    help="Where to write what reproduces the first pass that fails.",
)  # fmt: skip
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Show idle passes and why rewrites were declined."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    destination: str,
    level: int | None,
    passes: str | None,
    config: str | None,
    external_data: bool | None,
    dump: str | None,
    reproducer: str | None,
    json_file: str | None,
    require_verified: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run a pipeline over MODEL and write the result, checked, to OUTPUT.

    OUTPUT may be MODEL itself: at any moment it holds either the old model or the new one.
    """
    if sum(x is not None for x in (level, passes, config)) > 1:
        raise click.UsageError("-O, --passes and --config exclude each other")
    settings = _settings(level, passes, config, options)
    optimize(
        settings, Path(model), Path(destination), external_data=external_data, dump=dump,
        reproducer=reproducer, require_verified=require_verified, json_file=json_file,
        verbose=verbose, quiet=quiet,
    )  # fmt: skip


def _settings(
    level: int | None, passes: str | None, config: str | None, options: dict[str, Any]
) -> Config:
    import dataclasses

    from graphopt.manager.config import Config, load_config
    from graphopt.manager.text import parse

    if config is not None:
        base = load_config(config)
    else:
        text = passes if passes is not None else f"O{2 if level is None else level}"
        base = Config(pipeline=parse(text))
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    if given.get("objective") == "none":
        given["objective"] = None
    if "data" in given:
        given["data"] = Path(given["data"])
    if "cache" in given:
        given["cache"] = Path(given["cache"])
    return dataclasses.replace(base, **given)


def optimize(
    config: Config,
    model: Path,
    destination: Path | None,
    *,
    external_data: bool | None = None,
    dump: str | None = None,
    reproducer: str | None = None,
    require_verified: bool = False,
    json_file: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    accept: Callable[[Result, ir.Model], None] | None = None,
    view: View | None = None,
) -> None:
    """Run a configuration and report it.

    Args:
        config: What to run and how.
        model: The file to read.
        destination: The file to write; None writes nothing.
        external_data: Whether weights go into a file of their own.
        dump: Folder for the model as text after each change.
        reproducer: Folder for what reproduces a failure.
        require_verified: Whether to write nothing where outputs could not be compared.
        json_file: Where the report goes as JSON.
        verbose: Report what found nothing to do, too.
        quiet: Print nothing.
        accept: Given the result and the original, raises what is wrong with the result, which then
            is not written; where its goal is not met, it is reported all the same.
        view: Prints the result.

    Raises:
        GoalNotMet: What ``accept`` says.
    """
    from graphopt import api, ir
    from graphopt.cli.progress import busy
    from graphopt.errors import GoalNotMet
    from graphopt.manager.instruments import Reproducer
    from graphopt.targets import get

    get(config.target)
    samples = [] if config.data is None else [config.data]
    written = [] if destination is None else [destination]
    for each in written:
        check_writable(each)
        check_json(str(each), *samples, option="--output")
    check_json(json_file, model, *written, *samples)
    for folder in (dump, reproducer, config.cache):
        _check_folder(folder)
    keeper = None
    if reproducer is not None:
        keeper = Reproducer(
            reproducer,
            data=config.data,
            target=config.target,
            objective=config.objective,
            allow_growth=config.allow_growth,
            seeds=config.seeds,
        )
    missed: GoalNotMet | None = None
    files: list[Path] = []
    try:
        with busy(f"reading {model.name}") as say:
            source = api.load(model)
            result = _run(config, source, dump, keeper, say)
            source_bytes = ir.source_bytes(source)
            _check_verified(result, require_verified=require_verified)
            try:
                if accept is None:
                    api.require_goals(result)
                else:
                    accept(result, source)
            except GoalNotMet as e:
                missed = e
            else:
                del source  # large ones need the memory
                if destination is not None:
                    say(f"writing {destination.name}")
                    files = api.save(result.model, destination, external_data=external_data)
        data = {
            **result.report.to_json(),
            "model": os.fspath(model),
            "files": [{"path": os.fspath(f), "bytes": f.stat().st_size} for f in files],
        }
        if not show_json(data, json_file) and not quiet:
            with output() as out:
                (view or _show)(out, result, files, source_bytes, verbose)
    finally:
        if keeper is not None and keeper.written is not None:
            click.echo(f"what reproduces the first failure is in {keeper.written}", err=True)
    if missed is not None:
        raise missed


def _check_verified(result: Result, *, require_verified: bool) -> None:
    """Say it where nobody misses it: also with --quiet, and before anything is written."""
    from graphopt.errors import VerificationError

    oracle = result.report.oracle
    if oracle.get("verdict") == "unavailable":
        reason = f"outputs were not compared: {oracle['reason']}"
        if require_verified:
            raise VerificationError(reason)
        click.echo(f"warning: {reason}", err=True)
    for record in result.report.reverted:
        if "changed the numbers" in (record.reason or ""):
            click.echo(f"warning: {record.name} was undone: it {record.reason}", err=True)


def _run(
    config: Config, source: ir.Model, dump: str | None, keeper: Reproducer | None, say: Say
) -> Result:
    from graphopt import api
    from graphopt.cli.progress import Progress
    from graphopt.manager.instruments import Dump, Instrument

    instruments: list[Instrument] = [Progress(say)]
    if dump is not None:
        instruments.append(Dump(dump))
    if keeper is not None:
        instruments.append(keeper)
    return api.optimize(
        source,
        config.pipeline,
        target=config.target,
        data=config.data,
        oracle=config.oracle,
        on_mismatch=config.on_mismatch,
        objective=config.objective,
        allow_growth=config.allow_growth,
        instruments=instruments,
        seeds=config.seeds,
        executor=config.executor,
        cache=config.cache,
    )


def _show(
    out: Console,
    result: Result,
    files: list[Path],
    before: int | None,
    verbose: bool,
) -> None:
    from graphopt.manager.report_view import render

    render(result.report, out, verbose=verbose)
    print_files(out, files, before)


def print_files(out: Console, files: list[Path], before: int | None) -> None:
    """Print what was written, and its size.

    Args:
        out: Where to print.
        files: The files; without any, nothing is printed.
        before: Bytes of the original, if known.
    """
    from graphopt.manager.report_view import print_line

    if not files:
        return
    size = sum(file.stat().st_size for file in files)
    was = "" if before is None else f", was {before:,}"
    print_line(out, f"wrote {' and '.join(map(_shown, files))}: {size:,} bytes{was}")


def _check_folder(folder: str | Path | None) -> None:
    """Fail before the work if a folder cannot be made."""
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise click.UsageError(f"{folder} is not a folder")


def _shown(file: Path) -> str:
    try:
        return os.fspath(file.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(file)

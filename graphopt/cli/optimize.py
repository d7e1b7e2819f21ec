"""``graphopt optimize``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import (
    Progress,
    console,
    data_option,
    json_option,
    target_option,
    write_json,
)

if TYPE_CHECKING:
    from graphopt.manager.config import Config

__all__ = ["command", "optimize"]


@click.command("optimize")
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="Where to write the result.")
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
    help="Weights in a file of their own, or in the model; by default only above 2 GB.",
)  # fmt: skip
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed of made-up inputs; repeatable.")
@click.option("--dump", type=click.Path(), metavar="DIR", help="Write the model after each change.")
@click.option(
    "--reproducer", type=click.Path(), metavar="DIR", help="Where to write a reproducer on failure."
)
@json_option
@click.option("-v", "--verbose", is_flag=True, help="Show passes that found nothing to do, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    output: str,
    level: int | None,
    passes: str | None,
    config: str | None,
    external_data: bool | None,
    dump: str | None,
    reproducer: str | None,
    json_file: str | None,
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
        settings, Path(model), Path(output), external_data=external_data, dump=dump,
        reproducer=reproducer, json_file=json_file, verbose=verbose, quiet=quiet,
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
    return dataclasses.replace(base, **given)


def optimize(
    config: Config,
    model: Path,
    output: Path,
    *,
    external_data: bool | None = None,
    dump: str | None = None,
    reproducer: str | None = None,
    json_file: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Run a configuration and report it."""
    from graphopt import api
    from graphopt.manager.instruments import Dump, Instrument, Reproducer
    from graphopt.manager.report_view import render
    from graphopt.manager.runner import PassManager

    _check_output(output)
    bar = Progress()
    instruments: list[Instrument] = [bar]
    if dump is not None:
        instruments.append(Dump(dump))
    if reproducer is not None:
        instruments.append(Reproducer(reproducer))
    source = api.load(model)
    manager = PassManager(
        config.pipeline,
        target=config.target,
        data=api.samples(config.data, source),
        oracle=config.oracle,
        on_mismatch=config.on_mismatch,
        objective=config.objective,
        allow_growth=config.allow_growth,
        instruments=instruments,
        seeds=config.seeds,
    )
    try:
        result = manager.run(source)
    finally:
        bar.stop()
    files = api.save(result.model, output, external_data=external_data)
    data = {
        **result.report.to_json(),
        "model": os.fspath(model),
        "files": [{"path": os.fspath(f), "bytes": f.stat().st_size} for f in files],
    }
    if not write_json(data, json_file) and not quiet:
        out = console()
        render(result.report, out, verbose=verbose)
        for file in files:
            out.print(f"wrote {_shown(file)}", markup=False, highlight=False)


def _check_output(output: Path) -> None:
    """Fail before the work, not after it."""
    from graphopt.errors import ExportError

    if output.is_dir():
        raise ExportError(f"{output} is a directory")
    if not output.absolute().parent.is_dir():
        raise ExportError(f"{output} cannot be written: its folder does not exist")
    if not os.access(output.absolute().parent, os.W_OK):
        raise ExportError(f"{output} cannot be written: its folder is read-only")


def _shown(file: Path) -> str:
    try:
        return os.fspath(file.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(file)

"""``graphopt run``."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli.common import json_option

__all__ = ["command"]


@click.command("run")
@click.argument("config", type=click.Path())
@click.option("--model", type=click.Path(), help="Model to read instead of the file's.")
@click.option("-o", "--output", type=click.Path(), help="Where to write instead of the file's.")
@json_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Show idle passes and why rewrites were declined."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    config: str,
    model: str | None,
    output: str | None,
    json_file: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run what the TOML file CONFIG describes: model, output, pipeline, target, data.

    Paths in the file are relative to the file.
    """
    from graphopt.cli.optimize import optimize
    from graphopt.errors import ConfigError
    from graphopt.manager.config import load_config

    settings = load_config(config)
    source = Path(model) if model is not None else settings.model
    target = Path(output) if output is not None else settings.output
    if source is None:
        raise ConfigError(f'{config} names no model: add model = "..." or give --model')
    if target is None:
        raise ConfigError(f'{config} names no output: add output = "..." or give --output')
    optimize(settings, source, target, json_file=json_file, verbose=verbose, quiet=quiet)

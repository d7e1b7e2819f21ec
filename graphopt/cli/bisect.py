"""``graphopt bisect``."""

from __future__ import annotations

import dataclasses

import click

from graphopt.cli.common import data_option, json_option, target_option, write_json

__all__ = ["command"]


@click.command("bisect")
@click.argument("model", type=click.Path())
@click.option("--passes", default="O2", show_default=True, metavar="TEXT", help="Pipeline text.")
@target_option
@data_option
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed of made-up inputs; repeatable.")
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
    from graphopt.manager.bisect import bisect

    source = api.load(model)
    found = bisect(
        source,
        passes,
        target=target or "cpu",
        data=api.samples(data, source),
        seeds=seeds or (0,),
    )
    if not write_json(dataclasses.asdict(found), json_file):
        if found.action is None:
            click.echo(f"all {found.actions} actions are good")
        else:
            click.echo(f"first bad action: {found.index} of {found.actions}: {found.action}")
            click.echo(f"after it: {found.reason}")
            click.echo(f"found in {found.runs} runs")
    return 0 if found.action is None else 4

"""``graphopt passes``."""

from __future__ import annotations

import dataclasses

import click

from graphopt.cli.common import console, json_option, write_json

__all__ = ["command"]


@click.command("passes")
@click.argument("name", required=False)
@json_option
def command(name: str | None, json_file: str | None) -> None:
    """List the passes and named pipelines, or explain one."""
    from graphopt.manager.registry import default_registry

    registry = default_registry()
    if name is not None:
        found = registry.describe(name)
        if not write_json(dataclasses.asdict(found), json_file):
            click.echo(str(found))
        return
    names, pipelines = registry.names(), registry.pipelines()
    described = {each: registry.describe(each) for each in names if each not in pipelines}
    data = {
        "passes": {k: dataclasses.asdict(v) for k, v in described.items()},
        "pipelines": pipelines,
        "problems": registry.problems(),
    }
    if write_json(data, json_file):
        return
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False)
    for heading in ("pass", "exactness", "what it does"):
        table.add_column(heading)
    for key, each in described.items():
        table.add_row(key, each.exactness or "", each.summary)
    out.print(table)
    out.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("pipeline")
    table.add_column("passes", overflow="fold")
    for key, text in pipelines.items():
        table.add_row(key, text or "(nothing)")
    out.print(table)
    for problem in registry.problems():
        click.echo(f"warning: {problem}", err=True)

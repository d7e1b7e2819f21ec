"""``graphopt passes``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import check_json, json_option, output, show_json

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.manager.describe import Description
    from graphopt.manager.registry import Registry

__all__ = ["SCHEMA", "command"]

SCHEMA = "graphopt.passes/1"


@click.command("passes")
@click.argument("name", required=False)
@json_option
def command(name: str | None, json_file: str | None) -> None:
    """List the passes and named pipelines, or explain the one called NAME."""
    from graphopt.manager.registry import default_registry

    check_json(json_file)
    registry = default_registry()
    if name is not None:
        found = registry.describe(name)
        if not show_json({"schema": SCHEMA, **dataclasses.asdict(found)}, json_file):
            with output() as out:
                _explain(out, found)
        return
    described = {each: registry.describe(each) for each in registry.names()}
    data = {
        "schema": SCHEMA,
        "passes": {k: dataclasses.asdict(v) for k, v in described.items()},
        "pipelines": registry.pipelines(),
        "problems": registry.problems(),
    }
    if not show_json(data, json_file):
        with output() as out:
            _list(out, described, registry)


def _list(out: Console, described: dict[str, Description], registry: Registry) -> None:
    from graphopt.manager.report_view import make_table

    table = make_table("pass", "exactness", "what it does")
    for key, each in described.items():
        table.add_row(key, each.exactness, each.summary)
    out.print(table)
    out.print()
    table = make_table("pipeline", "passes")
    for key, text in registry.pipelines().items():
        # A space after the comma lets a terminal break the line there.
        table.add_row(key, text.replace(",", ", ") or "(nothing)")
    out.print(table)
    for problem in registry.problems():
        click.echo(f"warning: {problem}", err=True)


def _explain(out: Console, found: Description) -> None:
    from rich.padding import Padding

    from graphopt.manager.report_view import make_table, make_text, print_line

    def section(heading: str, body: Any) -> None:
        out.print()
        print_line(out, heading, "bold")
        out.print(Padding(body, (0, 0, 0, 2), expand=False))

    if found.kind == "pipeline":
        print_line(out, f"{found.name}: a pipeline from {found.origin}", "bold")
        section("Passes", make_text(found.summary.replace(",", ", ") or "(nothing)"))
        return
    since = f", opset {found.min_opset} or newer" if (found.min_opset or 1) > 1 else ""
    print_line(out, f"{found.name}: {found.exactness}{since}, from {found.origin}", "bold")
    print_line(out, found.summary)
    for heading, text in found.sections.items():
        # Options have a table of their own below.
        if heading != "Options" or not found.options:
            lines = text.splitlines()
            section(heading, make_text(lines[0]) if len(lines) == 1 else _paragraphs(lines))
    if found.options:
        table = make_table("option", "type", "default", "meaning")
        for option in found.options:
            default = "(required)" if option.default is None else option.default
            table.add_row(option.name, option.type, default, option.help)
        section("Options", table)


def _paragraphs(lines: list[str]) -> Any:
    """Text with its line breaks kept, since docstrings are laid out by hand."""
    from rich.console import Group

    from graphopt.manager.report_view import make_text

    return Group(*(make_text(line) for line in lines))

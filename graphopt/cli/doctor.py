"""``graphopt doctor``."""

from __future__ import annotations

import os
import platform

import click

from graphopt.cli.common import json_option, write_json

__all__ = ["command"]


@click.command("doctor")
@json_option
def command(json_file: str | None) -> int:
    """Show versions, execution providers and what is wrong with the installation.

    Exit code 2 if something graphopt needs is missing.
    """
    from graphopt.errors import RuntimeUnavailable
    from graphopt.manager.instruments import versions
    from graphopt.manager.registry import default_registry
    from graphopt.runtime.session import ort

    problems = list(default_registry().problems())
    providers: list[str] = []
    try:
        providers = list(ort().get_available_providers())
    except RuntimeUnavailable as e:
        problems.append(str(e))
    data = {
        "versions": versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "providers": providers,
        "problems": problems,
    }
    if not write_json(data, json_file):
        for name, version in data["versions"].items():  # type: ignore[attr-defined]
            click.echo(f"{name:18} {version}")
        click.echo(f"{'platform':18} {data['platform']}, {data['cpus']} CPUs")
        click.echo(f"{'providers':18} {', '.join(providers) or 'none'}")
        for problem in problems:
            click.echo(f"problem: {problem}", err=True)
    return 2 if problems else 0

"""``graphopt doctor``."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import check_json, json_option, output, show_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "command", "diagnose"]

SCHEMA = "graphopt.doctor/1"

_OPTIONAL = ("onnxsim", "torch")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@click.command("doctor")
@json_option
def command(json_file: str | None) -> int:
    """Show versions, execution providers and what is wrong with the installation.

    Exit code 2 if something graphopt needs is missing.
    """
    check_json(json_file)
    data = diagnose()
    if not show_json(data, json_file):
        with output() as out:
            _show(out, data)
    return 2 if data["problems"] else 0


def diagnose() -> dict[str, Any]:
    """Everything ``doctor`` knows, as data."""
    from concurrent.futures import ThreadPoolExecutor

    from graphopt.errors import RuntimeUnavailable
    from graphopt.manager.instruments import versions
    from graphopt.manager.registry import default_registry
    from graphopt.runtime.providers import provider_status
    from graphopt.runtime.session import ort

    registry = default_registry()
    problems = list(registry.problems())
    found = {**versions(), **{n: v for n in _OPTIONAL if (v := _version(n))}}
    if all(name in found for name in _RUNTIMES):
        problems.append(
            f"{' and '.join(_RUNTIMES)} are both installed and overwrite each other: "
            "uninstall both, then install one"
        )
    providers: list[str] = []
    try:
        providers = list(ort().get_available_providers())
    except RuntimeUnavailable as e:
        problems.append(str(e))
    with ThreadPoolExecutor() as pool:  # each waits for a process
        tried = list(pool.map(provider_status, providers))
    return {
        "schema": SCHEMA,
        "versions": found,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "providers": providers,
        "provider_status": {each.provider: each.reason or "ok" for each in tried},
        "passes": len(registry.names()),
        "pipelines": len(registry.pipelines()),
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _show(out: Console, data: dict[str, Any]) -> None:
    from graphopt.manager.report_view import print_line

    lines = {
        **data["versions"],
        "platform": f"{data['platform']}, {data['cpus']} CPUs",
        **(data["provider_status"] or {"providers": "none"}),
        "passes": f"{data['passes']}, and {data['pipelines']} named pipelines",
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print_line(out, f"{name:{width}} {text}")
    for problem in data["problems"]:
        print_line(out, f"problem: {problem}", "bold red")
    if not data["problems"]:
        print_line(out, "no problems found", "bold green")

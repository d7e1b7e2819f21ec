"""The command line. Each verb is a module of its own, loaded when it is used."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from graphopt import __version__
from graphopt.cli.failure import exit_code, explain, explain_usage

__all__ = ["cli", "main"]

# Verb -> what it does. Kept here so that --help loads none of the modules.
_VERBS = {
    "optimize": "Run a pipeline over a model and write the result.",
    "quantize": "Compute on 8-bit integers what is faster so.",
    "prune": "Remove the channels, heads and layers that outputs miss least.",
    "run": "Run what a TOML file describes.",
    "inspect": "Show operators, parameters, MACs, shapes and estimated cost.",
    "verify": "Compare the outputs of two models.",
    "bench": "Compare the latency of two models.",
    "check": "Tell which nodes a target computes, and why not the others.",
    "export": "Write a model in the form that a target takes, and how to run it.",
    "passes": "List passes and pipelines, or explain one.",
    "bisect": "Find the rewrite that makes a model wrong.",
    "doctor": "Show versions and execution providers.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"graphopt.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _VERBS or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if name.startswith("-"):
            raise click.NoSuchOption(name, ctx=ctx)
        raise click.UsageError(f"no such command {name!r}{_hint(name)}", ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


def _hint(name: str) -> str:
    if name.endswith((".onnx", ".toml")):
        verb = "optimize" if name.endswith(".onnx") else "run"
        return f"; did you mean 'graphopt {verb} {name}'?"
    import difflib

    near = difflib.get_close_matches(name, _VERBS, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


_HELP = """Optimize trained neural networks in ONNX format, and check that they stay the same.

\b
graphopt optimize model.onnx -o smaller.onnx --data samples.npz
graphopt verify model.onnx smaller.onnx
graphopt bench model.onnx smaller.onnx
"""
_EPILOG = """\b
Completion, in the start-up file of bash (or zsh, with zsh_source):
  eval "$(_GRAPHOPT_COMPLETE=bash_source graphopt)"
"""


@click.group(
    cls=_Verbs,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="graphopt")
def cli() -> None:
    """The command line; its help is above."""


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; ``sys.argv`` by default.

    Returns:
        Exit code: 0 ok, 1 internal error, 2 usage or configuration, 3 unreadable or unsupported
        input model, 4 verification failed, 5 target violations, 6 goal not met, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names in a model may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        value: Any = cli.main(args, prog_name="graphopt", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as e:
        if isinstance(e.__cause__, EOFError):  # click takes it for Ctrl-D at a prompt
            explain(e.__cause__)
            return 1
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as e:
        explain_usage(e)
        return e.exit_code
    except SystemExit as e:  # click: shell completion, or a reader of --help that went away
        return e.code if isinstance(e.code, int) else 1
    except Exception as e:  # noqa: BLE001 - the boundary: a person reads what comes out here
        explain(e)
        return exit_code(e)
    return value if isinstance(value, int) else 0

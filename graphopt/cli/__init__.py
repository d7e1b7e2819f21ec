"""The command line. Each verb is a module of its own, loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from graphopt import __version__
from graphopt.cli.failure import exit_code, explain

__all__ = ["cli", "main"]

# Verb -> what it does. Kept here so that --help loads none of the modules.
_VERBS = {
    "optimize": "Run a pipeline over a model and write the result.",
    "run": "Run what a TOML file describes.",
    "inspect": "Show operators, parameters, MACs, shapes and estimated cost.",
    "verify": "Compare the outputs of two models.",
    "bench": "Compare the latency of two models.",
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
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, 1)
            if near and "did you mean" not in e.message.lower():
                e.message += f" Did you mean {near[0]!r}?"
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graphopt")
def cli() -> None:
    """Optimize trained neural networks in ONNX format, and prove that they stay the same.

    \b
    graphopt optimize model.onnx -o smaller.onnx --data samples.npz
    graphopt verify model.onnx smaller.onnx
    graphopt bench model.onnx smaller.onnx
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; ``sys.argv`` by default.

    Returns:
        Exit code: 0 ok, 1 internal error, 2 usage or configuration, 3 unreadable or unsupported
        input model, 4 verification failed, 5 target violations, 6 goal not met, 130 interrupted.
    """
    try:
        value: Any = cli.main(args, prog_name="graphopt", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as e:  # noqa: BLE001 - the boundary: a person reads what comes out here
        explain(e)
        return exit_code(e)
    return value if isinstance(value, int) else 0

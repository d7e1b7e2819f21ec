"""What a person sees when something goes wrong."""

from __future__ import annotations

import os
import sys

import click

from graphopt.errors import (
    FrontendError,
    GoalNotMet,
    GraphOptError,
    PassFailed,
    SessionError,
    TargetError,
    VerificationError,
)

__all__ = ["exit_code", "explain", "explain_usage"]

_CODES: tuple[tuple[type[GraphOptError], int], ...] = (
    (FrontendError, 3),
    (SessionError, 3),
    (PassFailed, 4),
    (VerificationError, 4),
    (TargetError, 5),
    (GoalNotMet, 6),
    (GraphOptError, 2),
)


def exit_code(error: Exception) -> int:
    """Exit code of an exception; 1 for bugs and for what the operating system refuses."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def explain(error: Exception) -> None:
    """Print one clear error; a traceback only for bugs, or where GRAPHOPT_TRACEBACK is set."""
    bug = False
    if isinstance(error, GraphOptError):
        _say(f"error: {error}")
    elif isinstance(error, MemoryError):
        _say("error: there is not enough memory")
    elif isinstance(error, OSError):  # the world's fault, such as a full disk
        _say(f"error: {error}")
    else:
        bug = True
        _say(f"internal error: {type(error).__name__}: {error}")
        _say("This is a bug in graphopt: please report it with the lines below.")
    if bug or os.environ.get("GRAPHOPT_TRACEBACK"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)


def explain_usage(error: click.ClickException) -> None:
    """Print what is wrong with the command line, and where to look."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()  # the help
        return
    import difflib

    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name!r}"
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), 1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    _say(f"error: {message[:1].lower()}{message[1:]}")
    context = getattr(error, "ctx", None)
    if isinstance(context, click.Context):
        _say(f"try '{context.command_path} --help'")


def _say(text: str) -> None:
    """Print to stderr; names from models must not steer the terminal."""
    safe = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    click.echo("".join(safe), err=True)

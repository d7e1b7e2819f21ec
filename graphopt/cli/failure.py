"""What a person sees when something goes wrong."""

from __future__ import annotations

import os
import sys

import click

from graphopt.errors import (
    FrontendError,
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
    (GraphOptError, 2),
)


def exit_code(error: Exception) -> int:
    """Exit code of an exception; 1 for those that are bugs, and for a lack of memory."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def explain(error: Exception) -> None:
    """Print one clear error; a traceback only for bugs, and for those who ask for it."""
    if isinstance(error, GraphOptError):
        _say(f"error: {error}")
        bug = False
    elif isinstance(error, MemoryError):
        _say("error: there is not enough memory")
        bug = False
    else:
        _say(f"internal error: {type(error).__name__}: {error}")
        _say("This is a bug in graphopt: please report it with the lines below.")
        bug = True
    if bug or os.environ.get("GRAPHOPT_TRACEBACK"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)


def explain_usage(error: click.ClickException) -> None:
    """Print what is wrong with the command line, and where to look."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()  # the help
        return
    message = error.format_message().rstrip(".")
    _say(f"error: {message[:1].lower()}{message[1:]}")
    context = getattr(error, "ctx", None)
    if isinstance(context, click.Context):
        _say(f"try '{context.command_path} --help'")


def _say(text: str) -> None:
    """Print to stderr; names from models must not steer the terminal."""
    safe = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    click.echo("".join(safe), err=True)

"""What a person sees when something goes wrong."""

from __future__ import annotations

import os
import sys
import traceback

import click

from graphopt.errors import (
    FrontendError,
    GraphOptError,
    PassFailed,
    SessionError,
    TargetError,
    VerificationError,
)

__all__ = ["exit_code", "explain"]

_CODES: tuple[tuple[type[GraphOptError], int], ...] = (
    (FrontendError, 3),
    (SessionError, 3),
    (PassFailed, 4),
    (VerificationError, 4),
    (TargetError, 5),
    (GraphOptError, 2),
)


def exit_code(error: Exception) -> int:
    """Exit code of an exception; 1 for those that are bugs."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def explain(error: Exception) -> None:
    """Print one clear error; a traceback only for bugs, and for those who ask for it."""
    if isinstance(error, GraphOptError):
        click.echo(f"error: {error}", err=True)
        if not os.environ.get("GRAPHOPT_TRACEBACK"):
            return
    else:
        click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
        click.echo("This is a bug in graphopt: please report it with the lines below.", err=True)
    traceback.print_exception(error, file=sys.stderr)

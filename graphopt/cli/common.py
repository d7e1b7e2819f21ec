"""What several verbs share: options, JSON, and output that survives a closed pipe."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from graphopt.errors import ExportError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "budget_options",
    "cache_option",
    "check_json",
    "check_writable",
    "console",
    "data_option",
    "executor_option",
    "json_option",
    "output",
    "seed_option",
    "show_json",
    "target_option",
    "write_text",
]

F = TypeVar("F", bound=Callable[..., Any])

# Wider than any line: what goes into a file or a pipe is not wrapped.
_UNBOUNDED = 100_000


def console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console that takes text as it is, and wraps it for terminals only (or at ``COLUMNS``)."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    wraps = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=stderr,
        file=file,
        width=None if wraps else _UNBOUNDED,
        markup=False,
        highlight=False,
        emoji=False,
    )


@contextlib.contextmanager
def output() -> Iterator[Console]:
    """Yield a console to print the result of a command to.

    Whoever reads it may stop to, as ``head`` does: that is no error and changes no exit code.

    Raises:
        ExportError: It cannot be written for another reason, such as a full disk.
    """
    try:
        if sys.stdout.isatty():
            yield console()
        else:
            text = io.StringIO()
            out = console(file=text)
            yield out
            # Tables pad their last column.
            lines = text.getvalue().split("\n")
            click.echo("\n".join(line.rstrip() for line in lines), nl=False)
        sys.stdout.flush()
    except OSError as e:
        # What is still buffered would fail again when the interpreter exits.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(e, BrokenPipeError):
            raise ExportError(f"standard output cannot be written: {e.strerror or e}") from e


def budget_options(f: F) -> F:
    """Options ``--max-drop`` and ``--min-sqnr``."""
    f = click.option(
        "--min-sqnr", type=float, metavar="DB", help="Least signal-to-noise ratio of the outputs."
    )(f)
    return click.option(
        "--max-drop", type=float, metavar="PERCENT",
        help="Largest share of predictions that may change.",
    )(f)  # fmt: skip


def json_option(f: F) -> F:
    """The option ``--json FILE``."""
    return click.option(
        "--json", "json_file", metavar="FILE", help="Write the result as JSON; - for stdout."
    )(f)


def data_option(f: F) -> F:
    """The option ``--data FILE.npz|DIR|MODULE:FUNCTION``."""
    return click.option(
        "--data",
        type=click.Path(),
        metavar="FILE.npz|DIR|MODULE:FUNCTION",
        help="Samples: an npz of arrays named after the inputs, samples along axis 0; a folder of "
        "npz, npy or pb files, one batch each, or of images with a preprocess.json; or a function "
        "that returns batches.",
    )(f)


def target_option(f: F) -> F:
    """The option ``--target T``."""
    return click.option(
        "--target", default=None, metavar="T", help="What to optimize for, such as cpu (default)."
    )(f)


def executor_option(f: F) -> F:
    """The option ``--executor SPEC``."""
    return click.option(
        "--executor",
        metavar="SPEC",
        help="Where calibration runs: serial, threads:N, processes:N, dask:local:N or "
        "dask:ADDRESS.",
    )(f)


def cache_option(f: F) -> F:
    """The option ``--cache DIR``."""
    return click.option(
        "--cache", type=click.Path(), metavar="DIR", help="Keep results of calibration in a folder."
    )(f)


def seed_option(f: F) -> F:
    """The option ``--seed N``, repeatable."""
    return click.option(
        "--seed",
        "seeds",
        type=click.IntRange(0),
        multiple=True,
        metavar="N",
        help="Seed of made-up inputs; repeatable.",
    )(f)


def show_json(data: dict[str, Any], file: str | None) -> bool:
    """Write JSON where the user asked for it.

    Returns:
        Whether it went to stdout, so that nothing else may.

    Raises:
        ExportError: The file cannot be written.
    """
    if file is None:
        return False
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if file == "-":
        with output():
            click.echo(text, nl=False)
        return True
    write_text(text, file)
    return False


def write_text(text: str, file: str) -> None:
    """Write a file atomically, or into a device or pipe.

    Raises:
        ExportError: The file cannot be written.
    """
    path = Path(file)
    try:
        if _special(path):
            path.write_text(text, encoding="utf-8")
        else:
            from graphopt import ir

            ir.atomic_write(Path(os.path.realpath(path)), text.encode())
    except OSError as e:
        raise ExportError(f"{file} cannot be written: {e.strerror or e}") from e


def check_json(file: str | None, *others: Path, option: str = "--json") -> None:
    """Fail before the work if JSON cannot be written, or would overwrite another file.

    Args:
        file: The value of ``--json``.
        others: Files that the command reads or writes besides.
        option: Another option that says where to write.

    Raises:
        ExportError: It cannot be written.
        click.UsageError: It is one of the others.
    """
    if file is None or file == "-":
        return
    path = Path(file)
    for other in others:
        if os.path.realpath(path) == os.path.realpath(other):
            raise click.UsageError(f"{option} would overwrite {other}")
    if not _special(path):
        check_writable(path)


def check_writable(path: Path) -> None:
    """Fail before the work, not after it.

    Raises:
        ExportError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise ExportError(f"{path} cannot be written: it is a directory")
    if _special(target):
        raise ExportError(f"{path} cannot be written: it is not a regular file")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise ExportError(f"{path} cannot be written: it is read-only")
    if not os.path.isdir(target.parent):
        raise ExportError(f"{path} cannot be written: there is no folder {target.parent}")
    # Only an attempt tells: permissions say little about network and read-only file systems.
    attempt = target.with_name(f".{target.name}.{os.getpid()}.graphopt-tmp")
    try:
        attempt.touch()
        attempt.unlink()
    except OSError as e:
        raise ExportError(f"{path} cannot be written: {e.strerror or e}") from e


def _special(path: Path) -> bool:
    """Whether a path is a device or a pipe, which must be written to and never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)

"""What several verbs share: consoles, JSON output, options, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from graphopt.errors import ExportError
from graphopt.manager.instruments import Instrument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from graphopt import ir
    from graphopt.manager.base import Pass, Pipeline
    from graphopt.manager.report import Report

__all__ = ["Progress", "console", "data_option", "json_option", "target_option", "write_json"]

F = TypeVar("F", bound=Callable[..., Any])


def console(*, stderr: bool = False) -> Console:
    """A console that neither wraps nor colors what goes into a file or a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120, soft_wrap=False)


def json_option(f: F) -> F:
    """The option ``--json FILE``."""
    return click.option(
        "--json", "json_file", metavar="FILE", help="Write the result as JSON; - for stdout."
    )(f)


def data_option(f: F) -> F:
    """The option ``--data FILE.npz|DIR``."""
    return click.option(
        "--data",
        type=click.Path(),
        metavar="FILE.npz|DIR",
        help="Samples: an npz of arrays named after the inputs, samples along axis 0, or a folder "
        "of npz or pb files, one batch each.",
    )(f)


def target_option(f: F) -> F:
    """The option ``--target T``."""
    return click.option("--target", default=None, metavar="T", help="What to optimize for.")(f)


def write_json(data: Any, file: str | None) -> bool:
    """Write JSON where the user asked for it.

    Returns:
        Whether it went to stdout, so that nothing else may.

    Raises:
        ExportError: The file cannot be written.
    """
    if file is None:
        return False
    text = json.dumps(data, indent=2) + "\n"
    if file == "-":
        click.echo(text, nl=False)
        return True
    from graphopt import ir

    try:
        ir.atomic_write(Path(file).absolute(), text.encode())
    except OSError as e:
        raise ExportError(f"{file} cannot be written: {e.strerror or e}") from e
    return False


class Progress(Instrument):
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: Any = None

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Show the bar."""
        if not sys.stderr.isatty():
            return
        from rich.progress import Progress as RichProgress

        self.stop()
        self._bar = RichProgress(console=console(stderr=True), transient=True)
        self._task = self._bar.add_task("optimizing", total=sum(1 for _ in pipeline.leaves()))
        self._bar.start()

    def before_pass(self, each: Pass, model: ir.Model) -> None:
        """Name the pass."""
        if self._bar is not None:
            self._bar.update(self._task, description=each.name)

    def after_pass(self, each: Pass, model: ir.Model, record: Any) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def after_run(self, report: Report) -> None:
        """Remove the bar."""
        self.stop()

    def stop(self) -> None:
        """Remove the bar, whatever happened."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

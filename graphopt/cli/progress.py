"""What is going on, on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from graphopt.manager.instruments import Instrument

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.base import Pass, Pipeline
    from graphopt.manager.report import PassRecord

__all__ = ["Progress", "Say", "busy"]

Say = Callable[[str], None]


@contextlib.contextmanager
def busy(text: str) -> Iterator[Say]:
    """Show a spinner and a text, which the function that this yields changes."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.text import Text

    from graphopt.cli.common import console

    with console(stderr=True).status(Text(text)) as status:
        yield lambda changed: status.update(Text(changed))


class Progress(Instrument):
    """Says which pass runs.

    Args:
        say: Where to.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._done = self._total = 0

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Count the passes."""
        self._done, self._total = 0, sum(1 for _ in pipeline.leaves())

    def before_pass(self, each: Pass, model: ir.Model) -> None:
        """Name the pass."""
        # Passes that are repeated until nothing changes come up more often than they are listed.
        number = f"{self._done + 1} of {self._total}: " if self._done < self._total else ""
        self._say(f"{number}{each.name}")

    def after_pass(self, each: Pass, model: ir.Model, record: PassRecord) -> None:
        """Count it; what comes after the last one is the comparison of outputs."""
        self._done += 1
        self._say("comparing outputs")

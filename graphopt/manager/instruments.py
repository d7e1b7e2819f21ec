"""Instruments observe a run, or keep actions of it from happening; they never change the model."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt import ir
from graphopt.errors import ConfigError

if TYPE_CHECKING:
    from graphopt.manager.base import Pass, Pipeline
    from graphopt.manager.report import PassRecord, Report

__all__ = ["Dump", "Fuel", "Instrument", "Reproducer", "versions"]


def versions() -> dict[str, str]:
    """Version of Python and of each library that takes part in a run; absent ones are left out."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("graphopt", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Instrument:
    """Base of instruments: every hook does nothing, so override what you need.

    A run may take several attempts: when a pass has to be undone, the pipeline starts again from
    the input without it. ``before_run`` marks the beginning of each.
    """

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Before the first pass of an attempt."""

    def should_run(self, action: str) -> bool:
        """Whether an action, a pass or a single rewrite, may happen."""
        return True

    def before_pass(self, each: Pass, model: ir.Model) -> None:
        """Before a pass runs."""

    def after_pass(self, each: Pass, model: ir.Model, record: PassRecord) -> None:
        """After a pass ran and was checked."""

    def on_failure(self, each: Pass, model: ir.Model, error: Exception) -> None:
        """After a pass raised, broke the model, or failed its check; ``model`` is as it left it."""

    def after_run(self, report: Report) -> None:
        """After the last attempt."""


class Fuel(Instrument):
    """Lets a number of actions happen and no more, as LLVM's -opt-bisect-limit.

    Attributes:
        limit: Actions that may happen.
        count: Actions that asked.
        last: The last action that was let through.
        within: The pass it belongs to.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.count, self.last, self.within = limit, 0, "", ""

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Start counting."""
        self.count, self.last, self.within = 0, "", ""

    def before_pass(self, each: Pass, model: ir.Model) -> None:
        """Remember the pass that rewrites belong to."""
        self.within = str(each)

    def should_run(self, action: str) -> bool:
        """Count the action; allow it below the limit."""
        self.count += 1
        if self.count > self.limit:
            return False
        self.last = action
        return True


class Dump(Instrument):
    """Writes the model as text after passes: ``012_fuse-batch-norm.txt``.

    Args:
        directory: Where to; made if missing. Files of earlier dumps in it are replaced.
        when: After each pass, or only after those that changed something.
    """

    def __init__(
        self, directory: str | os.PathLike[str], when: Literal["changed", "each"] = "changed"
    ) -> None:
        self.directory, self.when, self.count = Path(directory), when, 0

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Write the input."""
        self.count = 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for old in self.directory.glob("[0-9][0-9][0-9]_*.txt"):
                old.unlink()
        except OSError as e:
            raise ConfigError(f"cannot dump to {self.directory}: {e.strerror or e}") from e
        self._write("input", model)

    def after_pass(self, each: Pass, model: ir.Model, record: PassRecord) -> None:
        """Write the model."""
        self.count += 1
        if record.status == "ok" or self.when == "each":
            self._write(each.name, model)

    def on_failure(self, each: Pass, model: ir.Model, error: Exception) -> None:
        """Write what the pass left behind."""
        self._write(f"{each.name}_failed", model)

    def _write(self, name: str, model: ir.Model) -> None:
        text = ir.dump(model)
        (self.directory / f"{self.count:03}_{name}.txt").write_text(text, encoding="utf-8")


class Reproducer(Instrument):
    """Writes a folder that reproduces the first failure.

    It holds the input model, the samples, the pipeline up to the failing pass, versions, the
    traceback, the model as text as the pass left it, and ``repro.py``, which runs it.

    Args:
        directory: The folder; made when it is needed.
        data: The samples that outputs were compared on, a file or a folder, which is
            copied, or ``module:function``.
        **options: Further arguments of the pass manager, such as ``target`` and ``seeds``.

    Attributes:
        written: The folder, once a failure was met.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        data: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.directory = Path(directory)
        self._data = None if data is None else Path(data)
        self._options = options
        self.written: Path | None = None
        self._input: ir.Model | None = None
        self._done: list[str] = []

    def before_run(self, pipeline: Pipeline, model: ir.Model) -> None:
        """Remember the input."""
        self._done = []
        self._input = ir.clone(model)

    def before_pass(self, each: Pass, model: ir.Model) -> None:
        """Remember the passes."""
        self._done.append(str(each))

    def on_failure(self, each: Pass, model: ir.Model, error: Exception) -> None:
        """Write the folder."""
        if self.written is not None or self._input is None:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            ir.save(self._input, self.directory / "input.onnx")
            self._text("pipeline.txt", ",".join(self._done))
            self._text("versions.json", json.dumps(versions(), indent=2))
            self._text("traceback.txt", "".join(traceback.format_exception(error)))
            self._text("after.txt", ir.dump(model))
            self._text("repro.py", self._script())
        except OSError as e:
            raise ConfigError(f"cannot write to {self.directory}: {e.strerror or e}") from e
        self.written = self.directory

    def _script(self) -> str:
        options = {"oracle": "each", "on_mismatch": "raise", **self._options}
        lines = "".join(f"    {key}={value!r},\n" for key, value in options.items())
        if self._data is not None:
            copy = self.directory / f"data{self._data.suffix}"
            source = f"here / {copy.name!r}"
            if self._data.is_dir():
                shutil.copytree(self._data, copy, dirs_exist_ok=True)
            elif self._data.exists():
                shutil.copyfile(self._data, copy)
            else:
                source = repr(str(self._data))  # a function
            lines += f"    data=graphopt.calibration.load_data({source}, model),\n"
        return _REPRO.replace("    OPTIONS\n", lines)

    def _text(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


_REPRO = '''\
"""Reproduce the failure that traceback.txt shows.

A pass that a script registers has to be imported here first.
"""

from pathlib import Path

import graphopt

here = Path(__file__).parent
pipeline = (here / "pipeline.txt").read_text().strip()
model = graphopt.load(here / "input.onnx")
graphopt.PassManager(
    pipeline,
    OPTIONS
).run(model)
'''

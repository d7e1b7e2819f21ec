"""What runs where the executor runs it: a piece of the data through the model, observed.

Everything here can be imported by another process, and tasks can be pickled. A session cannot, so a
process opens its own and keeps it for the tasks to come.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from graphopt.calibration.observers import Observer
from graphopt.errors import CalibrationError, SessionError
from graphopt.runtime.session import ModelSource, Session, open_session
from graphopt.runtime.values import Feeds

__all__ = ["Missing", "Plan", "Task", "lend", "observe", "open_observed", "run_file", "run_task"]

# Sessions a process keeps: the model at hand, and the one before it.
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all tasks of one collection have in common.

    Attributes:
        key: Identifies the model and what it puts out.
        path: File of the model; None where the session is lent, or nothing needs to be computed.
        inputs: Watched values that are inputs of the model, with their observers, empty.
        outputs: Watched values that the model puts out, likewise.
        sizes: Expected bytes of each of ``outputs``.
        budget: Bytes of outputs that one run may leave in memory.
    """

    key: str
    path: Path | None
    inputs: dict[str, list[Observer]]
    outputs: dict[str, list[Observer]]
    sizes: dict[str, int]
    budget: int


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of the data.

    Attributes:
        plan: What to do with it.
        batches: Where each batch comes from, and its values by input.
        model: The serialized model, where the worker has said that it cannot read the file.
    """

    plan: Plan
    batches: list[tuple[str, Feeds]]
    model: bytes | None = None


class Missing:
    """Says that the worker has neither the model nor its file: another machine, most likely."""


@dataclasses.dataclass
class _Loaded:
    session: Session
    sizes: dict[str, int]


_loaded: OrderedDict[str, _Loaded] = OrderedDict()
_lent: dict[str, _Loaded] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def lend(plan: Plan, session: Session) -> Iterator[None]:
    """Let the tasks of a plan that run in this process use a session."""
    _lent[plan.key] = _Loaded(session, dict(plan.sizes))
    try:
        yield
    finally:
        del _lent[plan.key]


def run_task(task: Task) -> dict[str, list[Observer]] | Missing:
    """Run and observe a piece of the data.

    Returns:
        Observers by the name of what they saw.

    Raises:
        CalibrationError: A value cannot be observed, or the model does not run on a batch.
    """
    plan = task.plan
    observers: dict[str, list[Observer]] = copy.deepcopy({**plan.inputs, **plan.outputs})
    loaded = _load(task) if plan.outputs else None
    if plan.outputs and loaded is None:
        return Missing()
    for where, feeds in task.batches:
        for name in plan.inputs:
            if name in feeds:
                observe(observers[name], feeds[name], name, where)
        if loaded is not None:
            _run(plan, loaded, observers, where, feeds)
    return observers


def _run(
    plan: Plan, loaded: _Loaded, observers: dict[str, list[Observer]], where: str, feeds: Feeds
) -> None:
    for group in _groups(plan, loaded.sizes):
        try:
            found = loaded.session.run(feeds, outputs=group)
        except SessionError as e:
            raise CalibrationError(f"{where}: the model does not run on it: {e}") from e
        for name in group:
            value = found.pop(name)
            size = value.nbytes if isinstance(value, np.ndarray) else 0
            loaded.sizes[name] = max(size, loaded.sizes[name])
            observe(observers[name], value, name, where)


def run_file(path: Path) -> Path:
    """Run a task that lies in a file, and leave the result in another one.

    A pool of processes waits forever for the rest of a result if its worker is killed while sending
    it. Names of files are short enough to be sent as a whole or not at all.
    """
    data = path.read_bytes()
    path.unlink()
    found = run_task(pickle.loads(data))
    handle, name = tempfile.mkstemp(dir=path.parent)
    with open(handle, "wb") as file:
        pickle.dump(found, file, protocol=pickle.HIGHEST_PROTOCOL)
    return Path(name)


def observe(observers: Iterable[Observer], value: object, name: str, where: str) -> None:
    """Show a value to observers.

    Raises:
        CalibrationError: They refuse it; the message names the value and the batch.
    """
    if not isinstance(value, np.ndarray):
        raise CalibrationError(f"{where}: %{name} is no tensor, which alone can be observed")
    try:
        for observer in observers:
            observer.update(value)
    except CalibrationError as e:
        raise CalibrationError(f"{where}: %{name} {e}") from e


def _load(task: Task) -> _Loaded | None:
    plan = task.plan
    if plan.key in _lent:
        return _lent[plan.key]
    with _lock:
        if plan.key not in _loaded:
            if task.model is None and (plan.path is None or not plan.path.exists()):
                return None
            source = plan.path if task.model is None else task.model
            assert source is not None
            while len(_loaded) >= _KEPT:
                _loaded.popitem(last=False)
            _loaded[plan.key] = _Loaded(open_observed(source), dict(plan.sizes))
        _loaded.move_to_end(plan.key)
        return _loaded[plan.key]


def open_observed(model: ModelSource) -> Session:
    """Open a session that computes all watched values.

    ONNX Runtime may optimize the model, which halves the time: what is watched is an output and so
    survives, and rounds as it will when the model is used. One thread: tasks run side by side.
    """
    return open_session(model, optimize=True, threads=1)


def _groups(plan: Plan, sizes: dict[str, int]) -> Iterator[Sequence[str]]:
    """Split the outputs so that each part is within the budget, by the sizes seen so far."""
    group: list[str] = []
    total = 0
    for name in plan.outputs:
        if group and total + sizes[name] > plan.budget:
            yield group
            group, total = [], 0
        group.append(name)
        total += sizes[name]
    if group:
        yield group

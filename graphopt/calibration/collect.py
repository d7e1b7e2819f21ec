"""Collecting: samples go through the model, observers watch values inside it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import itertools
import os
import pickle
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration import watched, worker
from graphopt.calibration.executors import Processes, Restartable, Serial, workers
from graphopt.calibration.fitting import fitting
from graphopt.calibration.observers import Observer
from graphopt.calibration.samples import Samples
from graphopt.calibration.worker import Missing, Plan, Task
from graphopt.errors import CalibrationError
from graphopt.runtime.values import Feeds

__all__ = ["Watch", "collect"]

Watch = Mapping[str, "Observer | Sequence[Observer]"]
Found = dict[str, list[Observer]]

# A task is as many batches as this, or fewer that reach so many bytes. It must not depend on the
# executor: what is summed in floating point is summed task by task.
_BATCHES = 8
_BYTES = 4 << 20
# Bytes of watched values that one run may leave in memory; a model is run again for what is beyond.
_BUDGET = 128 << 20
# Bytes of watched values up to which two batches at a time are no burden, if nobody says otherwise.
_SMALL = 32 << 20
# Times in a row that an executor is started again before its failing counts as the task's fault.
_RESTARTS = 3


def collect(
    model: ir.Model,
    watch: Watch,
    data: Samples | Iterable[Mapping[str, Any]],
    *,
    executor: concurrent.futures.Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> dict[str, list[Observer]]:
    """Run samples through a model and observe values.

    Results are the same, bit for bit, whatever the executor and however often it had to repeat
    something: the data are cut into fixed tasks, whose results are merged in the order of the data.
    (Processors that compute the model differently are another matter: workers on several machines
    should be of one kind.) Memory holds a few tasks, whatever the number of samples.

    Args:
        model: The model.
        watch: Observers that have seen nothing, by name of a value of the main graph: an input, an
            initializer (which is seen once) or what a node computes. They are not changed.
        data: Samples, or batches of them as for ``from_batches``.
        executor: Where tasks run: any ``concurrent.futures.Executor``. None uses two threads, of
            which one computes while the other counts; or one, where a batch has more than 32 MB of
            watched values.
        cache: Folder where results are kept; what was collected before from the same model, data
            and observers is read from there.
        limit: Number of batches to use, at most.

    Returns:
        Observers that have seen the data, in the order given, by the name of the value.

    Raises:
        CalibrationError: There is no such value, the data do not fit, a value is NaN or infinite
            (value and sample are named), or the executor breaks down again and again.
        SessionError: ONNX Runtime does not load the model.
    """
    if ir.opaque(model) is not None:
        raise CalibrationError(f"values of the model cannot be observed: {ir.opaque(model)}")
    if limit is not None and limit < 1:
        raise CalibrationError(f"a limit of {limit} batches leaves nothing to observe")
    # One observer given for several values is not to be shared by them.
    prototypes = {
        n: [copy.deepcopy(each) for each in ([o] if isinstance(o, Observer) else o)]
        for n, o in watch.items()
    }
    values = watched.find(model, prototypes)
    samples = fitting(data, model)
    if cache is not None:
        from graphopt.calibration.cache import cached

        return cached(
            Path(cache), model, prototypes, samples, limit,
            lambda: _collect(model, values, prototypes, samples, executor, limit),
        )  # fmt: skip
    return _collect(model, values, prototypes, samples, executor, limit)


def _collect(
    model: ir.Model,
    values: Mapping[str, ir.Value],
    prototypes: Found,
    samples: Samples,
    executor: concurrent.futures.Executor | None,
    limit: int | None,
) -> Found:
    fed = {v.name for v in ir.inputs(model)}
    made = {n: v for n, v in values.items() if v.producer() is not None}
    constant = {n: v for n, v in values.items() if n not in fed and n not in made}
    rest = itertools.islice(samples.named(), limit)
    first = next(rest, None)
    if first is None:
        raise CalibrationError("the data holds no batches")
    batches = itertools.chain([first], rest)
    found = copy.deepcopy({n: prototypes[n] for n in constant})
    for name, value in constant.items():
        if value.const_value is not None:
            worker.observe(found[name], value.const_value.numpy(), name, "the model")
    if len(found) < len(values):
        sizes = watched.expected_sizes(made, model.graph.inputs, first[1])
        with contextlib.ExitStack() as stack:
            if executor is None:
                small = sum(sizes.values()) <= _SMALL
                own = concurrent.futures.ThreadPoolExecutor(2) if small else Serial()
                executor = stack.enter_context(own)
            driver = _Driver(executor)
            inputs = {n: prototypes[n] for n in values if n in fed}
            outputs = {n: prototypes[n] for n in made}
            plan = driver.plan(stack, model, inputs, outputs, sizes)
            found |= driver.run(Task(plan, piece) for piece in _pieces(batches))
    return {name: found[name] for name in prototypes}


def _pieces(
    batches: Iterable[tuple[str, Feeds]],
) -> Iterator[list[tuple[str, Feeds]]]:
    piece: list[tuple[str, Feeds]] = []
    size = 0
    for where, feeds in batches:
        piece.append((where, feeds))
        size += sum(v.nbytes for v in feeds.values() if isinstance(v, np.ndarray))
        if len(piece) == _BATCHES or size >= _BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class _Driver:
    """Submits tasks, a bounded number at a time, and merges what comes back in their order."""

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self.executor = executor
        self.lends = isinstance(executor, (Serial, concurrent.futures.ThreadPoolExecutor))
        self.spools = isinstance(executor, (Processes, concurrent.futures.ProcessPoolExecutor))
        self.folder: Path | None = None
        self.submitted = 0
        self.model: bytes | None = None
        self.restarts = 0

    def plan(
        self,
        stack: contextlib.ExitStack,
        model: ir.Model,
        inputs: Found,
        outputs: Found,
        sizes: dict[str, int],
    ) -> Plan:
        """Prepare the model for the workers: a session in this process, or a file for others."""
        plan = Plan("", None, inputs, outputs, sizes, _BUDGET)
        if not self.lends:
            folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
        if not outputs:
            return plan
        part = watched.putting_out(model, outputs)
        if self.folder is None:
            plan = _replaced(plan, f"lent {uuid.uuid4().hex}", None)
            session = stack.enter_context(worker.open_observed(part))
            stack.enter_context(worker.lend(plan, session))
            return plan
        key = watched.model_digest(part)
        path = self.folder / "model" / f"{key[:32]}.onnx"
        path.parent.mkdir()
        ir.save(part, path)
        return _replaced(plan, key, path)

    def run(self, tasks: Iterator[Task]) -> Found:
        """Run tasks and merge their results."""
        window = workers(self.executor) + 1
        pending: deque[tuple[Task, concurrent.futures.Future[Any]]] = deque()
        merged: Found | None = None
        try:
            while True:
                while len(pending) < window and (task := next(tasks, None)) is not None:
                    pending.append((task, self.submit(task)))
                if not pending:
                    break
                task, future = pending.popleft()
                try:
                    found = future.result()
                except concurrent.futures.BrokenExecutor as e:
                    again = [task, *(t for t, _ in pending)]
                    self.restart(e)
                    pending = deque((t, self.submit(t)) for t in again)
                    continue
                except concurrent.futures.CancelledError as e:
                    raise CalibrationError("the executor was shut down before it was done") from e
                if isinstance(found, Path):
                    data = found.read_bytes()
                    found.unlink()
                    found = pickle.loads(data)
                if isinstance(found, Missing):
                    pending.appendleft((task, self.submit(self.carrying(task))))
                    continue
                merged = found if merged is None else _merge(merged, found)
                self.restarts = 0
        finally:
            # What runs in this process needs the session, which is closed next.
            left = [f for _, f in pending if not f.cancel() and self.lends]
            concurrent.futures.wait(left)
        assert merged is not None
        return merged

    def submit(self, task: Task) -> concurrent.futures.Future[Any]:
        """Submit a task, by way of a file where the executor is a pool of processes."""
        try:
            if not self.spools or self.folder is None:
                return self.executor.submit(worker.run_task, task)
            path = self.folder / f"{self.submitted}.task"
            self.submitted += 1
            path.write_bytes(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL))
            return self.executor.submit(worker.run_file, path)
        except concurrent.futures.BrokenExecutor as e:
            broken: concurrent.futures.Future[Any] = concurrent.futures.Future()
            broken.set_exception(e)
            return broken
        except RuntimeError as e:
            raise CalibrationError(f"the executor takes no tasks: {e}") from e

    def restart(self, error: Exception) -> None:
        """Start a broken executor again.

        Raises:
            CalibrationError: It cannot be, or it has been often enough.
        """
        self.restarts += 1
        if not isinstance(self.executor, Restartable) or self.restarts > _RESTARTS:
            raise CalibrationError(
                "a worker process ended while it was observing, for want of memory perhaps "
                f"({str(error) or type(error).__name__}); use fewer workers"
            ) from error
        self.executor.restart()

    def carrying(self, task: Task) -> Task:
        """The task with the model in it, for a worker that cannot read the file."""
        if self.model is None:
            path = task.plan.path
            assert path is not None
            if len(list(path.parent.iterdir())) > 1:
                raise CalibrationError(
                    "the model is too large to be sent to workers on other machines; let them "
                    f"share the folder of temporary files, {tempfile.gettempdir()}"
                )
            self.model = path.read_bytes()
        return Task(task.plan, task.batches, self.model)


def _replaced(plan: Plan, key: str, path: Path | None) -> Plan:
    return Plan(key, path, plan.inputs, plan.outputs, plan.sizes, plan.budget)


def _merge(into: Found, found: Found) -> Found:
    for name, observers in found.items():
        try:
            for one, other in zip(into[name], observers, strict=True):
                one.merge(other)
        except CalibrationError as e:  # noqa: PERF203 - it names the value
            raise CalibrationError(f"%{name} {e}") from e
    return into

"""Worker processes in which a crash or a hang is an outcome, not the end of the benchmark.

A worker is a Python process that reads one JSON task a line and answers with one JSON line, over
pipes of its own, so that whatever a native library prints cannot disturb the answers. It says which
stage it is in, so that a crash can be blamed on the right party. Run as a program, this file is
that process.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SIGXCPU = 24
_answers: Any = None


@dataclass(frozen=True)
class Task:
    """A call to make in a worker: ``module.function(**arguments)``, all plain data."""

    module: str
    function: str
    arguments: dict[str, Any]
    label: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        kind: ``ok``, ``raised``, ``crash`` or ``timeout``.
        value: What the function returned (``ok`` only).
        detail: One line on what went wrong.
        stage: The stage the task had announced last.
        trace: The end of the traceback (``raised`` only).
    """

    kind: str
    value: Any = None
    detail: str = ""
    stage: str = ""
    trace: str = ""


@dataclass
class Worker:
    """One worker process, started when first used and again after a crash or a time-out."""

    env: dict[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _send: int = field(default=-1, init=False)
    _receive: int = field(default=-1, init=False)
    _log: Any = field(default=None, init=False)

    def start(self) -> None:
        """Start the process where it does not run."""
        if self._process is not None:
            return
        task_read, self._send = os.pipe()
        self._receive, answer_write = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(task_read), str(answer_write)],
            pass_fds=(task_read, answer_write),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=self.env,
        )  # fmt: skip
        os.close(task_read)
        os.close(answer_write)

    def stop(self) -> int:
        """End the process; returns its exit status."""
        if self._process is None:
            return 0
        os.close(self._send)
        os.close(self._receive)
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        code = self._process.returncode
        self._process = None
        return code

    def call(self, task: Task, timeout: float) -> Outcome:
        """Run one task.

        Args:
            task: What to call.
            timeout: Wall seconds after which the process is killed.
        """
        self.start()
        assert self._process is not None
        line = json.dumps([task.module, task.function, task.arguments]) + "\n"
        try:
            os.write(self._send, line.encode())
        except BrokenPipeError:
            return self._died("")
        stage, buffer, deadline = "", b"", time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._receive], [], [], max(left, 0.0))
            if not ready:
                self._process.kill()
                self.stop()
                return Outcome("timeout", detail=f"more than {timeout:g} s", stage=stage)
            chunk = os.read(self._receive, 1 << 16)
            if not chunk:
                return self._died(stage)
            buffer += chunk
            while b"\n" in buffer:
                raw, _, buffer = buffer.partition(b"\n")
                message = json.loads(raw)
                if "stage" in message:
                    stage = message["stage"]
                elif "value" in message:
                    return Outcome("ok", value=message["value"], stage=stage)
                else:
                    return Outcome(
                        "raised", detail=message["error"], stage=stage, trace=message["trace"]
                    )

    def _died(self, stage: str) -> Outcome:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 2000))
        tail = self._log.read().decode("utf-8", "replace").strip().splitlines()
        code = self.stop()
        if code == -_SIGXCPU:
            return Outcome("timeout", detail="CPU time limit", stage=stage)
        said = f": {tail[-1][:200]}" if tail else ""
        return Outcome("crash", detail=f"exit status {code}{said}", stage=stage)


def run_all(
    tasks: Iterable[Task],
    *,
    env: dict[str, str],
    workers: int = 1,
    timeout: float = 60.0,
    done: Callable[[int, Task, Outcome], None] | None = None,
) -> list[Outcome]:
    """Run tasks on persistent workers; the outcomes come back in the order of the tasks.

    Args:
        tasks: What to run.
        env: Environment of the workers.
        workers: How many processes.
        timeout: Wall seconds for each task.
        done: Called with the number of finished tasks, the task and its outcome (one call at a
            time).
    """
    todo: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
    listed = list(tasks)
    for item in enumerate(listed):
        todo.put(item)
    outcomes: dict[int, Outcome] = {}
    lock = threading.Lock()

    def serve() -> None:
        worker = Worker(env)
        try:
            while True:
                try:
                    index, task = todo.get_nowait()
                except queue.Empty:
                    return
                outcome = worker.call(task, timeout)
                with lock:
                    outcomes[index] = outcome
                    if done is not None:
                        done(len(outcomes), task, outcome)
        finally:
            worker.stop()

    threads = [threading.Thread(target=serve) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[i] for i in range(len(listed))]


# --- inside the worker ---------------------------------------------------------------------------


def stage(name: str) -> None:
    """Tell the parent what comes next; outside a worker this does nothing."""
    _answer({"stage": name})


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after that many more CPU seconds; 0 sets no limit."""
    if seconds > 0:
        limit = int(time.process_time() + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))


def _answer(message: dict[str, Any]) -> None:
    if _answers is not None:
        _answers.write(json.dumps(message) + "\n")
        _answers.flush()


def main(argv: Sequence[str]) -> None:
    """Serve tasks until the parent closes the pipe."""
    here = str(Path(__file__).resolve().parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    # Tasks import this module by name; make that the module that holds the open pipe.
    sys.modules["_pool"] = sys.modules["__main__"]
    global _answers
    _answers = os.fdopen(int(argv[1]), "w")
    with os.fdopen(int(argv[0])) as tasks:
        for line in tasks:
            module, function, arguments = json.loads(line)
            try:
                value = getattr(importlib.import_module(module), function)(**arguments)
            except Exception as error:  # the parent reports it
                text = f"{type(error).__name__}: {error}".strip()
                _answer({"error": text[:2000], "trace": traceback.format_exc()[-2000:]})
            else:
                _answer({"value": value})


if __name__ == "__main__":
    main(sys.argv[1:])

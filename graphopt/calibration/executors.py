"""Where tasks run: executors by the text that the command line takes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from graphopt.errors import ConfigError

__all__ = ["Processes", "Restartable", "Serial", "open_executor", "workers"]

T = TypeVar("T")

_FORMS = "serial, threads:N, processes:N, dask:local:N or dask:ADDRESS"
# Seconds that a scheduler has to answer.
_PATIENCE = 10


@runtime_checkable
class Restartable(Protocol):
    """An executor that can begin anew after a worker died."""

    def restart(self) -> None:
        """Replace dead workers; what was submitted and not finished is lost."""
        ...


class Serial(concurrent.futures.Executor):
    """Runs everything right away, in the calling thread."""

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """See the base class."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(e)
        return future


class Processes(concurrent.futures.Executor):
    """Processes of this machine, started afresh where one of them died.

    They do not inherit the memory of this process, so that threads of it do no harm.

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = self._start()

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        return concurrent.futures.ProcessPoolExecutor(
            self.count,
            mp_context=multiprocessing.get_context(method),
            # Ctrl-C reaches all processes of a terminal; this one ends the others.
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """See the base class."""
        return self._pool.submit(fn, *args, **kwargs)

    def restart(self) -> None:
        """Replace the pool, which a worker that dies breaks for good."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See the base class."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def workers(executor: concurrent.futures.Executor) -> int:
    """How many tasks an executor works on at a time; as many as there are CPUs where it is silent.

    The interface of executors does not tell, so this looks at those that are known.
    """
    if isinstance(executor, Serial):
        return 0
    if isinstance(executor, Processes):
        return executor.count
    count = getattr(executor, "_max_workers", None)
    if isinstance(count, int):
        return count
    client: Any = getattr(executor, "_client", None)
    if hasattr(client, "ncores"):  # dask.distributed
        return sum(int(n) for n in client.ncores().values()) or 1
    return os.cpu_count() or 1


@contextlib.contextmanager
def open_executor(spec: str) -> Iterator[concurrent.futures.Executor]:
    """Start, or connect to, what a specification names, and end it afterwards.

    Args:
        spec: ``serial``; ``threads:N``; ``processes:N``; ``dask:local:N``, N worker processes on
            this machine that are restarted when they die; or ``dask:ADDRESS``, the scheduler of a
            Dask cluster such as ``dask:tcp://host:8786``, whose workers need graphopt installed.

    Raises:
        ConfigError: It is none of these, Dask is not installed, or the address does not answer.
    """
    kind, _, rest = spec.partition(":")
    if kind == "dask" and rest:
        with _dask(spec, rest) as executor:
            yield executor
        return
    if spec == "serial":
        yield Serial()
        return
    if kind not in ("threads", "processes"):
        raise ConfigError(f"the executor {spec!r} is none of {_FORMS}")
    count = _count(spec, rest)
    made: concurrent.futures.Executor = (
        concurrent.futures.ThreadPoolExecutor(count) if kind == "threads" else Processes(count)
    )
    with made:
        yield made


def _count(spec: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"the executor {spec!r} lacks a number of workers: {_FORMS}")
    return int(text)


@contextlib.contextmanager
def _dask(spec: str, rest: str) -> Iterator[concurrent.futures.Executor]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as e:
        raise ConfigError(f"the executor {spec!r} needs Dask: pip install 'graphopt[dask]'") from e
    with contextlib.ExitStack() as stack:
        address: Any = rest
        if rest.partition(":")[0] == "local":
            count = _count(spec, rest.partition(":")[2])
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None
                )
            )
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as e:
            raise ConfigError(f"no Dask scheduler answers at {rest}: {e}") from e
        stack.enter_context(client)
        # Tasks are equal only if their data are, but Dask would take equal ones for one; and a task
        # whose worker died runs again.
        yield stack.enter_context(client.get_executor(pure=False, retries=3))

"""Latency of models against each other, measured so that a busy machine disturbs all alike.

Runs of the contenders alternate, in an order that changes from round to round, and contenders are
compared within a round: a slow minute slows every one of them and leaves the ratios as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.runtime.session import ModelSource, Session, open_session
from graphopt.runtime.values import Feeds

__all__ = ["Latency", "Timing", "compare_latency", "interleaved"]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time of one contender. Times are seconds per call.

    Attributes:
        median: Median over the rounds.
        low: Lower quartile.
        high: Upper quartile.
        ratio: Median over the rounds of its time in units of the first contender's time.
        ratio_low: Lower quartile of that.
        ratio_high: Upper quartile of that.
        rounds: Rounds measured.
        calls: Calls per round.
    """

    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    calls: int

    @property
    def iqr(self) -> float:
        """Interquartile range in seconds."""
        return self.high - self.low


@dataclasses.dataclass(frozen=True)
class Latency:
    """Timings by name, the contender that the others are compared with first."""

    timings: dict[str, Timing]

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def to_json(self) -> dict[str, Any]:
        """The timings as plain data."""
        return {name: dataclasses.asdict(t) for name, t in self.timings.items()}


def interleaved(
    runners: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    min_time: float = 0.002,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time several functions in alternation.

    Args:
        runners: Functions by name; the first is what the others are compared with.
        repeats: Rounds.
        warmup: Unmeasured calls of each before.
        min_time: Seconds that one measurement takes at least; faster functions are called several
            times for it.
        seconds: Roughly how long to measure altogether, instead of ``repeats`` (5 rounds at least).
        clock: What time is read from, in seconds.

    Raises:
        ValueError: There is nothing to time, or ``repeats`` is below one.
    """
    if not runners or repeats < 1:
        raise ValueError("needs a function and a round at least")
    once: dict[str, float] = {}
    for name, runner in runners.items():
        for _ in range(max(warmup, 1)):
            began = clock()
            runner()
            once[name] = clock() - began
    calls = {k: max(1, math.ceil(min_time / max(t, 1e-7))) for k, t in once.items()}
    if seconds is not None:
        each = sum(calls[k] * max(t, 1e-7) for k, t in once.items())
        repeats = max(5, int(seconds / each))
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.disable()  # a collection would fall on whichever contender happens to run
    try:
        for i in range(repeats):
            shift = i % len(names)
            for name in names[shift:] + names[:shift]:
                runner, count = runners[name], calls[name]
                began = clock()
                for _ in range(count):
                    runner()
                times[name].append((clock() - began) / count)
    finally:
        if enabled:
            gc.enable()
    base = np.maximum(times[names[0]], 1e-12)
    return Latency({k: _timing(np.array(t), base, calls[k]) for k, t in times.items()})


def compare_latency(
    a: ModelSource,
    b: ModelSource,
    feeds: Feeds | Sequence[Feeds],
    *,
    threads: int = 1,
    optimize: bool = True,
    providers: Sequence[str | tuple[str, dict[str, Any]]] = ("CPUExecutionProvider",),
    config: Mapping[str, str] | None = None,
    repeats: int = 20,
    warmup: int = 3,
    min_time: float = 0.002,
    seconds: float | None = None,
) -> Latency:
    """Compare the latency of two models that take the same inputs.

    Args:
        a: The model that the other is compared with.
        b: The other.
        feeds: Inputs; one call runs all of them.
        threads: Threads within an operator.
        optimize: Let ONNX Runtime optimize both, as its users run them.
        providers: Execution providers, preferred first.
        config: Further session configuration entries.
        repeats: Rounds.
        warmup: Unmeasured calls of each before.
        min_time: Seconds that one measurement takes at least.
        seconds: Roughly how long to measure altogether, instead of ``repeats``.

    Returns:
        Timings named "a" and "b".

    Raises:
        RuntimeUnavailable: onnxruntime is not installed.
        SessionError: ONNX Runtime does not load or run one of the models.
    """
    batches = [feeds] if isinstance(feeds, dict) else list(feeds)

    def runner(session: Session) -> Callable[[], object]:
        return lambda: [session.run(batch) for batch in batches]

    with contextlib.ExitStack() as stack:
        runners = {}
        for name, model in (("a", a), ("b", b)):
            session = open_session(
                model, optimize=optimize, threads=threads, providers=providers, config=config
            )
            runners[name] = runner(stack.enter_context(session))
        return interleaved(
            runners, repeats=repeats, warmup=warmup, min_time=min_time, seconds=seconds
        )


def _timing(times: Any, base: Any, calls: int) -> Timing:
    low, median, high = np.percentile(times, (25, 50, 75)).tolist()
    ratio_low, ratio, ratio_high = np.percentile(times / base, (25, 50, 75)).tolist()
    return Timing(median, low, high, ratio, ratio_low, ratio_high, len(times), calls)

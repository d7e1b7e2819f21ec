"""Latency of forms of a model on a target, against the original's."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np

from graphopt import ir
from graphopt.runtime import Feeds, Session, interleaved, open_session, provider_status
from graphopt.targets import Target

__all__ = ["SCATTER", "race", "runs_here", "seconds_of", "settings"]

# Ratios of times scatter by about as much: a form that takes less than this is not slower.
SCATTER = 1.02


def runs_here(target: Target) -> str | None:
    """Why latency on a target cannot be measured on this machine, or None if it can."""
    provider = target.providers[0]
    if target.processors and platform.machine().lower() not in target.processors:
        return f"{target.name} is another processor than the one of this machine"
    if provider == "CPUExecutionProvider":
        return None if target.processors else f"{target.name} is for other runtimes"
    found = provider_status(provider)
    return None if found.ok else f"{provider} does not run here: {found.reason}"


def settings(feeds: Feeds, model: ir.Model) -> list[Feeds]:
    """Inputs to measure on: one sample, and the whole batch where it holds more.

    Args:
        feeds: A batch.
        model: The model; a batch can be cut where the first dimension of all inputs is one symbol.
    """
    declared = [ir.dims(v) for v in ir.inputs(model)]
    firsts = {d[0] if d else None for d in declared}
    arrays = [v for v in feeds.values() if isinstance(v, np.ndarray)]
    free = (
        len(firsts) == 1 and not isinstance(next(iter(firsts)), int) and len(arrays) == len(feeds)
    )
    lengths = {len(a) if a.ndim else 0 for a in arrays}
    if not free or len(lengths) != 1 or max(lengths) < 2:
        return [feeds]
    return [{name: v[:1] for name, v in feeds.items()}, feeds]


def race(
    original: ir.Model,
    models: Sequence[ir.Model],
    inputs: Sequence[Feeds],
    *,
    target: Target,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[list[float]]:
    """Measure the latency of forms of a model against the original's, interleaved.

    Args:
        original: What they are compared with.
        models: Forms of it.
        inputs: What to run; each counts alike.
        target: Where to run.
        threads: Threads within an operator.
        seconds: Roughly how long to measure each form on each input.

    Returns:
        For each form its time in units of the original's, input by input.
    """
    ratios: list[list[float]] = [[] for _ in models]
    named = {"original": original, **{str(i): m for i, m in enumerate(models)}}
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(_open(m, target, threads)) for name, m in named.items()}
        for feeds in inputs:
            found = interleaved(
                {n: (lambda s=s, f=feeds: s.run(f)) for n, s in opened.items()},  # type: ignore[misc]
                seconds=seconds * len(named),
                clock=_clock(threads),
            )
            for i, each in enumerate(ratios):
                each.append(found[str(i)].ratio)
    return ratios


def seconds_of(
    models: Sequence[tuple[ir.Model, Feeds]],
    *,
    target: Target,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[float]:
    """Measure the latency of models on inputs of their own, interleaved; the median in seconds.

    Args:
        models: The models, with inputs.
        target: Where to run.
        threads: Threads within an operator.
        seconds: Roughly how long to measure all of them.
    """
    with contextlib.ExitStack() as stack:
        runners = {}
        for i, (model, feeds) in enumerate(models):
            session = stack.enter_context(_open(model, target, threads))
            runners[str(i)] = lambda s=session, f=feeds: s.run(f)
        found = interleaved(runners, seconds=seconds, clock=_clock(threads))
    return [found[name].median for name in runners]


def _clock(threads: int) -> Callable[[], float]:
    # Other programs do not count where one thread does the work.
    return time.thread_time if threads == 1 else time.perf_counter


def _open(model: ir.Model, target: Target, threads: int) -> Session:
    return open_session(
        model,
        optimize=target.optimize,
        threads=threads,
        providers=target.with_options,
        config=target.session,
    )

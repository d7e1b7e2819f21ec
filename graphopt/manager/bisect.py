"""Find the one action, a pass or a single rewrite, after which a model is no longer good."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from graphopt import ir
from graphopt.errors import GraphOptError, SessionError
from graphopt.manager.base import Exactness, Pass, Pipeline
from graphopt.manager.instruments import Fuel
from graphopt.manager.registry import Registry
from graphopt.manager.runner import PassManager
from graphopt.manager.text import parse

__all__ = ["BisectResult", "bisect"]

_ALL = 1 << 62


@dataclasses.dataclass(frozen=True)
class BisectResult:
    """What bisecting found.

    Attributes:
        action: The first bad action, such as ``"fuse-conv-bn at %y"``; None if all is good.
        within: The pass it belongs to; None if all is good.
        index: Its number, counted from 1; 0 if all is good.
        actions: Number of actions of the whole pipeline.
        runs: How often the pipeline was run.
        reason: What is wrong after it.
    """

    action: str | None
    within: str | None
    index: int
    actions: int
    runs: int
    reason: str | None


def bisect(
    model: ir.Model,
    pipeline: Pass | str,
    good: Callable[[ir.Model], str | None] | None = None,
    *,
    registry: Registry | None = None,
    **options: Any,
) -> BisectResult:
    """Search the actions of a pipeline for the first after which the model is bad.

    Runs the pipeline about log2(actions) times, each with fuel for fewer actions than the last bad
    run. Passes number their rewrites, so the search ends at a single rewrite.

    Args:
        model: The input.
        pipeline: A pipeline, a pass, or pipeline text.
        good: Says what is wrong with a model, or None for nothing. By default an oracle compares
            its outputs with those of the input, at the weakest exactness the pipeline promises.
        registry: Where names in pipeline text come from.
        **options: For :class:`PassManager`, such as ``target`` and ``data``.

    Raises:
        SessionError: The default judge cannot run the model.
    """
    parsed = parse(pipeline, registry) if isinstance(pipeline, str) else pipeline
    whole = parsed if isinstance(parsed, Pipeline) else Pipeline(passes=(parsed,))
    judge = good or _oracle(model, whole, options)
    runs = 0

    def attempt(limit: int) -> tuple[str | None, Fuel]:
        nonlocal runs
        runs += 1
        fuel = Fuel(limit)
        manager = PassManager(
            whole, on_mismatch="raise", objective=None, instruments=(fuel,), **options
        )
        try:
            result = manager.run(model).model
        except GraphOptError as e:
            return str(e), fuel
        return judge(result), fuel

    reason, fuel = attempt(_ALL)
    total = fuel.count
    if reason is None:
        return BisectResult(None, None, 0, total, runs, None)
    low, high = 0, total
    while high - low > 1:
        middle = (low + high) // 2
        found, _ = attempt(middle)
        if found is None:
            low = middle
        else:
            high, reason = middle, found
    _, fuel = attempt(high)
    return BisectResult(fuel.last, fuel.within, high, total, runs, reason)


def _oracle(
    model: ir.Model, pipeline: Pipeline, options: dict[str, Any]
) -> Callable[[ir.Model], str | None]:
    from graphopt.runtime.oracle import Oracle

    oracle = Oracle(model, data=options.get("data"), seeds=options.get("seeds", (0,)))
    if not oracle.available:
        raise SessionError(f"the outputs cannot be compared: {oracle.reason}")
    promise = Exactness.weakest(p.exactness for p in pipeline.leaves())

    def judge(candidate: ir.Model) -> str | None:
        found = oracle.check(candidate, promise)
        return None if found.ok else found.reason

    return judge

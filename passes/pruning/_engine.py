"""What pruning of channels and of heads have in common."""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

from graphopt import Context, NotApplicable, PassManager, ir
from graphopt.analyses import Cost
from graphopt.calibration import fitting
from graphopt.measure import Budget
from graphopt.pruning import Goal, Options, Outcome, prune

__all__ = ["Criterion", "Ranking", "checked", "goal_of", "run"]

Criterion = Literal["obs", "l1", "l2", "median", "bn-scale", "activation", "taylor", "random"]
Ranking = Literal["measured", "global", "local"]

_GOALS: tuple[Literal["macs", "params", "bytes", "latency", "channels"], ...] = (
    "macs", "params", "bytes", "latency", "channels",
)  # fmt: skip


def goal_of(options: Any, default: Goal) -> Goal:
    """The one goal among the options of a pass, or the default."""
    given = [(n, v) for n in _GOALS if (v := getattr(options, n, None)) is not None]
    return Goal(*given[0]) if given else default


def checked(options: Any) -> None:
    """Check the numbers among the options of a pass.

    Raises:
        ValueError: One is out of bounds, or there are several goals.
    """
    given = [name for name in _GOALS if getattr(options, name, None) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different goals; give one")
    for goal in given:
        if not 0 < getattr(options, goal) < 1:
            raise ValueError(
                f"{goal} is the fraction that remains, in (0, 1), not {getattr(options, goal)}"
            )
    for name in ("least", "payoff"):
        value = getattr(options, name, 0.0)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share, in [0, 1), not {value}")
    for name in ("samples", "threads", "round_to"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')} has to be 1 or more, not {value}")
    if options.max_drop is not None and not 0 <= options.max_drop <= 100:
        raise ValueError(f"max-drop is a share in percent, in [0, 100], not {options.max_drop}")


def run(
    options: Any, kind: Literal["channels", "heads"], default: Goal, model: ir.Model, ctx: Context
) -> bool:
    """Prune a copy of the model, and take it over if the goals are met.

    Raises:
        NotApplicable: Something is missing, or the result would not do.
    """
    # Least squares wants weights that nothing else scales, coupling wants shapes that are known.
    source = _lossless(model, ctx)
    given = Options(
        goal_of(options, default),
        kind=kind,
        criterion=options.criterion,
        ranking=options.ranking,
        payoff=getattr(options, "payoff", 0.0),
        least=options.least,
        multiple=getattr(options, "round_to", None),
        skip=options.skip,
        whole=getattr(options, "whole", False),
        recover=options.recover,
        vary=options.vary,
        budget=Budget(options.min_sqnr, options.max_drop),
        samples=options.samples,
        threads=options.threads,
        dry=options.dry,
    )
    names = {node.name or "" for node in ir.all_nodes(source)}
    names |= {v.name or "" for node in ir.all_nodes(source) for v in node.outputs}
    for pattern in options.skip:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
    data = None if ctx.data is None else fitting(ctx.data, source)
    found: Outcome = prune(source, ctx.target, data, given, cache=ctx.cache)
    ctx.details.update(found.details)
    if found.model is None:
        if given.dry:
            ctx.remark(found.reason)
            return False
        if found.missed:
            ctx.details["missed"] = found.reason
        raise NotApplicable(found.reason)
    if not ctx.allow(f"prune {kind}"):
        return False
    pruned = _lossless(found.model, ctx)
    ctx.details["macs"] = [Cost(source).macs, Cost(pruned).macs]
    ctx.rewriter().become(pruned)
    ctx.remark(found.reason)
    if given.recover and not found.details["fits"]:
        ctx.remark(
            "no layer could be fitted to make up for what went: weights that are not float32 stay "
            "as they are; prune before quantizing"
        )
    ctx.stats.applied[f"prune {kind}"] += 1
    return True


def _lossless(model: ir.Model, ctx: Context) -> ir.Model:
    return PassManager("O2", target=ctx.target, oracle="off").run(model).model

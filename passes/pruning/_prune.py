"""What pruning of channels and of heads have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from graphopt import Context, Exactness, NotApplicable, Pass, PassManager, ir
from graphopt.analyses import Cost
from graphopt.calibration import fitting
from graphopt.measure import Budget, Goal, What, one_goal
from graphopt.pruning import Options, prune

__all__ = ["Prune"]

_GOALS: tuple[What, ...] = ("macs", "params", "bytes", "latency", "channels")


class Prune(Pass):
    """Remove a share of what a model has of one kind.

    Attributes:
        kind: Of what.
        default: The goal, if none is given.
    """

    exactness = Exactness.LOSSY
    gated = False
    kind: ClassVar[Literal["channels", "heads"]]
    default: ClassVar[Goal]
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    channels: float | None = None
    criterion: Literal[
        "obs", "l1", "l2", "median", "bn-scale", "activation", "taylor", "random"
    ] = "obs"
    ranking: Literal["measured", "global", "local"] = "measured"
    least: float = 0.1
    skip: tuple[str, ...] = ()
    recover: bool = True
    vary: bool = True
    min_sqnr: float | None = None
    max_drop: float | None = None
    dry: bool = False
    samples: int = 512
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of bounds, or there are several goals.
        """
        _ = self._goal
        if not 0 <= self.least < 1:
            raise ValueError(f"least is a share, in [0, 1), not {self.least}")
        for name in ("samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")
        _ = Budget(self.min_sqnr, self.max_drop)

    def options(self) -> Options:
        """What the engine is told."""
        return Options(
            self._goal or self.default,
            kind=self.kind,
            criterion=self.criterion,
            ranking=self.ranking,
            payoff=0.0,
            whole=False,
            least=self.least,
            skip=self.skip,
            recover=self.recover,
            vary=self.vary,
            budget=Budget(self.min_sqnr, self.max_drop),
            samples=self.samples,
            threads=self.threads,
            dry=self.dry,
        )

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Prune a copy, and take it over if the goals are met."""
        # Least squares wants weights that nothing else scales, coupling wants known shapes.
        source = _lossless(model, ctx)
        nodes = list(ir.all_nodes(source))
        for pattern in self.skip:
            if not any(ir.matches(node, [pattern]) for node in nodes):
                ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
        data = None if ctx.data is None else fitting(ctx.data, source)
        found = prune(source, ctx.target, data, self.options(), cache=ctx.cache)
        ctx.details.update(found.details)
        if found.model is None:
            if self.dry:
                ctx.remark(found.reason)
                return False
            if found.missed:
                ctx.details["missed"] = found.reason
            raise NotApplicable(found.reason)
        if not ctx.allow(f"prune {self.kind}"):
            return False
        pruned = _lossless(found.model, ctx)
        ctx.details["macs"] = [Cost(source).macs, Cost(pruned).macs]
        ctx.rewriter().become(pruned)
        ctx.details["outcome"] = found.reason
        for remark in (found.reason, *found.remarks):
            ctx.remark(remark)
        if self.recover and not found.details["fits"]:
            ctx.remark(
                "no layer could be fitted to make up for what went: weights that are not float32 "
                "stay as they are; prune before quantizing"
            )
        ctx.stats.applied[f"prune {self.kind}"] += 1
        return True

    @property
    def _goal(self) -> Goal | None:
        return one_goal({name: getattr(self, name) for name in _GOALS})


def _lossless(model: ir.Model, ctx: Context) -> ir.Model:
    return PassManager("O2", target=ctx.target, oracle="off").run(model).model

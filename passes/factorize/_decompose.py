"""What passes that compute layers in parts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from graphopt import Context, Exactness, NotApplicable, Pass, PassManager, ir
from graphopt.analyses import Cost
from graphopt.calibration import fitting
from graphopt.decompose import Kind, Options, decompose
from graphopt.measure import Budget, Goal, What, one_goal

__all__ = ["Decompose"]

_GOALS: tuple[What, ...] = ("macs", "params", "bytes", "latency")


class Decompose(Pass):
    """Compute layers in parts, until a share of what a model costs is left.

    Attributes:
        usual: Forms that layers may take, unless others are asked for.
    """

    usual: ClassVar[Sequence[Kind]]
    exactness = Exactness.LOSSY
    gated = False
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    payoff: float = 0.2
    whole: bool = False
    skip: tuple[str, ...] = ()
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
        if not 0 <= self.payoff < 1:
            raise ValueError(f"payoff is a share, in [0, 1), not {self.payoff}")
        for name in ("samples", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be 1 or more, not {getattr(self, name)}")
        _ = Budget(self.min_sqnr, self.max_drop)

    def kinds(self) -> Sequence[Kind]:
        """Forms that layers may take."""
        return self.usual

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Decompose a copy, and take it over if the goals are met."""
        # Least squares wants weights that nothing else scales.
        source = _lossless(model, ctx)
        nodes = list(ir.all_nodes(source))
        for pattern in self.skip:
            if not any(ir.matches(node, [pattern]) for node in nodes):
                ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")
        options = Options(
            self._goal or Goal("macs", 0.75), self.kinds(), payoff=self.payoff,
            whole=self.whole, skip=self.skip, budget=Budget(self.min_sqnr, self.max_drop),
            samples=self.samples, threads=self.threads, dry=self.dry,
        )  # fmt: skip
        data = None if ctx.data is None else fitting(ctx.data, source)
        found = decompose(source, ctx.target, data, options, cache=ctx.cache)
        ctx.details.update(found.details)
        if found.model is None:
            if self.dry:
                ctx.remark(found.reason)
                return False
            if found.missed:
                ctx.details["missed"] = found.reason
            raise NotApplicable(found.reason)
        if not ctx.allow(self.name):
            return False
        ctx.details["macs"] = [Cost(source).macs, Cost(found.model).macs]
        ctx.details["outcome"] = found.reason
        ctx.rewriter().become(found.model)
        for remark in (found.reason, *found.remarks):
            ctx.remark(remark)
        rows, gone = found.details["layers"], found.details["removed"]
        ctx.stats.applied[self.name] += len(gone) + sum(
            row["form"] not in ("whole", "removed") for row in rows
        )
        return True

    @property
    def _goal(self) -> Goal | None:
        return one_goal({name: getattr(self, name) for name in _GOALS})


def _lossless(model: ir.Model, ctx: Context) -> ir.Model:
    return PassManager("O2", target=ctx.target, oracle="off").run(model).model

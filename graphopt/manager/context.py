"""What the pass manager gives a pass besides the model and its own options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from graphopt import ir
from graphopt.rewrite import Rewriter, RewriteStats

if TYPE_CHECKING:
    from graphopt.targets import Target

__all__ = ["Context"]

A = TypeVar("A")
Data = Iterable[Mapping[str, Any]]


class Context:
    """Services of one run of one pipeline.

    Attributes:
        model: The model being transformed.
        target: What the model is optimized for.
        data: Samples of the model's inputs, re-iterable, or None.
        executor: Where calibration runs; None leaves the choice to it.
        cache: Folder where results of calibration are kept, or None.
        stats: Rewrites of the pass that is running; whole-model passes count theirs here.
        details: What the running pass has to report as data, beyond remarks.
        inferred: Whether the running pass refreshed shapes, so that costs compare no more.
    """

    def __init__(
        self,
        model: ir.Model,
        target: Target,
        data: Data | None = None,
        allow: Callable[[str], bool] | None = None,
        *,
        executor: Executor | None = None,
        cache: Path | None = None,
    ) -> None:
        self.model, self.target, self.data = model, target, data
        self.executor, self.cache = executor, cache
        self.stats = RewriteStats()
        self.remarks: list[str] = []
        self.details: dict[str, Any] = {}
        self._allow = allow
        self._stopped = False
        self._analyses: dict[object, Any] = {}
        self._rewriters: list[Rewriter] = []
        self.inferred = False

    def __getitem__(self, analysis: Callable[[ir.Model, Context], A]) -> A:
        """The result of an analysis, computed once and kept until a pass changes the model.

        Args:
            analysis: Any class built from ``(model, ctx)``.
        """
        if analysis not in self._analyses:
            self._analyses[analysis] = analysis(self.model, self)
        return cast(A, self._analyses[analysis])

    def rewriter(self) -> Rewriter:
        """A Rewriter of the model that respects fuel."""
        made = Rewriter(self.model, allow=self.allow)
        self._rewriters.append(made)
        return made

    def infer_shapes(self) -> None:
        """Refresh types and shapes of all values. Knowing more is no change of the model."""
        ir.infer_shapes(self.model)
        self.inferred = True

    @property
    def rewrote(self) -> bool:
        """Whether a rewriter of the running pass changed the model."""
        return any(each.changed for each in self._rewriters)

    def allow(self, action: str) -> bool:
        """Ask before a single rewrite; False means to stop rewriting.

        Args:
            action: Name of the rewrite and the place, as in ``"fold-if at %y"``.
        """
        if self._allow is not None and not self._stopped:
            self._stopped = not self._allow(action)
        return not self._stopped

    def decline(self, what: str, reason: str) -> None:
        """Count a rewrite that was possible but not done."""
        self.stats.declined[f"{what}: {reason}"] += 1

    def remark(self, text: str, at: ir.Value | ir.Node | None = None) -> None:
        """Say something in the report.

        Args:
            text: One sentence.
            at: The value or node it is about.
        """
        value = at.outputs[0] if isinstance(at, ir.Node) else at
        self.remarks.append(text if value is None else f"%{value.name}: {text}")

    def begin(self) -> None:
        """Start the books of the next pass."""
        self.stats, self.remarks, self.details = RewriteStats(), [], {}
        self._rewriters = []
        self.inferred = False

    def invalidate(self, keep: tuple[type, ...] = ()) -> None:
        """Forget analyses, since the model changed."""
        self._analyses = {k: v for k, v in self._analyses.items() if k in keep}

"""What a pass is: a named, immutable, comparable description of one transformation.

A pass is a frozen keyword-only dataclass without a decorator: its fields are its options, and
``str`` of it is its text in pipeline syntax. It keeps no state between runs.
"""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import dataclass_transform

from graphopt.manager.options import format_option, non_default_options

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.rewrite import Rule

__all__ = ["Exactness", "Pass", "Pipeline", "RewritePass"]


class Exactness(enum.Enum):
    """What a pass promises about the numbers a model computes."""

    BITWISE = "bitwise"
    """The same bits."""

    ROUNDING = "rounding"
    """The same function of real numbers; floating-point rounding may differ."""

    LOSSY = "lossy"
    """Another function on purpose, judged by a quality budget."""

    @classmethod
    def weakest(cls, promises: Iterable[Exactness]) -> Exactness:
        """Return what a sequence of passes promises together.

        Args:
            promises: What each pass promises; none at all promises the same bits.

        Returns:
            The weakest of the promises.
        """
        order = list(cls)
        return max(promises, key=order.index, default=cls.BITWISE)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Pass(ABC):
    """A named transformation of a model.

    Subclasses become frozen, keyword-only dataclasses by themselves; annotated fields are options.
    An option may be a bool, int, float, str, Enum, Literal, a tuple of those, or Optional of those.

    Attributes:
        name: Kebab-case name in pipeline text.
        exactness: What the pass promises about the numbers.
        preserves: Analyses that stay valid after the pass changed the model.
        min_opset: Models with an older opset of the default domain are left alone.
        gated: Whether the pass is undone where it makes the model larger or slower; False for those
            that a target needs, whatever they cost.
        narrows: Whether callers can feed less afterwards: outputs are compared on what they still
            can.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    preserves: ClassVar[tuple[type, ...]] = ()
    min_opset: ClassVar[int] = 1
    gated: ClassVar[bool] = True
    narrows: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass a frozen keyword-only dataclass."""
        super().__init_subclass__(**kwargs)
        doc = cls.__doc__
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        cls.__doc__ = doc  # dataclass makes one up where there is none

    @abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Transform a model in place.

        Args:
            model: A model in normal form.
            ctx: Target, analyses, rewriter and calibration data of this run.

        Returns:
            Whether the model changed.

        Raises:
            NotApplicable: Something the pass needs is missing; the pipeline goes on without it.
        """

    def __str__(self) -> str:
        """Return the canonical pipeline text: the name, and options that are not the default."""
        given = non_default_options(self)
        options = [format_option(name, value) for name, value in given.items()]
        return self.name + (f"{{{' '.join(options)}}}" if options else "")


class RewritePass(Pass):
    """A pass that is nothing but rules applied until none matches.

    Attributes:
        rules: The rules, tried in this order at each node.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        """Return the rules to apply in this run; override it where options or the target choose.

        Args:
            ctx: Services of this run.

        Returns:
            Rules in the order they are tried.
        """
        return self.rules

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Apply the rules to a fixed point; return whether any of them changed the model."""
        from graphopt.rewrite import apply_rules

        stats = apply_rules(ctx.rewriter(), self.rules_for(ctx))
        ctx.stats.add(stats)
        return stats.changed


class Pipeline(Pass):
    """Passes in order; itself a pass.

    Construction normalizes: plain pipelines inside a pipeline are spliced in, and a pipeline that
    holds nothing but one repeated pipeline becomes that one. Equal pipelines have equal text.

    Attributes:
        passes: The passes in the order they run.
        repeat: Rerun the passes until nothing changes, at most this many times.
    """

    name: ClassVar[str] = "pipeline"
    passes: tuple[Pass, ...] = ()
    repeat: int = 1

    def __post_init__(self) -> None:
        """Check and normalize the fields.

        Raises:
            ValueError: ``repeat`` is below 1.
            TypeError: An element of ``passes`` is not a pass.
        """
        if type(self.repeat) is not int or self.repeat < 1:
            raise ValueError(f"a pipeline runs at least once, not {self.repeat!r} times")
        passes: list[Pass] = []
        given: tuple[object, ...] = tuple(self.passes)
        for each in given:
            if not isinstance(each, Pass):
                hint = f"; write {each.__name__}()" if isinstance(each, type) else ""
                raise TypeError(f"a pipeline holds passes, not {each!r}{hint}")
            if isinstance(each, Pipeline) and each.repeat == 1:
                passes.extend(each.passes)
            else:
                passes.append(each)
        repeat = self.repeat
        only = passes[0] if len(passes) == 1 else None
        if repeat == 1 and isinstance(only, Pipeline):
            passes, repeat = list(only.passes), only.repeat
        object.__setattr__(self, "passes", tuple(passes))
        object.__setattr__(self, "repeat", repeat)

    def leaves(self) -> Iterator[Pass]:
        """Yield the passes that are not pipelines, in order, those of repeated pipelines once."""
        for each in self.passes:
            if isinstance(each, Pipeline):
                yield from each.leaves()
            else:
                yield each

    @property
    def promise(self) -> Exactness:
        """What the passes promise about the numbers together: the weakest promise of any."""
        return Exactness.weakest(each.exactness for each in self.leaves())

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Refuse to run: verification, timing and reverting belong to the pass manager.

        Raises:
            TypeError: Always.
        """
        raise TypeError("run a Pipeline through a PassManager")

    def __str__(self) -> str:
        """Return the canonical pipeline text."""
        body = ",".join(map(str, self.passes))
        return body if self.repeat == 1 else f"fixpoint{{max={self.repeat}}}({body})"

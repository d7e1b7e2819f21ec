"""Rules: a pattern and what to build instead of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphopt import ir
from graphopt.rewrite.pattern import Match, Op

if TYPE_CHECKING:
    from graphopt.rewrite.rewriter import Rewriter

__all__ = ["Replacement", "Rule", "rule"]

Replacement = ir.Value | Sequence[ir.Value | None] | None
Build = Callable[[Match, "Rewriter"], Replacement]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One local rewrite.

    Attributes:
        name: Kebab-case name for reports and for bisecting.
        pattern: What to look for.
        build: Called with a match. It returns what replaces the root's output, or one value per
            output (None keeps that output), or the root's own outputs if it changed the root in
            place. ``None`` declines: say why with ``return match.fail("...")``.
        benefit: Rules of greater benefit are tried first.
    """

    name: str
    pattern: Op
    build: Build
    benefit: int = 1


def rule(pattern: Op, *, benefit: int = 1, name: str | None = None) -> Callable[[Build], Rule]:
    """Make a rule of the function it decorates, which gives the rule its name."""

    def wrap(build: Build) -> Rule:
        return Rule(name or build.__name__.strip("_").replace("_", "-"), pattern, build, benefit)

    return wrap

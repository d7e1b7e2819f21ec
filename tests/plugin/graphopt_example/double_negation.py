"""``Neg(Neg(x))`` and ``Not(Not(x))`` become ``x``."""

from __future__ import annotations

from typing import Literal

from graphopt import Context, Exactness, Match, Op, RewritePass, Rewriter, Rule, Var, ir, rule

x = Var()


@rule(Op("Neg", Op("Neg", x)))
def double_neg(m: Match, rw: Rewriter) -> ir.Value:
    return m[x]


@rule(Op("Not", Op("Not", x)))
def double_not(m: Match, rw: Rewriter) -> ir.Value:
    return m[x]


class DropDoubleNegation(RewritePass):
    """Drop two negations in a row.

    What it does: ``Neg(Neg(x))`` and ``Not(Not(x))`` become ``x``.
    Exactness: bitwise; each negation flips one bit, and the second flips it back.
    Options:
        ops: Which of ``neg`` and ``not`` to look for.
    Example: ``drop-double-negation{ops=not}``
    """

    name = "drop-double-negation"
    exactness = Exactness.BITWISE

    ops: tuple[Literal["neg", "not"], ...] = ("neg", "not")

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        rules = {"neg": double_neg, "not": double_not}
        return tuple(rules[op] for op in self.ops)

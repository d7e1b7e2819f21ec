"""Rewriting: patterns, rules, the Rewriter they change a model through, and the greedy driver."""

from graphopt.rewrite.driver import RewriteStats, apply_rules
from graphopt.rewrite.pattern import Const, Match, Op, Pattern, Var
from graphopt.rewrite.rewriter import Rewriter
from graphopt.rewrite.rules import Replacement, Rule, rule

__all__ = [
    "Const",
    "Match",
    "Op",
    "Pattern",
    "Replacement",
    "RewriteStats",
    "Rewriter",
    "Rule",
    "Var",
    "apply_rules",
    "rule",
]

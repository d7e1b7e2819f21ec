"""Analyses: what can be known about a model. Get them with ``ctx[Analysis]``."""

from graphopt.analyses.cost import Cost, NodeCost

__all__ = ["Cost", "NodeCost"]

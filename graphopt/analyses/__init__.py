"""Analyses: what can be known about a model. Get them with ``ctx[Analysis]``."""

from graphopt.analyses.channels import Channels, End, Group, Maker, connected
from graphopt.analyses.cost import Cost, NodeCost

__all__ = ["Channels", "Cost", "End", "Group", "Maker", "NodeCost", "connected"]

"""Structured pruning: which channels go, how they are cut out, and what is left of the quality."""

from graphopt.pruning.criteria import CRITERIA, Criterion, Scores, normalized
from graphopt.pruning.layer_search import Removal, removals
from graphopt.pruning.layers_out import Block, bypass, find_blocks, matches, take_out
from graphopt.pruning.options import Options
from graphopt.pruning.pruner import prune
from graphopt.pruning.sizes import Measure, Sizes

__all__ = [
    "CRITERIA",
    "Block",
    "Criterion",
    "Measure",
    "Options",
    "Removal",
    "Scores",
    "Sizes",
    "bypass",
    "find_blocks",
    "matches",
    "normalized",
    "prune",
    "removals",
    "take_out",
]

"""Structured pruning: which channels go, how they are cut out, and what is left of the quality."""

from graphopt.pruning.layer_search import Removal, removals
from graphopt.pruning.layers_out import Block, find_blocks, matches, take_out

__all__ = ["Block", "Removal", "find_blocks", "matches", "removals", "take_out"]

"""Removing channels, heads and layers."""

from graphopt.passes.pruning.prune_layers import PruneLayers

__all__ = ["PruneLayers"]

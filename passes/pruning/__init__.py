"""Removing channels, heads and layers."""

from graphopt.passes.pruning.prune_channels import PruneChannels
from graphopt.passes.pruning.prune_heads import PruneHeads
from graphopt.passes.pruning.prune_layers import PruneLayers

__all__ = ["PruneChannels", "PruneHeads", "PruneLayers"]

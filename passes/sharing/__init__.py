"""Passes that let weights share numbers, and store constants in fewer bytes."""

from graphopt.passes.sharing.compact_storage import CompactStorage
from graphopt.passes.sharing.share_weights import ShareWeights
from graphopt.passes.sharing.tie_weights import TieWeights

__all__ = ["CompactStorage", "ShareWeights", "TieWeights"]

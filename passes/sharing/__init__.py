"""Passes that let weights share numbers, and store constants in fewer bytes."""

from graphopt.passes.sharing.compact_storage import CompactStorage

__all__ = ["CompactStorage"]

"""Passes that make weights zero."""

from graphopt.passes.sparsity.sparsify import Sparsify

__all__ = ["Sparsify"]

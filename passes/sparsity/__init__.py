"""Passes that make weights zero, and store such weights in fewer bytes."""

from graphopt.passes.sparsity.code_sparse import CodeSparse
from graphopt.passes.sparsity.sparsify import Sparsify

__all__ = ["CodeSparse", "Sparsify"]

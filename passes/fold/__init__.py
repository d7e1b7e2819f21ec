"""Passes that compute at compile time what does not depend on the inputs."""

from graphopt.passes.fold.branches import FoldBranches
from graphopt.passes.fold.constants import FoldConstants
from graphopt.passes.fold.infer import InferShapes
from graphopt.passes.fold.shapes import FoldShapes

__all__ = ["FoldBranches", "FoldConstants", "FoldShapes", "InferShapes"]

"""Recovery by least squares: from what a changed model reads to what the original computed."""

from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.obs import Reader, eliminate
from graphopt.reconstruct.observe import observe
from graphopt.reconstruct.problem import Problem, accumulate
from graphopt.reconstruct.rebuild import RIDGE, Fit, rebuild
from graphopt.reconstruct.walk import Walk, behind

__all__ = [
    "RIDGE",
    "Fit",
    "Layer",
    "Problem",
    "Reader",
    "Walk",
    "accumulate",
    "behind",
    "eliminate",
    "layers",
    "observe",
    "rebuild",
]

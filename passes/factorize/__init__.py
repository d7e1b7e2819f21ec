"""Passes that compute layers in parts of less work."""

from graphopt.passes.factorize.convert_depthwise import ConvertDepthwise
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.simplify_convolutions import SimplifyConvolutions

__all__ = ["ConvertDepthwise", "Factorize", "SimplifyConvolutions"]

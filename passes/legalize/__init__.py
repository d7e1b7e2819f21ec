"""Passes that bring a model into the form that a target takes, whatever that costs."""

from graphopt.passes.legalize.convert_opset import ConvertOpset
from graphopt.passes.legalize.fix_shapes import FixShapes
from graphopt.passes.legalize.lower_ops import LowerOps

__all__ = ["ConvertOpset", "FixShapes", "LowerOps"]

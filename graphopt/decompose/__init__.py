"""Layers computed in parts: sums of depthwise convolutions, and products of lower rank."""

from graphopt.decompose.decomposer import decompose
from graphopt.decompose.forms import KINDS, Form, Kind
from graphopt.decompose.options import Options

__all__ = ["KINDS", "Form", "Kind", "Options", "decompose"]

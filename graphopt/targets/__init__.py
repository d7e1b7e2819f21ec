"""Targets: what a model is optimized for."""

from graphopt.targets.checking import Violation, check
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.scheme import Form, Format, IntegerKernel, Scheme
from graphopt.targets.table import TARGETS, get

__all__ = [
    "TARGETS",
    "Form",
    "Format",
    "IntegerKernel",
    "Requirement",
    "Scheme",
    "Target",
    "Violation",
    "check",
    "get",
]

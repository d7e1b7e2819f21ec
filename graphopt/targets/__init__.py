"""Targets: what a model is optimized for."""

from graphopt.targets.profile import TARGETS, Target, get

__all__ = ["TARGETS", "Target", "get"]

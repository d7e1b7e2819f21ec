"""Passes that change the floating-point type that a model computes in."""

from graphopt.passes.precision.convert_fp16 import ConvertFp16

__all__ = ["ConvertFp16"]

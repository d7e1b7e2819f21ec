"""Passes that hand the model to other programs."""

from graphopt.passes.external.onnxsim_pass import Onnxsim

__all__ = ["Onnxsim"]

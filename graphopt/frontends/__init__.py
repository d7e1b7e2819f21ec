"""Frontends: each reads a model of one framework into normal form."""

from __future__ import annotations

from typing import Any

from graphopt import ir
from graphopt.frontends.torch import from_torch, is_torch_module

__all__ = ["load"]


def load(source: Any, *, inputs: Any = None) -> ir.Model:
    """Read a model into normal form.

    Args:
        source: Path of an ``.onnx`` file, bytes, ``onnx.ModelProto``, ``onnx_ir.Model`` or
            ``torch.nn.Module``.
        inputs: Example inputs, for a torch module: a tuple of positional arguments or a dict of
            keyword arguments.

    Raises:
        FrontendError: The source cannot be read.
    """
    if is_torch_module(source):
        return from_torch(source, inputs)
    return ir.load(source)

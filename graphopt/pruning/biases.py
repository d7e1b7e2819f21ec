"""Biases for layers without one, so that what they make up for has a place from the start."""

from __future__ import annotations

import numpy as np

from graphopt import ir
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter

__all__ = ["with_biases"]


def with_biases(model: ir.Model) -> ir.Model:
    """A copy of a model in which every Conv and Gemm that is a layer has a bias, if of zeros.

    Layers that are fitted get one, and the analysis of channels has to know of it before it is cut.

    Args:
        model: The model.
    """
    copy = ir.clone(model)
    rw = Rewriter(copy)
    for layer in layers(copy):
        node = layer.node
        if node.op_type == "MatMul" or layer.adds is not None:
            continue
        if len(node.inputs) < 3 or node.inputs[2] is None:
            weight = node.inputs[1]
            name = f"{weight.name}.bias" if weight is not None else "bias"
            rw.set_input(node, 2, rw.const(np.zeros(layer.outputs, np.float32), name))
    ir.infer_shapes(copy)
    return copy

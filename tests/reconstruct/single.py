"""Models of one layer, and what NumPy makes of its matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.reconstruct import Layer, layers
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]


def constant(name: str, data: Any) -> str:
    """A float32 constant in ONNX text syntax."""
    array = np.asarray(data, np.float32)
    sizes = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    return f"float{sizes} {name} = {{{', '.join(map(str, array.ravel().tolist()))}}}"


def network(body: str, x: str, opset: int = 17, **constants: Any) -> ir.Model:
    """A model that reads x and computes y of float32, with shapes inferred."""
    known = ", ".join(constant(name, data) for name, data in constants.items())
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = ir.parse_text(f"{head} m (float[{x}] x) => (float y) <{known}> {{ {body} }}")
    ir.infer_shapes(model)
    return model


def only(model: ir.Model) -> Layer:
    """The one layer of a model."""
    (layer,) = layers(model)
    return layer


def run(model: ir.Model, x: Array) -> Array:
    """What a model computes."""
    with open_session(model) as session:
        return np.asarray(session.run({"x": x})["y"])


def normal(*shape: int, seed: int = 0) -> Array:
    """Random float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(layer: Layer, x: Array) -> Array:
    """What a layer computes as rows, from its matrix and bias: ``[rows, outputs]``."""
    rows = as_rows(layer, x)[:, None] if layer.patches is None else layer.patches.cut(x, 1 << 30)
    found = np.einsum("rgc,goc->rgo", rows.astype(np.float64), layer.matrix()) + layer.bias()
    return found.reshape(len(rows), -1)


def as_rows(layer: Layer, y: Array) -> Array:
    """The output of a layer as rows."""
    if layer.patches is not None:
        y = np.moveaxis(y, 1, -1)
    return y.reshape(-1, y.shape[-1])

"""Models of ONNX text, with weights that text would be too long for."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir

__all__ = ["build", "ints", "written"]

Array = np.ndarray[Any, Any]


def written(graph: str, *, opset: int = 17, whole: bool = False, **weights: Any) -> ir.Model:
    """A model of text and weights.

    Args:
        graph: As in ``g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }``.
        opset: Of the default domain.
        whole: Draw small integers, which no sum rounds.
        **weights: Arrays, or shapes of random float32.
    """
    import onnx

    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {graph}')
    rng = np.random.default_rng(0)
    for name, given in weights.items():
        data = given
        if isinstance(given, tuple):
            drawn = rng.integers(-2, 3, given) if whole else rng.normal(size=given)
            data = drawn.astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), name))
    return ir.load(proto)


def build(body: str, x: str = "N,3,8,8", **options: Any) -> ir.Model:
    """A model from float32 ``x`` to ``y``, with shapes inferred; see :func:`written`."""
    model = written(f"g (float[{x}] x) => (float[] y) {{ {body} }}", **options)
    ir.infer_shapes(model)
    return model


def ints(*values: int) -> Array:
    """A vector of int64."""
    return np.array(values, np.int64)

"""Models of a convolution, and the pass simplify-convolutions at work on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from graphopt import PassManager, ir
from graphopt.passes.factorize import SimplifyConvolutions
from graphopt.testing import assert_equivalent, check_pass

Array = np.ndarray[Any, Any]


def build(graph: str, *, opset: int = 17, **weights: Array) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {graph}')
    for name, data in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), name))
    return ir.load(proto)


def simplified(model: ir.Model, *, changes: bool = True) -> list[ir.Node]:
    """The nodes of the result, whose numbers are compared and that does not change again."""
    manager = PassManager(SimplifyConvolutions(), objective=None)
    result = manager.run(model)
    assert result.report.changed == changes
    ir.verify(result.model)
    if model.graph.inputs[0].dtype == ir.DataType.DOUBLE:
        assert_doubles(model, result.model)
    else:
        assert_equivalent(model, result.model)
    assert not manager.run(result.model).report.changed
    return list(result.model.graph)


def assert_doubles(model: ir.Model, other: ir.Model) -> None:
    """ONNX Runtime has no convolution of doubles."""
    feeds = {
        v.name: np.random.default_rng(0).normal(
            size=[d if isinstance(d, int) else 5 for d in ir.dims(v) or ()]
        )
        for v in model.graph.inputs
    }
    (a,), (b,) = (ReferenceEvaluator(ir.to_proto(m)).run(None, feeds) for m in (model, other))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-14 * np.abs(a).max())


def declined(model: ir.Model) -> str:
    result = check_pass(SimplifyConvolutions(), model, None)
    assert not result.report.reverted
    (record,) = result.report.passes
    return "; ".join(record.declined)


def weight(*shape: int, seed: int = 0, dtype: type = np.float32) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(dtype)


def inside(whole: Array, *, axes: tuple[slice, ...]) -> Array:
    """A weight that is zero but for some elements of its kernels."""
    found = np.zeros_like(whole)
    found[(..., *axes)] = whole[(..., *axes)]
    return found


def kernels(model_nodes: list[ir.Node]) -> list[tuple[int, ...]]:
    return [ir.static_shape(n.inputs[1]) or () for n in model_nodes if n.op_type == "Conv"]


def diagonal(outputs: int, inputs: int, blocks: int, *kernel: int, groups: int = 1) -> Array:
    w = weight(outputs, inputs, *kernel) * np.random.default_rng(1).choice([-1, 1], inputs)[
        (slice(None), *[None] * len(kernel))
    ].astype(np.float32)
    # No kernel is a product.
    w += np.random.default_rng(2).normal(size=w.shape).astype(np.float32)
    o, c = outputs // groups // blocks, inputs // blocks
    for i, j in itertools.product(range(outputs), range(inputs)):
        if i % (outputs // groups) // o != j // c:
            w[i, j] = 0
    return w


def product(*factors: Array) -> Array:
    found = factors[0]
    for factor in factors[1:]:
        found = found * factor
    return found


def wild(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

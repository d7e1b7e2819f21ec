"""Codes as nodes: the bits they compute, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Exactness, ir
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session
from graphopt.storage import Emitter, encode
from graphopt.storage.sparse import Code, _candidates
from graphopt.testing import assert_equivalent

Array = np.ndarray[Any, Any]


def model_of(weight: Array, opset: int) -> ir.Model:
    """A convolution, and its weight as an output."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
            helper.make_node("Identity", ["w"], ["seen"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 8, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("seen", kind, weight.shape),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.load(proto)


def coded(model: ir.Model, code: Code) -> ir.Model:
    result = ir.clone(model)
    rw = Rewriter(result)
    with rw.at(next(iter(result.graph))):
        decoded = Emitter(rw)(code, "w")
    rw.replace(result.graph.initializers["w"], decoded)
    rw.remove_initializers()
    ir.verify(result)
    return result


def weights(kind: str) -> Array:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(15, 12, 3, 3)).astype(np.float16).astype(np.float32)
    if kind == "half":
        return np.where(np.abs(array) < 0.7, np.float32(0), array)
    if kind == "2:4":
        rank = np.argsort(np.argsort(np.abs(array.reshape(15, 3, 4, 3, 3)), axis=2), axis=2)
        return np.where(rank.reshape(array.shape) < 2, np.float32(0), array)
    if kind == "blocks":
        kept = rng.random((15, 12, 1, 1)) < 0.5
        return np.where(kept, array * np.float32(1.1), np.float32(0))
    return np.where(np.abs(array) < 2.5, np.float32(0), array)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("kind", ["half", "2:4", "blocks", "few"])
def test_decoded_bit_by_bit(opset: int, kind: str) -> None:
    weight = weights(kind)
    model = model_of(weight, opset)
    codes = list(_candidates(weight))
    assert len({c.coding for c in codes}) >= 3
    for code in codes:
        assert_equivalent(model, coded(model, code), Exactness.BITWISE, seeds=(0,))


def folded(model: ir.Model, path: Path) -> tuple[Counter[str], Array]:
    """The operators of the model as ONNX Runtime optimized it, and the weight it computed."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    (seen,) = session.run(["seen"], {"x": np.zeros((1, 12, 8, 8), np.float32)})
    return Counter(n.op_type for n in onnx.load(path).graph.node), seen


@pytest.mark.parametrize("kind", ["half", "2:4", "blocks", "few"])
def test_onnx_runtime_decodes_at_load(kind: str, tmp_path: Path) -> None:
    weight = weights(kind)
    model = model_of(weight, 17)
    want, _ = folded(model, tmp_path / "plain.onnx")
    for code in _candidates(weight):
        got, seen = folded(coded(model, code), tmp_path / "coded.onnx")
        assert got == want, code.coding
        assert seen.tobytes() == weight.tobytes()


def test_small_constants_are_shared() -> None:
    weight = weights("half")
    model = model_of(weight, 17)
    rw = Rewriter(model)
    emit = Emitter(rw)
    with rw.at(next(iter(model.graph))):
        emit(encode(weight), "a")
        before = len(model.graph.initializers)
        emit(encode(weight), "b")
    assert len(model.graph.initializers) == before + 2  # its mask and its values


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.float64])
def test_other_types(dtype: type) -> None:
    rng = np.random.default_rng(1)
    array: Array = (rng.integers(1, 100, (8, 12)) * (rng.random((8, 12)) < 0.4)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", kind, array.shape)],
        [numpy_helper.from_array(array, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = ir.load(proto)
    for code in _candidates(array):
        with open_session(coded(model, code)) as session:
            assert session.run({})["y"].tobytes() == array.tobytes()

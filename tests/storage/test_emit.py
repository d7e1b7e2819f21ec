"""Codes as nodes: the bits they compute, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from storage.arrays import all_kinds, clustered, thinned

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session
from graphopt.storage import Code, Emitter, encode
from graphopt.storage.encode import candidates

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
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=FORMATS[opset]
    )
    return ir.load(proto)


def constant(array: Array, opset: int, version: int | None = None) -> onnx.ModelProto:
    """Nothing but an array."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", kind, array.shape)],
        [numpy_helper.from_array(array, "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=version or FORMATS[opset])


def some(array: Array) -> list[Code]:
    """One code of each name."""
    found = [encode(array), *candidates(array)]
    return list({str(code): code for code in found}.values())


def coded(model: ir.Model, code: Code) -> ir.Model:
    result = ir.clone(model)
    rw = Rewriter(result)
    with rw.at(next(iter(result.graph))):
        decoded = Emitter(rw)(code, "w")
    rw.replace(result.graph.initializers["w"], decoded)
    rw.remove_initializers()
    ir.verify(result)
    return result


FORMATS = {11: 6, 13: 7, 17: 8, 21: 10, 25: 13}


@pytest.mark.parametrize("opset", [11, 25])
@pytest.mark.parametrize("kind", all_kinds())
def test_decoded_bit_by_bit(opset: int, kind: str) -> None:
    array = all_kinds()[kind]
    proto = constant(array, opset)
    for code in some(array):
        with open_session(coded(ir.load(proto), code)) as session:
            found = session.run({})["y"]
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes(), str(code)


def folded(model: ir.Model, path: Path, channels: int) -> tuple[Counter[str], Array]:
    """The operators of the model as ONNX Runtime optimized it, and the weight it computed."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    (seen,) = session.run(["seen"], {"x": np.zeros((1, channels, 8, 8), np.float32)})
    return Counter(n.op_type for n in onnx.load(path).graph.node), seen


@pytest.mark.parametrize("opset", [13, 25])
@pytest.mark.parametrize("kind", all_kinds())
def test_onnx_runtime_decodes_at_load(kind: str, opset: int, tmp_path: Path) -> None:
    array = all_kinds()[kind]
    weight = array.reshape(array.shape[0], -1, *array.shape[2:4], *[1] * (4 - max(array.ndim, 2)))
    weight = np.ascontiguousarray(weight)
    model = model_of(weight, opset)
    want, _ = folded(model, tmp_path / "plain.onnx", weight.shape[1])
    code = encode(weight)
    got, seen = folded(coded(model, code), tmp_path / "coded.onnx", weight.shape[1])
    assert got == want, str(code)
    assert seen.tobytes() == weight.tobytes()


@pytest.mark.parametrize(("entries", "opset", "name"), [(16, 21, "UINT4"), (4, 25, "UINT2")])
def test_types_of_few_bits_where_there_are_any(entries: int, opset: int, name: str) -> None:
    array = clustered((64, 33), entries)

    def stored(opset: int, version: int) -> tuple[set[str], Counter[str]]:
        model = ir.load(constant(array, opset, version))
        result = coded(model, encode(array))
        again = ir.load(ir.to_bytes(result))
        return (
            {v.dtype.name for v in again.graph.initializers.values() if v.dtype is not None},
            Counter(node.op_type for node in again.graph),
        )

    kinds, operators = stored(opset, FORMATS[opset])
    assert name in kinds
    assert "Div" not in operators
    for older in ((opset - 1, FORMATS[opset]), (opset, 9)):
        kinds, operators = stored(*older)
        assert name not in kinds
        assert "Div" in operators


def test_small_constants_are_shared() -> None:
    weight = thinned((15, 12, 3, 3), 0.5, half=True)
    model = model_of(weight, 17)
    rw = Rewriter(model)
    emit = Emitter(rw)
    with rw.at(next(iter(model.graph))):
        emit(encode(weight), "a")
        before = len(model.graph.initializers)
        emit(encode(weight), "b")
    assert len(model.graph.initializers) == before + 2  # its mask and its values


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.float16, np.float64, np.int32, np.int64, np.bool_, np.int16]
)
@pytest.mark.parametrize("many", [1, 3, 60])
def test_other_types(dtype: type, many: int) -> None:
    rng = np.random.default_rng(1)
    numbers = rng.integers(1, 100, many)[rng.integers(0, many, (8, 12))]
    array: Array = (numbers * (rng.random((8, 12)) < 0.4)).astype(dtype)
    for code in some(array):
        with open_session(coded(ir.load(constant(array, 13)), code)) as session:
            assert session.run({})["y"].tobytes() == array.tobytes()

"""The pipeline ``repair`` on whole nets, in the forms that tools give them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Exactness, PassManager, ir
from graphopt.runtime import open_session
from graphopt.testing import assert_equivalent

CHANNELS = 8


@dataclasses.dataclass(frozen=True)
class Style:
    """How a tool writes a quantized model.

    Attributes:
        activations: Type of activations.
        zero: Zero point behind a Relu.
        domain: Of quantizers and dequantizers.
        pairs: Every reader has a quantizer and a dequantizer of its own.
        float_weights: Weights are in floating point, before a quantizer.
        bias: Biases are quantized.
        residual: What is between a convolution and an addition is quantized.
        pool_first: A pool comes before the quantizer of what it reads.
    """

    activations: int = TensorProto.INT8
    zero: int = -128
    domain: str = ""
    pairs: bool = False
    float_weights: bool = False
    bias: bool = True
    residual: bool = True
    pool_first: bool = False


STYLES = {
    "onnxruntime-s8": Style(),
    "onnxruntime-dedicated": Style(pairs=True),
    "quark": Style(zero=0, domain="com.microsoft"),
    "nncf": Style(activations=TensorProto.UINT8, zero=0, float_weights=True, bias=False),
    "tensorrt": Style(zero=0, float_weights=True, bias=False, residual=False, pool_first=True),
}


class Net:
    """A residual block, a pool and a classifier, quantized in some style."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def const(self, data: Any, dtype: int) -> str:
        name = f"c{len(self.weights)}"
        array = np.asarray(data).astype(helper.tensor_dtype_to_np_dtype(dtype))
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        domain = self.style.domain if "Linear" in op_type else ""
        self.nodes.append(
            helper.make_node(op_type, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name

    def quantized(self, x: str, scale: float, zero: int, readers: int = 1) -> list[str]:
        """The value behind a quantizer and a dequantizer, one name per reader."""
        grid = (self.const(scale, TensorProto.FLOAT), self.const(zero, self.style.activations))
        codes = [
            self.op("QuantizeLinear", x, *grid) for _ in range(readers if self.style.pairs else 1)
        ]
        found = [self.op("DequantizeLinear", q, *grid) for q in codes]
        return found * readers if len(found) == 1 else found

    def conv(self, x: str, scale: float, size: int = 3) -> str:
        kernel = self.rng.normal(0, 0.2, (CHANNELS, CHANNELS, size, size)).astype(np.float32)
        steps = np.abs(kernel).max((1, 2, 3)) / 127
        grid = (self.const(steps, TensorProto.FLOAT), self.const(0 * steps, TensorProto.INT8))
        if self.style.float_weights:
            floats = self.const(kernel, TensorProto.FLOAT)
            codes = self.op("QuantizeLinear", floats, *grid, axis=0)
        else:
            rounded = np.rint(kernel / steps[:, None, None, None])
            codes = self.const(rounded, TensorProto.INT8)
        weight = self.op("DequantizeLinear", codes, *grid, axis=0)
        bias = self.rng.normal(0, 0.1, CHANNELS).astype(np.float32)
        if self.style.bias:
            step = (scale * steps).astype(np.float32)
            grid = (self.const(step, TensorProto.FLOAT), self.const(0 * step, TensorProto.INT32))
            whole = self.const(np.rint(bias / step), TensorProto.INT32)
            added = self.op("DequantizeLinear", whole, *grid, axis=0)
        else:
            added = self.const(bias, TensorProto.FLOAT)
        return self.op("Conv", x, weight, added, pads=[size // 2] * 4)

    def build(self) -> ir.Model:
        zero = 128 if self.style.activations == TensorProto.UINT8 else 0
        relu = self.style.zero
        (x,) = self.quantized("x", 0.02, zero)
        first = self.op("Relu", self.conv(x, 0.02))
        if self.style.pool_first:
            first = self.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
            skip, x = self.quantized(first, 0.03, relu, 2)
        else:
            (before,) = self.quantized(first, 0.03, relu)
            pooled = self.op("MaxPool", before, kernel_shape=[2, 2], strides=[2, 2])
            skip, x = self.quantized(pooled, 0.03, relu, 2)
        (x,) = self.quantized(self.op("Relu", self.conv(x, 0.03)), 0.03, relu)
        branch = self.conv(x, 0.03)
        if self.style.residual:
            (branch,) = self.quantized(branch, 0.04, zero)
        (x,) = self.quantized(self.op("Relu", self.op("Add", branch, skip)), 0.05, relu)
        (last,) = self.quantized(self.conv(x, 0.05, 1), 0.05, zero)
        self.nodes[-1].output[0] = "y"
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        shape = ["N", CHANNELS, 8, 8]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, 4, 4])],
            self.weights,
        )
        assert last
        return ir.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def fused(model: ir.Model, folder: Path) -> Counter[str]:
    """Operators once ONNX Runtime has optimized the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def data() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0, 1, (4, CHANNELS, 8, 8)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("style", STYLES)
def test_every_convolution_runs_on_integers(style: str, tmp_path: Path) -> None:
    model = Net(STYLES[style]).build()
    manager = PassManager("repair", target="cpu-x64", data=data(), on_mismatch="raise")
    result = manager.run(model)
    ir.check(model, result.model)
    found = fused(result.model, tmp_path)
    assert found["QLinearConv"] == 4, found
    assert found["QLinearAdd"] == 1, found
    assert not found["Conv"] + found["FusedConv"] + found["Relu"], found
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1, found
    lossy = {p.name for p in result.report.passes if p.changed and p.exactness == "lossy"}
    assert lossy == ({"place-qdq"} if style == "tensorrt" else set())
    if not lossy:
        assert_equivalent(model, result.model, Exactness.BITWISE, data=data())
    assert not manager.run(result.model).report.changed


def test_relus_disappear(tmp_path: Path) -> None:
    """With all integers for what comes out of a Relu no Clip is left."""
    model = Net(STYLES["quark"]).build()
    clips = [
        fused(PassManager(p, target="cpu-x64").run(model).model, tmp_path)["Clip"]
        for p in ("repair", "widen-qdq,repair")
    ]
    assert clips == [3, 0]


def test_what_was_calibrated_is_close() -> None:
    """One rounding more, of 255 steps over the range of the samples."""
    model = Net(STYLES["tensorrt"]).build()
    result = PassManager("repair", target="cpu-x64", data=data()).run(model)
    outputs = []
    for each in (model, result.model):
        with open_session(each) as session:
            outputs.append(session.run(data()[0])["y"])
    a, b = outputs
    assert 20 * np.log10(np.linalg.norm(a) / np.linalg.norm(a - b)) > 30


def test_without_data_the_rest_is_repaired(tmp_path: Path) -> None:
    model = Net(STYLES["tensorrt"]).build()
    result = PassManager("repair", target="cpu-x64", on_mismatch="raise").run(model)
    assert_equivalent(model, result.model, Exactness.BITWISE, data=data())
    assert fused(result.model, tmp_path)["QLinearConv"] == 3
    (record,) = [p for p in result.report.passes if p.name == "place-qdq"]
    assert "no calibration data" in "; ".join(record.declined)


@pytest.mark.parametrize("style", STYLES)
def test_there_and_back(style: str) -> None:
    """Repaired for one target and then for another: still the same bits."""
    model = Net(STYLES[style]).build()
    there = PassManager("repair", target="cpu-x64").run(model).model
    back = PassManager("repair", target="cpu-arm64").run(there).model
    assert_equivalent(model, back, Exactness.BITWISE, data=data())
    types = {n.outputs[0].dtype for n in back.graph if n.op_type == "QuantizeLinear"}
    assert types == {ir.DataType.INT8}

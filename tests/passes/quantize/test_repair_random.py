"""repair-qdq keeps every bit of random models, whatever is quantized in them and how."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import PassManager, ir
from graphopt.passes.quantize import RepairQdq
from graphopt.runtime import Oracle

SHAPE = (2, 3, 4, 4)
PADS = np.array([0, 0, 1, 0, 0, 0, -1, 0], np.int64)


class RandomNet:
    """A chain of random operators with branches; quantizers of few grids, so that some meet."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.grids = [self.grid() for _ in range(3)]
        self.values = ["x"]

    def maybe(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def const(self, data: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(data), f"c{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], domain=domain, **attributes))
        return name

    def grid(self) -> tuple[Any, Any]:
        dtype = (np.int8, np.uint8)[self.rng.integers(2)]
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        zero = self.rng.choice([low, (low + high + 1) // 2, self.rng.integers(low, high + 1)])
        shape = (1,) if self.maybe(0.2) else ()
        scale = self.rng.choice([0.01, 0.02, 0.05, 0.1])
        return np.full(shape, scale, np.float32), np.full(shape, zero, dtype)

    def pair(self, x: str) -> str:
        scale, zero = self.grids[self.rng.integers(len(self.grids))]
        domain = "com.microsoft" if self.maybe(0.2) else ""
        codes = self.op("QuantizeLinear", x, self.const(scale), self.const(zero), domain=domain)
        element = self.const(zero.reshape(-1)[0])
        if self.maybe(0.1):
            codes = self.op("MaxPool", codes, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if self.maybe(0.1):
            codes = self.op("Clip", codes, element)
        if self.maybe(0.1):
            codes = self.op("Pad", codes, self.const(PADS), element)
        return self.op(
            "DequantizeLinear", codes, self.const(scale), self.const(zero), domain=domain
        )

    def conv(self, x: str) -> str:
        weight = self.rng.normal(0, 0.3, (3, 3, 1, 1)).astype(np.float32)
        scale = np.abs(weight).max((1, 2, 3)) / np.float32(127)
        dtype, middle = ((np.int8, 0), (np.uint8, 128))[self.rng.integers(2)]
        grid = (self.const(scale), self.const(np.full(3, middle, dtype)))
        if self.maybe(0.5):
            codes = self.op("QuantizeLinear", self.const(weight), *grid, axis=0)
        else:
            rounded = np.rint(weight / scale[:, None, None, None]) + middle
            codes = self.const(rounded.astype(dtype))
        found = self.op("DequantizeLinear", codes, *grid, axis=(0, -4)[self.rng.integers(2)])
        if self.maybe(0.2):
            found = self.op("Transpose", found, perm=[1, 0, 3, 2])
        return self.op("Conv", x, found)

    def step(self) -> str:
        x = self.values[self.rng.integers(len(self.values))] if self.maybe(0.4) else self.values[-1]
        other = self.values[self.rng.integers(len(self.values))]
        low, high = sorted(self.rng.choice([-1.0, 0.0, 0.5, 1.0, 2.55, 6.0], 2, replace=False))
        match int(self.rng.integers(12)):
            case 0:
                return self.op("Relu", x)
            case 1:
                return self.op("Clip", x, *map(self.const, np.array([low, high], np.float32)))
            case 2:
                return self.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case 3:
                number = np.float32(self.rng.choice([0, 0.013, -5]))
                return self.op("Pad", x, self.const(PADS), self.const(number))
            case 4:
                return self.op("Transpose", x, perm=[0, 1, 3, 2])
            case 5:
                return self.op(str(self.rng.choice(["Add", "Mul"])), x, other)
            case 6:
                joined = self.op("Concat", x, other, axis=1)
                ends = (self.const(np.array([n], np.int64)) for n in (2, 5, 1))
                return self.op("Slice", joined, *ends)
            case 7:
                return self.op("Erf", x)
            case 8:
                return self.conv(x)
            case _:
                return self.pair(x)

    def build(self) -> ir.Model:
        for _ in range(int(self.rng.integers(6, 20))):
            self.values.append(self.step())
        kept = [v for v in self.values[1:-1] if self.maybe(0.1)] + self.values[-1:]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in kept],
            self.weights,
        )
        opsets = [
            helper.make_opsetid("", int(self.rng.choice([13, 17, 21]))),
            helper.make_opsetid("com.microsoft", 1),
        ]
        return ir.load(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize("target", ["cpu-x64", "cpu-arm64", "tensorrt", "nnapi"])
def test_same_bits(target: str) -> None:
    fired: set[str] = set()
    for seed in range(16):
        model = RandomNet(seed).build()
        rng = np.random.default_rng(seed)
        data = [{"x": rng.normal(0, width, SHAPE).astype(np.float32)} for width in (0.3, 3, 30)]
        oracle = Oracle(model, data=data, samples=3)
        assert oracle.available, oracle.reason
        result = PassManager(RepairQdq(), target=target, oracle="off").run(model)
        found = oracle.check(result.model, RepairQdq.exactness)
        assert found.ok, f"seed {seed}: {found.reason}"
        ir.check(model, result.model)
        again = PassManager(RepairQdq(), target=target, oracle="off").run(result.model)
        assert not again.report.changed, f"seed {seed}: {again.report.passes[0].rewrites}"
        fired.update(result.report.passes[0].rewrites)
    common = {"use-standard-operator", "simplify-grid", "fold-quantized-constant", "store-weight"}
    assert fired >= common | {"fold-transposed-weight", "drop-requantizing", "relabel-activation"}

"""Does ONNX Runtime compute on integers what the table of cpu-x64 says, and nothing else?

Every case is one operator, quantized as its entry in the table says, and run through ONNX Runtime's
optimizer: an integer kernel has taken it if nobody reads the result of a DequantizeLinear any more.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.targets import IntegerKernel, Scheme, check, get

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="the table is that of x86-64; other processors have other kernels",
)

FOUND = get("cpu-x64").scheme
assert FOUND is not None
SCHEME: Scheme = FOUND
RNG = np.random.default_rng(0)
X = (1, 4, 8, 8)
IMAGE = {"x": X}
PAIR = {"x": X, "x1": X}


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator in ONNX syntax. Inputs x, x1, .. are fed; w, b, .. are constants.

    Attributes:
        text: The node.
        shapes: Shapes of floating point inputs.
        constants: Other constants.
        opset: Of the default domain.
        integer: Whether ONNX Runtime has an integer kernel.
    """

    text: str
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    opset: int = 17
    integer: bool = True

    def __str__(self) -> str:
        return self.text.replace(" ", "")

    @property
    def node(self) -> onnx.NodeProto:
        return onnx.parser.parse_node(self.text)

    def plain(self) -> ir.Node:
        """The node as the table gets to see it, in a model of floating point numbers."""
        node = self.node
        fed = [n for n in self.shapes if n.startswith("x")]
        values = {
            **{n: np.ones(s, np.float32) for n, s in self.shapes.items() if n not in fed},
            **self.constants,
        }
        graph = helper.make_graph(
            [node],
            "case",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in fed],
            [helper.make_empty_tensor_value_info(n) for n in node.output],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in values.items()],
        )
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = ir.load(helper.make_model(graph, opset_imports=domains, ir_version=10))
        (found,) = model.graph
        return found


def i64(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


INTEGER = [
    Case("y = Conv(x, w, b)", {"x": X, "w": (6, 4, 3, 3), "b": (6,)}),
    Case("y = Conv(x, w)", {"x": X, "w": (6, 4, 3, 3)}, opset=22),
    Case("y = Conv <group=4> (x, w)", {"x": X, "w": (4, 1, 3, 3)}),
    Case("y = Conv <group=2, dilations=[2,2]> (x, w)", {"x": X, "w": (6, 2, 3, 3)}),
    Case("y = Conv(x, w, b)", {"x": (1, 4, 8), "w": (6, 4, 3), "b": (6,)}),
    Case("y = Conv(x, w, b)", {"x": (1, 2, 4, 4, 4), "w": (6, 2, 3, 3, 3), "b": (6,)}),
    Case("y = Conv(x, x1)", {"x": X, "x1": (6, 4, 3, 3)}),
    Case("y = Gemm(x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (6,)}),
    Case("y = Gemm <transB=1> (x, w, b)", {"x": (3, 8), "w": (6, 8), "b": (6,)}),
    Case("y = Gemm <transA=1> (x, w)", {"x": (8, 3), "w": (8, 6)}),
    Case("y = Gemm(x, x1)", {"x": (3, 8), "x1": (8, 6)}),
    Case("y = MatMul(x, w)", {"x": (2, 3, 8), "w": (8, 6)}),
    Case("y = MatMul(x, x1)", {"x": (2, 3, 8), "x1": (2, 8, 6)}),
    Case("y = MatMul(w, x)", {"w": (3, 8), "x": (8, 6)}),
    Case("y = Add(x, x1)", PAIR),
    Case("y = Add(x, w)", {"x": X, "w": (4, 1, 1)}),
    Case("y = Mul(w, x)", {"x": X, "w": (4, 1, 1)}),
    Case("y = Concat <axis=1> (x, x1, w)", {**PAIR, "w": (1, 1, 8, 8)}),
    Case("y = Where(c, x, x1)", PAIR, {"c": np.array([True, False] * 2).reshape(4, 1, 1)}),
    Case("y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x)", IMAGE),
    Case("y = AveragePool <kernel_shape=[2]> (x)", {"x": (1, 4, 8)}),
    Case("y = GlobalAveragePool(x)", IMAGE),
    Case("y = LeakyRelu <alpha=0.1> (x)", IMAGE),
    Case("y = Sigmoid(x)", IMAGE),
    Case("y = Softmax <axis=-1> (x)", {"x": (3, 8)}),
    Case("y = Softmax <axis=1> (x)", IMAGE, opset=12),
    Case("y = MaxPool <kernel_shape=[2,2]> (x)", IMAGE),
    Case("y = MaxPool <kernel_shape=[2,2]> (x)", IMAGE, opset=12),
    Case("y = ReduceMax <axes=[2]> (x)", IMAGE),
    Case("y = ReduceMin(x, c)", IMAGE, {"c": i64(1)}, opset=18),
    Case("y = Resize(x, , c)", IMAGE, {"c": np.array([1, 1, 2, 2], np.float32)}),
    Case("y = Gather <axis=1> (x, c)", IMAGE, {"c": i64(0, 1)}),
    Case("y = GatherElements <axis=1> (x, c)", {"x": (3, 8)}, {"c": np.zeros((3, 2), np.int64)}),
    Case("y = DepthToSpace <blocksize=2> (x)", IMAGE),
    Case("y = Expand(x, c)", IMAGE, {"c": i64(2, 4, 8, 8)}),
    Case("y = Flatten(x)", IMAGE),
    Case("y = Identity(x)", IMAGE),
    Case("y = Reshape(x, c)", IMAGE, {"c": i64(1, -1)}, opset=21),
    Case("y = Slice(x, c, c1, c2)", IMAGE, {"c": i64(0), "c1": i64(2), "c2": i64(1)}),
    Case("y, y1 = Split <axis=1> (x, c)", IMAGE, {"c": i64(2, 2)}),
    Case("y, y1 = Split <axis=1, num_outputs=2> (x)", IMAGE, opset=18),
    Case("y = Squeeze(x, c)", IMAGE, {"c": i64(0)}),
    Case("y = Tile(x, c)", IMAGE, {"c": i64(1, 1, 2, 1)}),
    Case("y = Transpose <perm=[0,2,3,1]> (x)", IMAGE, opset=24),
    Case("y = Unsqueeze(x, c)", IMAGE, {"c": i64(0)}),
]
OTHERS = [
    Case("y = ConvTranspose(x, w)", {"x": X, "w": (4, 6, 3, 3)}),
    Case("y = MatMul(x, w)", {"x": (2, 3, 8), "w": (2, 8, 6)}),
    Case("y = Sub(x, x1)", PAIR),
    Case("y = Div(x, x1)", PAIR),
    Case("y = Max(x, x1)", PAIR),
    Case("y = Tanh(x)", IMAGE),
    Case("y = HardSigmoid(x)", IMAGE),
    Case("y = Elu(x)", IMAGE),
    Case("y = Gelu(x)", IMAGE, opset=20),
    Case("y = ReduceMean <axes=[2,3]> (x)", IMAGE),
    Case("y = GlobalMaxPool(x)", IMAGE),
    Case("y = MaxPool <kernel_shape=[2,2]> (x)", IMAGE, opset=11),
    Case('y = Resize <mode="linear"> (x, , c)', IMAGE, {"c": np.array([1, 1, 2, 2], np.float32)}),
    Case("y = SpaceToDepth <blocksize=2> (x)", IMAGE),
    Case("y = Sqrt(x)", IMAGE),
]
# What the table leaves out because not all of its forms are fused.
CAUTIOUS = [
    Case("y = Gemm <alpha=2.0> (x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (6,)}),
    Case("y = Gemm <beta=2.0> (x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (6,)}),
    Case("y = Gemm(x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (3, 6)}),
    Case("y = Gemm(x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (1, 6)}),
    Case("y = Gemm(x, w, x1)", {"x": (3, 8), "w": (8, 6), "x1": (6,)}),
    Case("y = Conv(x, w, x1)", {"x": X, "w": (6, 4, 3, 3), "x1": (6,)}),
]
CASES = INTEGER + [dataclasses.replace(each, integer=False) for each in OTHERS]


class Builder:
    """Writes a model in which a case is quantized."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, Any] = {}
        self.fed: dict[str, tuple[int, ...]] = {}

    def constant(self, name: str, array: Any) -> str:
        self.arrays[name] = np.asarray(array)
        return name

    def op(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def parameters(self, name: str, scale: float, point: int) -> list[str]:
        return [
            self.constant(f"{name}.scale", np.float32(scale)),
            self.constant(f"{name}.point", np.uint8(point)),
        ]

    def weight(self, name: str, shape: tuple[int, ...], axis: int, per_channel: bool) -> str:
        low, high = SCHEME.weight.limits
        data = self.constant(f"{name}.int", RNG.integers(low, high, shape).astype(np.int8))
        if not per_channel:
            scale, more = np.float32(0.01), {}
        else:
            scale, more = np.linspace(0.005, 0.02, shape[axis]).astype(np.float32), {"axis": axis}
        s = self.constant(f"{name}.scale", scale)
        z = self.constant(f"{name}.point", np.zeros(np.shape(scale), np.int8))
        return self.op("DequantizeLinear", [data, s, z], f"{name}.float", **more)

    def bias(self, name: str, shape: tuple[int, ...], weight: str, scale: float) -> str:
        product = (self.arrays[f"{weight}.scale"] * np.float32(scale)).astype(np.float32)
        data = self.constant(f"{name}.int", RNG.integers(-500, 500, shape).astype(np.int32))
        s = self.constant(f"{name}.scale", product)
        z = self.constant(f"{name}.point", np.zeros(product.shape, np.int32))
        more = {"axis": 0} if product.ndim else {}
        return self.op("DequantizeLinear", [data, s, z], f"{name}.float", **more)

    def model(self, outputs: list[str], opset: int, *, contrib: bool = False) -> onnx.ModelProto:
        domains = [helper.make_opsetid("", opset)]
        domains += [helper.make_opsetid("com.microsoft", 1)] if contrib else []
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.fed.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.arrays.items()],
        )
        return helper.make_model(graph, opset_imports=domains, ir_version=10)


def quantized(case: Case, kernel: IntegerKernel, *, float_output: bool = False) -> onnx.ModelProto:
    """The case with QuantizeLinear and DequantizeLinear where its entry in the table says."""
    build, node, scale = Builder(), case.node, 0.02
    axis = kernel.axis(case.plain())
    inputs = []
    for position, name in enumerate(node.input):
        shape = case.shapes.get(name)
        if shape is None:
            inputs.append(build.constant(name, case.constants[name]) if name else "")
        elif position == kernel.weight and not name.startswith("x"):
            per_channel = len(shape) > 1 and case.opset >= 13
            inputs.append(build.weight(name, shape, axis, per_channel))
        elif position == kernel.bias:
            inputs.append(build.bias(name, shape, node.input[1], scale))
        elif kernel.activations is None or position in (*kernel.activations, kernel.weight):
            where = build.parameters(name, scale, 128)
            if name.startswith("x"):
                build.fed[name] = shape
                data = build.op("QuantizeLinear", [name, *where], f"{name}.int")
            else:
                data = build.constant(f"{name}.int", RNG.integers(0, 255, shape).astype(np.uint8))
            inputs.append(build.op("DequantizeLinear", [data, *where], f"{name}.float"))
        else:
            inputs.append(build.constant(name, RNG.normal(size=shape).astype(np.float32)))
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = inputs
    build.nodes.append(changed)
    if float_output:
        return build.model(list(node.output), case.opset)
    outputs = []
    for name in node.output:
        where = build.parameters(name, *(kernel.output or (scale, 128)))
        data = build.op("QuantizeLinear", [name, *where], f"{name}.int")
        outputs.append(build.op("DequantizeLinear", [data, *where], f"{name}.float"))
    return build.model(outputs, case.opset)


def session(model: onnx.ModelProto, file: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if file is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(file)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.GraphProto:
    file = folder / "optimized.onnx"
    session(model, file)
    return onnx.load(file).graph


def computes_on_integers(graph: onnx.GraphProto) -> bool:
    """Nobody reads the result of a DequantizeLinear: those left make the outputs of the model."""
    floats = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return not any(name in floats for n in graph.node for name in n.input)


def largest_difference(model: onnx.ModelProto, folder: Path) -> float:
    """Between the model as it stands, and as ONNX Runtime optimizes it."""
    plain, fast = session(model), session(model, folder / "fast.onnx")
    feeds = {v.name: RNG.normal(size=v.shape).astype(np.float32) for v in plain.get_inputs()}
    pairs = zip(plain.run(None, feeds), fast.run(None, feeds), strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_static_kernels(case: Case, tmp_path: Path) -> None:
    kernel = SCHEME.kernel(case.plain())
    if not case.integer:
        assert isinstance(kernel, str), "the table has a kernel that ONNX Runtime lacks"
        as_if = SCHEME.kernels.get(case.node.op_type) or IntegerKernel(activations=None, weight=1)
        assert not computes_on_integers(optimized(quantized(case, as_if), tmp_path))
        return
    assert isinstance(kernel, IntegerKernel), kernel
    model = quantized(case, kernel)
    assert computes_on_integers(optimized(model, tmp_path))
    assert largest_difference(model, tmp_path) <= 0.0201  # rounding to a neighbour


def test_every_static_kernel_has_a_case() -> None:
    static = {name for name, kernel in SCHEME.kernels.items() if "static" in kernel.forms}
    # Pad is not fused. It is quantized by standing on the integers, see below.
    assert static - {"Pad"} == {case.node.op_type for case in INTEGER}


@pytest.mark.parametrize("case", CAUTIOUS, ids=str)
def test_left_out(case: Case) -> None:
    assert isinstance(SCHEME.kernel(case.plain()), str)


def on_integers(case: Case, parameters: list[str], build: Builder) -> list[str]:
    """The case between a QuantizeLinear and DequantizeLinears, working on integers itself."""
    node = case.node
    build.fed["x"] = case.shapes["x"]
    build.op("QuantizeLinear", ["x", *parameters], "q")
    for name in node.input[1:]:
        if name:
            build.constant(name, case.constants[name])
    if node.op_type == "Pad":
        node.input.append(parameters[1])  # the zero point in the place of 0
    node.input[0] = "q"
    build.nodes.append(node)
    return [build.op("DequantizeLinear", [n, *parameters], f"{n}.float") for n in node.output]


PADS = [
    Case("y = Pad(x, c)", IMAGE, {"c": i64(0, 0, 1, 1, 0, 0, 1, 1)}, opset=opset)
    for opset in (11, 13, 17, 21)
]


@pytest.mark.parametrize(
    "case", [c for c in INTEGER if SCHEME.kernels[c.node.op_type].passes_through] + PADS, ids=str
)
def test_what_moves_elements_also_works_on_integers(case: Case) -> None:
    """What ``moves`` of the scheme promises, to the bit."""
    assert SCHEME.moves == "integers"
    kernel = SCHEME.kernel(case.plain())
    assert isinstance(kernel, IntegerKernel), kernel
    pairs, bare = Builder(), Builder()
    where = pairs.parameters("x", 0.02, 128)
    pairs.fed["x"] = case.shapes["x"]
    pairs.op("QuantizeLinear", ["x", *where], "q")
    node = case.node
    node.input[0] = pairs.op("DequantizeLinear", ["q", *where], "f")
    pairs.nodes.append(node)
    for name in node.input[1:]:
        if name:
            pairs.constant(name, case.constants[name])
    expected = session(pairs.model(list(node.output), case.opset))
    outputs = on_integers(case, bare.parameters("x", 0.02, 128), bare)
    found = session(bare.model(outputs, case.opset))
    x = {"x": RNG.normal(size=case.shapes["x"]).astype(np.float32)}
    for got, wanted in zip(found.run(None, x), expected.run(None, x), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("case", INTEGER, ids=str)
def test_what_passes_through_keeps_its_scale(case: Case, tmp_path: Path) -> None:
    """With another scale behind it, an operator that only moves elements falls out; no other."""
    kernel = SCHEME.kernel(case.plain())
    assert isinstance(kernel, IntegerKernel)
    model = quantized(case, kernel)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("y") and tensor.name.endswith(".scale"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.05), tensor.name))
    graph = optimized(model, tmp_path)
    if case.node.op_type == "Identity":  # goes away in any case
        return
    assert computes_on_integers(graph) is not kernel.passes_through


@pytest.mark.parametrize("case", INTEGER, ids=str)
def test_floating_point_output(case: Case, tmp_path: Path) -> None:
    kernel = SCHEME.kernel(case.plain())
    assert isinstance(kernel, IntegerKernel)
    if kernel.weight is None or kernel.passes_through:
        return  # only matrices have kernels that give floating point numbers
    graph = optimized(quantized(case, kernel, float_output=True), tmp_path)
    assert computes_on_integers(graph) is kernel.float_output


@pytest.mark.parametrize(
    ("activation", "point", "scale", "gone"),
    [
        ("pre = Relu(y)", 0, 0.02, True),
        ("pre = Relu(y)", 128, 0.02, False),
        ("pre = Clip(y, low, high)", 0, 6 / 255, True),
        ("pre = Clip(y, low, high)", 0, 7 / 255, False),
    ],
)
def test_activations_that_the_zero_point_makes_redundant(
    activation: str, point: int, scale: float, gone: bool, tmp_path: Path
) -> None:
    """What ``drops_relu`` promises."""
    kernel = SCHEME.kernels["Conv"]
    model = quantized(CASES[0], dataclasses.replace(kernel, output=(scale, point)))
    nodes = list(model.graph.node)
    conv = next(i for i, n in enumerate(nodes) if n.op_type == "Conv")
    nodes[conv + 1].input[0] = "pre"
    nodes.insert(conv + 1, onnx.parser.parse_node(activation))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, bound in (("low", 0), ("high", 6)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(bound), name))
    assert SCHEME.drops_relu
    assert computes_on_integers(optimized(model, tmp_path)) is gone


def test_dilated_quantized_pool_does_not_load(tmp_path: Path) -> None:
    """The requirement ``quantized-dilated-pool`` is about a mistake of ONNX Runtime."""
    case = Case("y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x)", IMAGE, opset=19)
    assert isinstance(SCHEME.kernel(case.plain()), str)
    model = quantized(case, IntegerKernel())
    rules = [v.rule for v in check(ir.load(model), "cpu-x64")]
    assert rules == ["quantized-dilated-pool"]
    with pytest.raises(Exception, match="QLinearAveragePool"):
        session(model, tmp_path / "optimized.onnx")


# --- dynamic and weight-only forms ----------------------------------------------------------------


def kernel_of(case: Case, form: Any) -> IntegerKernel:
    found = SCHEME.kernel(case.plain(), form)
    assert isinstance(found, IntegerKernel), found
    return found


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        Case("y = MatMul(x, w)", {"x": (2, 3, 8), "w": (8, 6)}),
        Case("y = Gemm(x, w, b)", {"x": (3, 8), "w": (8, 6), "b": (6,)}),
    ],
    ids=str,
)
def test_dynamic_matrices(case: Case, per_channel: bool, tmp_path: Path) -> None:
    kernel = kernel_of(case, "dynamic")
    build, node = Builder(), case.node
    shape = case.shapes["w"]
    assert kernel.axis(case.plain()) == 1
    build.fed["x"] = case.shapes["x"]
    build.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    build.constant("w", RNG.integers(-127, 128, shape).astype(np.int8))
    size = (shape[1],) if per_channel else ()
    build.constant("w.scale", np.full(size, 0.01, np.float32))
    build.constant("w.point", np.zeros(size, np.int8))
    build.op("MatMulInteger", ["q", "w", "z", "w.point"], "i")
    build.op("Cast", ["i"], "f", to=TensorProto.FLOAT)
    build.op("Mul", ["s", "w.scale"], "m")
    last = build.op("Mul", ["f", "m"], "p")
    if len(node.input) > 2:
        build.constant("b", RNG.normal(size=case.shapes["b"]).astype(np.float32))
        last = build.op("Add", [last, "b"], "y")
    model = build.model([last], 17)
    ops = [n.op_type for n in optimized(model, tmp_path).node]
    assert ops == ["DynamicQuantizeMatMul"]
    assert largest_difference(model, tmp_path) < 1e-4


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_dynamic_lstm(directions: int, per_channel: bool, tmp_path: Path) -> None:
    hidden, features, steps = 4, 3, 5
    way = "bidirectional" if directions == 2 else "forward"
    rows = {"w": (directions, 4 * hidden, features), "w1": (directions, 4 * hidden, hidden)}
    shapes = {"x": (steps, 2, features), **rows, "b": (directions, 8 * hidden)}
    text = f'y = LSTM <hidden_size={hidden}, direction="{way}"> (x, w, w1, b)'
    kernel = kernel_of(Case(text, shapes), "dynamic")
    assert (kernel.weight, kernel.more_weights, kernel.weight_axis) == (1, (2,), 1)
    build = Builder()
    build.fed["x"] = shapes["x"]
    size = (directions, 4 * hidden) if per_channel else (directions,)
    for name, shape in rows.items():
        data = RNG.integers(-127, 128, shape).astype(np.int8)
        build.constant(name, np.ascontiguousarray(data.transpose(0, 2, 1)))
        build.constant(f"{name}.scale", np.full(size, 0.01, np.float32))
        build.constant(f"{name}.point", np.zeros(size, np.int8))
    build.constant("b", RNG.normal(size=shapes["b"]).astype(np.float32))
    parameters = ["w.scale", "w.point", "w1.scale", "w1.point"]
    build.op(
        "DynamicQuantizeLSTM", ["x", "w", "w1", "b", "", "", "", "", *parameters], "y",
        domain="com.microsoft", hidden_size=hidden, direction=way,
    )  # fmt: skip
    model = build.model(["y"], 17, contrib=True)
    assert [n.op_type for n in optimized(model, tmp_path).node] == ["DynamicQuantizeLSTM"]
    # The numbers: those of an LSTM with the weights that the integers stand for.
    plain = Builder()
    plain.fed["x"] = shapes["x"]
    for name in rows:
        plain.constant(name, build.arrays[name].transpose(0, 2, 1) * np.float32(0.01))
    plain.constant("b", build.arrays["b"])
    plain.nodes.append(onnx.parser.parse_node(text))
    x = {"x": RNG.normal(size=shapes["x"]).astype(np.float32)}
    (wanted,) = session(plain.model(["y"], 17)).run(None, x)
    (got,) = session(model).run(None, x)
    assert np.max(np.abs(got - wanted)) < 0.05


def test_dynamic_attention(tmp_path: Path) -> None:
    hidden = 8
    shapes = {"x": (1, 4, hidden), "w": (hidden, 3 * hidden), "b": (3 * hidden,)}
    text = "y = com.microsoft.Attention <num_heads=2> (x, w, b)"
    kernel = kernel_of(Case(text, shapes), "dynamic")
    assert (kernel.weight, kernel.weight_axis) == (1, 1)
    build = Builder()
    build.fed["x"] = shapes["x"]
    build.constant("w", RNG.integers(-127, 128, shapes["w"]).astype(np.int8))
    build.constant("w.scale", np.full(3 * hidden, 0.01, np.float32))
    build.constant("w.point", np.zeros(3 * hidden, np.int8))
    build.constant("b", RNG.normal(size=shapes["b"]).astype(np.float32))
    build.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    build.op(
        "QAttention", ["q", "w", "b", "s", "w.scale", "", "z", "w.point"], "y",
        domain="com.microsoft", num_heads=2,
    )  # fmt: skip
    model = build.model(["y"], 17, contrib=True)
    ops = [n.op_type for n in optimized(model, tmp_path).node]
    assert ops == ["DynamicQuantizeLinear", "QAttention"]


def test_dynamic_forms_need_constant_weights() -> None:
    case = Case("y = MatMul(x, x1)", {"x": (3, 8), "x1": (8, 6)})
    assert SCHEME.kernel(case.plain(), "dynamic") == (
        "the dynamic form needs a constant weight, and this one is computed"
    )
    case = Case("y = Conv(x, w)", {"x": X, "w": (6, 4, 3, 3)})
    assert SCHEME.kernel(case.plain(), "dynamic") == ("u8s8 has no dynamic integer kernel for Conv")


def test_weight_only(tmp_path: Path) -> None:
    case = Case("y = MatMul(x, w)", {"x": (3, 8), "w": (8, 6)})
    kernel_of(case, "weight-only")
    build = Builder()
    build.fed["x"] = (3, 8)
    build.op("MatMul", ["x", build.weight("w", (8, 6), 1, True)], "y")
    model = build.model(["y"], 17)
    assert [n.op_type for n in optimized(model, tmp_path).node] == ["MatMulNBits"]

    case = Case("y = Gather(w, c)", {"w": (16, 8)}, {"c": i64(3, 5)})
    kernel_of(case, "weight-only")
    build = Builder()
    build.constant("w", RNG.integers(-127, 128, (16, 8)).astype(np.int8))
    build.constant("c", i64(3, 5))
    build.constant("s", np.float32(0.01))
    build.fed["x"] = (2, 8)
    build.op("Gather", ["w", "c"], "rows")
    build.op("DequantizeLinear", ["rows", "s"], "f")
    build.op("Add", ["f", "x"], "y")
    assert largest_difference(build.model(["y"], 17), tmp_path) == 0


# --- QNN ------------------------------------------------------------------------------------------

# Operators that QNN computes on integers and the CPU does not.
QNN_MORE = [
    *(
        Case(f"y = {name}(x)", IMAGE, opset=20)
        for name in ("Abs", "Elu", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Neg", "Relu", "Tanh")
    ),
    *(Case(f"y = {name}(x, x1)", PAIR) for name in ("Div", "Max", "Min", "Sub")),
    Case("y = Clip(x, c, c1)", IMAGE, {"c": np.float32(0), "c1": np.float32(1)}),
    Case("y = ConvTranspose(x, w, b)", {"x": X, "w": (4, 6, 3, 3), "b": (6,)}),
    Case("y = GlobalMaxPool(x)", IMAGE),
    Case("y = Pad(x, c)", IMAGE, {"c": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    Case("y = ReduceMean <axes=[2,3]> (x)", IMAGE),
    Case("y = ReduceSum(x, c)", IMAGE, {"c": i64(1)}),
    Case('y = Resize <mode="linear"> (x, , c)', IMAGE, {"c": np.array([1, 1, 2, 2], np.float32)}),
    Case("y = SpaceToDepth <blocksize=2> (x)", IMAGE),
]


def qnn_settings() -> Any:
    """Makes settings of sessions on the emulator of Qualcomm's NPU, if onnxruntime-qnn is there."""
    name = "QNNExecutionProvider"
    try:
        module = importlib.import_module("onnxruntime_qnn")
    except ImportError as e:
        wanted = os.environ.get("GRAPHOPT_REQUIRE_EPS", "").split(",")
        give_up = pytest.fail if name in wanted else pytest.skip
        give_up(f"{name}: pip install onnxruntime-qnn ({e})")
    ort.register_execution_provider_library(name, module.get_library_path())
    (device, *_) = [each for each in ort.get_ep_devices() if each.ep_name == name]
    options = {"backend_path": module.get_qnn_htp_path(), "soc_model": "60", "htp_arch": "75"}

    def settings() -> Any:
        made = ort.SessionOptions()
        made.log_severity_level = 4
        made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        made.add_provider_for_devices([device], options)
        return made

    return settings


def qnn_verdict(case: Case, settings: Any) -> str:
    """What is wrong with how QNN runs a case; empty if nothing."""
    scheme = get("qnn").scheme
    assert scheme is not None
    kernel = scheme.kernel(case.plain())
    if isinstance(kernel, str):
        return kernel
    model = quantized(case, kernel)
    fast = ort.InferenceSession(model.SerializeToString(), sess_options=settings())
    left = {
        node.op_type
        for part in fast.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }
    if left - {"QuantizeLinear", "DequantizeLinear"}:
        return f"{left} fall back to the CPU"
    plain = session(model)
    feeds = {v.name: RNG.normal(size=v.shape).astype(np.float32) for v in plain.get_inputs()}
    pairs = zip(fast.run(None, feeds), plain.run(None, feeds), strict=True)
    worst = max(float(np.max(np.abs(got - wanted))) for got, wanted in pairs)
    return "" if worst <= 0.0201 else f"its results differ by {worst}"


def test_qnn_takes_every_kernel() -> None:
    settings = qnn_settings()
    verdicts = {str(case): qnn_verdict(case, settings) for case in INTEGER + QNN_MORE}
    assert {case: why for case, why in verdicts.items() if why} == {}


def test_every_qnn_kernel_has_a_case() -> None:
    scheme = get("qnn").scheme
    assert scheme is not None
    assert set(scheme.kernels) == {case.node.op_type for case in INTEGER + QNN_MORE}

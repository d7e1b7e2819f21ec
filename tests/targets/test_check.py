"""What each rule is about, by an example that it rejects and one that it accepts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import ConfigError, SessionError, UnsupportedFeature, Violation, check, ir
from graphopt.runtime import open_session
from graphopt.targets import TARGETS, get
from graphopt.testing import random_model

IMAGE = "float[1,4,8,8] x"


def model(body: str, inputs: str = IMAGE, *, weights: str = "", opset: int = 17) -> ir.Model:
    """A model of one or several nodes, the last of which makes y."""
    domains = f'["": {opset}, "com.microsoft": 1]'
    constants = f"<{weights}>" if weights else ""
    return ir.parse_text(
        f"<ir_version: 8, opset_import: {domains}> g ({inputs}) => (y) {constants} {{ {body} }}"
    )


def rules(found: list[Violation]) -> list[str]:
    return [v.rule for v in found]


W = "float[2,4,1,1] w = {1, 2, 3, 4, 5, 6, 7, 8}"
M = "float[2,2] w = {1, 2, 3, 4}"
HALF = "float[4] r = {1, 1, 2, 2}"

# Rule, a model that it rejects, and one that it accepts.
NNAPI = [
    ("conv",
     model("y = Conv(x, w)", "float[1,4,8] x", weights="float[2,4,1] w = {1,2,3,4,5,6,7,8}"),
     model("y = Conv(x, w)", weights=W)),
    ("conv",
     model("y = Conv <group=2, dilations=[2,2]> (x, w)", weights="float[2,2,1,1] w = {1,2,3,4}"),
     model("y = Conv <group=2> (x, w)", weights="float[2,2,1,1] w = {1,2,3,4}")),
    ("conv-weight", model("y = Conv(x, w)", IMAGE + ", float[2,4,1,1] w"),
     model("y = Conv(x, w)", weights=W)),
    ("conv-bias", model("y = Conv(x, w, b)", IMAGE + ", float[2] b", weights=W),
     model("y = Conv(x, w, b)", weights=W + ", float[2] b = {1, 2}")),
    ("pool", model("y = MaxPool <kernel_shape=[2]> (x)", "float[1,4,8] x"),
     model("y = MaxPool <kernel_shape=[2,2]> (x)")),
    ("pool", model("y = AveragePool <kernel_shape=[2,2], count_include_pad=1> (x)"),
     model("y = AveragePool <kernel_shape=[2,2]> (x)")),
    ("pool", model("y = AveragePool <kernel_shape=[2,2], ceil_mode=1> (x)"),
     model("y = GlobalAveragePool(x)")),
    ("pool", model("y = MaxPool <kernel_shape=[2,2], dilations=[2,2]> (x)"),
     model("y = GlobalMaxPool(x)")),
    ("gemm", model("y = Gemm <alpha=2.0> (x, w)", "float[2,2] x", weights=M),
     model("y = Gemm(x, w)", "float[2,2] x", weights=M)),
    ("gemm", model("y = Gemm <transA=1> (x, w)", "float[2,2] x", weights=M),
     model("y = Gemm <transB=1> (x, w)", "float[2,2] x", weights=M)),
    ("gemm", model("y = Gemm(x, w)", "float[2,2] x, float[2,2] w"),
     model("y = Gemm <transB=1> (x, w)", "float[2,2] x, float[2,2] w")),
    ("gemm", model("y = Gemm(x, w, b)", "float[2,2] x", weights=M + ", float[2,2] b = {1,2,3,4}"),
     model("y = Gemm(x, w, b)", "float[2,2] x", weights=M + ", float[1,2] b = {1,2}")),
    ("matmul", model("y = MatMul(x, w)", "float[3,2,2] x", weights=M),
     model("y = MatMul(x, w)", "float[3,2,2] x, float[3,2,2] w")),
    ("matmul", model("y = MatMul(x, w)", "float[2,2] x, float[2,2] w"),
     model("y = MatMul(x, w)", "float[2,2] x", weights=M)),
    ("broadcast", model("y = Add(x, x)", opset=6), model("y = Add(x, x)", opset=7)),
    ("clip", model("y = Clip(x, a, b)", weights="float a = {0}, float b = {4}"),
     model("y = Clip(x, a, b)", weights="float a = {0}, float b = {6}")),
    ("clip", model("y = Clip <min=0.0> (x)", opset=10),
     model("y = Clip <min=-1.0, max=1.0> (x)", opset=10)),
    ("reshape", model("y = Reshape(x, s)", IMAGE + ", int64[2] s"),
     model("y = Reshape(x, s)", weights="int64[2] s = {4, -1}")),
    ("reshape", model("y = Reshape <allowzero=1> (x, s)", weights="int64[2] s = {4, -1}"),
     model("y = Reshape(x, s)", weights="int64[2] s = {4, -1}")),
    ("resize", model("y = Resize(x, , r)", weights=HALF), model(
        'y = Resize <coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , r)',
        weights=HALF)),
    ("resize", model('y = Resize <mode="cubic"> (x, , r)', weights=HALF),
     model('y = Resize <mode="linear"> (x, , r)', weights=HALF)),
    ("resize", model('y = Resize <mode="linear"> (x, , r)', weights="float[4] r = {1,1,0.375,1}"),
     model('y = Resize <mode="linear"> (x, , r)', weights="float[4] r = {1,1,0.5,1}")),
    ("slice", model("y = Slice(x, s, e)", IMAGE + ", int64[1] s, int64[1] e"),
     model("y = Slice(x, s, e)", weights="int64[1] s = {0}, int64[1] e = {1}")),
    ("split", model("y, z = Split <axis=1> (x, s)", weights="int64[2] s = {1, 3}"),
     model("y, z = Split <axis=1> (x, s)", weights="int64[2] s = {2, 2}")),
    ("split", model("y, z, v = Split <axis=1, num_outputs=3> (x)", opset=18),
     model("y, z = Split <axis=1, num_outputs=2> (x)", opset=18)),
    ("softmax", model("y = Softmax(x)", "float[1,4,8] x"), model("y = Softmax(x)")),
    ("batch-norm", model("y = BatchNormalization(x, s, s, s, s)", IMAGE + ", float[4] s"),
     model("y = BatchNormalization(x, s, s, s, s)", weights="float[4] s = {1, 1, 1, 1}")),
    ("pad", model('y = Pad <mode="edge"> (x, p)', weights="int64[8] p = {0,0,1,1,0,0,1,1}"),
     model("y = Pad(x, p)", weights="int64[8] p = {0,0,1,1,0,0,1,1}")),
    ("pad", model("y = Pad(x, p)", weights="int64[8] p = {0,0,-1,1,0,0,1,1}"),
     model("y = Pad(x, p)", weights="int64[8] p = {0,0,1,1,0,0,1,1}")),
    ("gather", model("y = Gather(x, i)", IMAGE + ", int64[1] i"),
     model("y = Gather(x, i)", IMAGE + ", int32[1] i")),
    ("reduce", model("y = ReduceMean(x, a)", IMAGE + ", int64[1] a", opset=18),
     model("y = ReduceMean <axes=[1]> (x)")),
    ("sigmoid", model("y = Sigmoid(x)", "float x"), model("y = Sigmoid(x)")),
    ("min-max", model("y = Max(x, x, x)"), model("y = Max(x, x)")),
    ("cast", model("y = Cast <to=9> (x)"), model("y = Cast <to=6> (x)")),
    ("axes", model("y = Unsqueeze(x, a)", "float[4] x, int64[1] a"),
     model("y = Unsqueeze(x, a)", "float[4] x", weights="int64[1] a = {0}")),
    ("depth-to-space", model('y = DepthToSpace <blocksize=2, mode="CRD"> (x)'),
     model("y = DepthToSpace <blocksize=2> (x)")),
    ("operators", model("y = HardSwish(x)"), model("y = Relu(x)")),
    ("domains", model("y = com.microsoft.FusedConv(x, w)", weights=W), model("y = Tanh(x)")),
    ("domains", model("y = com.microsoft.Gelu(x)"), model("y = Elu(x)")),
    ("static_shapes", model("y = Relu(x)", "float[N] x"), model("y = Relu(x)", "float[4] x")),
    ("max_rank", model("y = Relu(x)", "float[1,1,1,1,1] x"), model("y = Relu(x)")),
    ("dtypes", model("y = Abs(x)", "int64[4] x"), model("y = Abs(x)", "float[4] x")),
    ("fp16", model("y = Relu(x)", "float16[4] x"), model("y = Relu(x)", "float[4] x")),
    ("opsets", model("y = Abs(x)", opset=6), model("y = Abs(x)", opset=7)),
]  # fmt: skip

Q = "qx = QuantizeLinear(x, s, z) dx = DequantizeLinear(qx, s, z) "
OUT = " qy = QuantizeLinear(v, s, z) y = DequantizeLinear(qy, s, z)"
UINT8 = "float s = {0.1}, uint8 z = {128}"
INT8 = "float s = {0.1}, int8 z = {0}"
SKEW = "float s = {0.1}, int8 z = {3}"
UNIT = "float s = {0.1}, uint8 z = {128}, float s1 = {0.00390625}, uint8 z1 = {0}"
OUT1 = " qy = QuantizeLinear(v, s1, z1) y = DequantizeLinear(qy, s1, z1)"
ROWS = "float[4,2] x"
PER_TENSOR = "int8[2,2] w = {1, 2, 3, 4}, float t = {0.1}"
PER_CHANNEL = "int8[2,2] w = {1, 2, 3, 4}, float[2] t = {0.1, 0.2}"
GEMM = "dw = DequantizeLinear <axis=1> (w, t) v = Gemm(dx, dw)"
BIAS = "int32[2] b = {1, 2}"

QUANTIZED = [
    ("nnapi", "activation-type", model(Q + "y = Relu(dx)", weights=INT8),
     model(Q + "y = Relu(dx)", weights=UINT8)),
    ("nnapi", "quantized-form", model(Q + "v = GlobalAveragePool(dx)" + OUT, weights=UINT8),
     model(Q + "v = AveragePool <kernel_shape=[8,8]> (dx)" + OUT, weights=UINT8)),
    ("nnapi", "quantized-form", model(Q + "v = Flatten(dx)" + OUT, weights=UINT8),
     model(Q + "y = Flatten(dx)", weights=UINT8)),
    ("nnapi", "quantized-pool",
     model(Q + "v = AveragePool <kernel_shape=[8,8]> (dx)" + OUT1, weights=UNIT),
     model(Q + "v = AveragePool <kernel_shape=[8,8]> (dx)" + OUT, weights=UNIT)),
    ("nnapi", "quantized-softmax", model(Q + "v = Softmax(dx)" + OUT, ROWS, weights=UNIT),
     model(Q + "v = Softmax(dx)" + OUT1, ROWS, weights=UNIT)),
    ("nnapi", "per-tensor", model(Q + GEMM + OUT, ROWS, weights=f"{UINT8}, {PER_CHANNEL}"),
     model(Q + GEMM + OUT, ROWS, weights=f"{UINT8}, {PER_TENSOR}")),
    ("nnapi", "weight-type", model("dw = DequantizeLinear(w, s) y = Add(x, dw)", "float[2] x",
                                   weights="uint16[2] w = {1, 2}, float s = {1}", opset=21),
     model("dw = DequantizeLinear(w, s) y = Add(x, dw)", "float[2] x",
           weights="uint8[2] w = {1, 2}, float s = {1}", opset=21)),
    ("nnapi", "constant-scales",
     model(Q + "y = Relu(dx)", IMAGE + ", float s", weights="uint8 z = {0}"),
     model(Q + "y = Relu(dx)", weights=UINT8)),
    ("tensorrt", "activation-type", model(Q + "y = Relu(dx)", weights=UINT8),
     model(Q + "y = Relu(dx)", weights=INT8)),
    ("tensorrt", "symmetric", model(Q + "y = Relu(dx)", weights=SKEW),
     model(Q + "y = Relu(dx)", weights=INT8)),
    ("tensorrt", "float-bias",
     model("db = DequantizeLinear(b, s) y = Add(x, db)", "float[2] x",
           weights=f"{BIAS}, float s = {{1}}"),
     model("y = Add(x, b)", "float[2] x", weights="float[2] b = {1, 2}")),
    ("tensorrt", "no-qoperator",
     model("q = QLinearMatMul(a, s, z, a, s, z, s, z) y = DequantizeLinear(q, s, z)",
                                       "int8[2,2] a", weights=INT8),
     model("y = MatMul(a, a)", "float[2,2] a")),
    ("cuda", "cpu-only",
     model("q = QLinearMatMul(a, s, z, a, s, z, s, z) y = DequantizeLinear(q, s, z)",
                               "uint8[2,2] a", weights=UINT8),
     model("y = MatMul(a, a)", "float[2,2] a")),
    ("cpu-x64", "activation-type", model(Q + "y = Relu(dx)", weights=INT8),
     model(Q + "y = Relu(dx)", weights=UINT8)),
    ("cpu-x64", "quantized-dilated-pool",
     model(Q + "v = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (dx)" + OUT,
           weights=UINT8, opset=19),
     model("y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x)", opset=19)),
    ("cpu-x64", "kernel", model("y = Conv(x, w)", "double[1,1,2,2] x, double[1,1,1,1] w"),
     model("y = MatMul(x, x)", "double[2,2] x")),
    ("cpu-arm64", "kernel", model("y = Relu(x)", "bfloat16[4] x"),
     model("y = Identity(x)", "bfloat16[4] x")),
    ("cpu-x64", "fp16", model("y = Relu(x)", "float16[4] x"), model("y = Relu(x)", "float[4] x")),
    ("cpu-x64", "domains", model("y = com.microsoft.Gelu(v) v = other.domain.Op(x)"),
     model("y = com.microsoft.Gelu(x)")),
    ("xnnpack", "conv-2d", model("y = Conv(x, w)", IMAGE + ", float[2,4,1,1] w"),
     model("y = Conv(x, w)", weights=W)),
    ("xnnpack", "last-axis", model("y = Softmax <axis=1> (x)"), model("y = Softmax <axis=3> (x)")),
    ("xnnpack", "matrix", model("y = MatMul(x, w)", "float[3,2,2] x", weights=M),
     model("y = MatMul(x, w)", "float[2,2] x", weights=M)),
    ("xnnpack", "pool-2d", model("y = MaxPool <kernel_shape=[2]> (x)", "float[1,4,8] x"),
     model("y = MaxPool <kernel_shape=[2,2]> (x)")),
    ("qnn", "falls-back", model("y = Erf(x)"), model("y = Tanh(x)")),
    ("qnn", "unsigned", model(Q + "v = LeakyRelu(dx)" + OUT, weights=INT8),
     model(Q + "v = LeakyRelu(dx)" + OUT, weights=UINT8)),
    ("qnn", "max_rank", model("y = Relu(x)", "float[1,1,1,1,1,1] x"), model("y = Relu(x)")),
    ("openvino", "no-dynamic-quantization", model("y, s, z = DynamicQuantizeLinear(x)"),
     model("y = Relu(x)")),
    ("web", "domains",
     model("y = com.microsoft.FusedConv(x, w)", weights=W), model("y = Conv(x, w)", weights=W)),
    ("portable", "domains", model("y = com.microsoft.Gelu(x)"), model("y = Erf(x)")),
    ("portable", "opsets", model("y = Gelu(x)", opset=22), model("y = Gelu(x)", opset=21)),
]  # fmt: skip

CASES = [("nnapi", *case) for case in NNAPI] + QUANTIZED


@pytest.mark.parametrize(
    ("target", "rule", "bad", "good"),
    CASES,
    ids=[f"{target}-{rule}-{i}" for i, (target, rule, _, _) in enumerate(CASES)],
)
def test_rules(target: str, rule: str, bad: ir.Model, good: ir.Model) -> None:
    found = [v for v in check(bad, target) if v.rule == rule]
    assert found, f"only {rules(check(bad, target))}"
    assert all(v.source and v.reason for v in found)
    assert rule not in rules(check(good, target))


def test_every_requirement_has_a_case() -> None:
    tried = {(target, rule) for target, rule, _, _ in CASES}
    for name in ("nnapi", "tensorrt", "cuda", "cpu-x64", "openvino", "web", "portable", "qnn"):
        wanted = {(name, each.name) for each in get(name).requirements}
        # Those that targets share are tried with one of them; the others are listed here.
        shared = {"activation-type", "constant-scales", "no-qgemm"}
        assert {pair for pair in wanted - tried if pair[1] not in shared} == set()


def test_a_plain_model_is_taken_by_every_target() -> None:
    plain = model("v = Conv(x, w) y = MaxPool <kernel_shape=[2,2]> (v)", weights=W)
    for name in TARGETS:
        assert check(plain, name) == []


# What operators take besides the tensor they are called with, and their attributes.
MORE = {
    "BatchNormalization": "v, v, v, v", "Conv": "w", "ConvTranspose": "w", "Gemm": "x",
    "MatMul": "x", "InstanceNormalization": "v, v", "Resize": ", r", "CumSum": "a",
    "LSTM": "l, l", "GRU": "g, g",
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mod", "Mul", "PRelu", "Pow", "Sub"), "x"),
}  # fmt: skip
ATTRIBUTES = {
    "AveragePool": "kernel_shape=[2,2]", "MaxPool": "kernel_shape=[2,2]", "LRN": "size=3",
    "LSTM": "hidden_size=2", "GRU": "hidden_size=2", "Mod": "fmod=1",
}  # fmt: skip
SHAPES = {"Gemm": "2,2", "LSTM": "3,1,2", "GRU": "3,1,2"}


@pytest.mark.parametrize("dtype", ["double", "bfloat16"])
def test_there_really_is_no_kernel(dtype: str) -> None:
    """What the rule says the CPU provider has no kernel for, ONNX Runtime refuses."""
    (rule,) = [each for each in get("cpu-x64").requirements if each.name == "kernel"]
    shapes = {"w": "2,2,3,3", "v": "2", "l": "1,8,2", "g": "1,6,2"}
    tried = 0
    for op in sorted(rule.operators):
        more, attributes = MORE.get(op, ""), f"<{ATTRIBUTES[op]}>" if op in ATTRIBUTES else ""
        wanted = [f"{dtype}[{SHAPES.get(op, '1,2,4,4')}] x"]
        wanted += [f"{dtype}[{s}] {n}" for n, s in shapes.items() if n in more.split(", ")]
        call = f"y = {op} {attributes} (x{', ' * bool(more)}{more})"
        weights = "float[4] r = {1, 1, 2, 2}, int64 a = {0}"
        made = model(call, ", ".join(wanted), weights=weights, opset=22)
        if rules(check(made, "cpu-x64")) == ["kernel"]:
            tried += 1
            with pytest.raises(SessionError, match="implementation"):
                open_session(made)
        else:
            open_session(made).close()
    assert tried == {"double": 19, "bfloat16": 53}[dtype]


@pytest.mark.parametrize("seed", range(8))
def test_random_models(seed: int) -> None:
    """No rule stumbles over what it is not about, and what is judged are nodes of the model."""
    made = random_model(seed)
    nodes = set(ir.all_nodes(made))
    before = ir.dump(made)
    for name in TARGETS:
        found = check(made, name)
        assert {v.node for v in found} - {None} <= nodes
        assert all(v.reason and v.source for v in found)
    assert ir.dump(made) == before


def test_malformed_nodes() -> None:
    """Models that ONNX Runtime would refuse are not the business of rules: they must not fail."""
    odd = model(
        "y = Conv(x, w) a = Clip(x, b, b) c = Split(x) d = Softmax(e) f = Gemm(x, w, w)",
        weights="float[2] w = {1, 2}, float[2] b = {1, 2}, float[0] e = {}",
    )
    for name in TARGETS:
        check(odd, name)


def test_violations_name_node_remedy_and_source() -> None:
    found = check(model("v = Relu(x) y = Neg(v)", "float[N,4] x"), "nnapi")
    assert [v.node.op_type for v in found if v.node is not None] == ["Relu", "Neg"]
    assert found[0] == Violation(
        found[0].node,
        "static_shapes",
        "'x', 'v': sizes are not known",
        "give the inputs a fixed size",
        "fix-shapes",
        get("nnapi").sources["static_shapes"],
    )


def test_slow_is_not_refused() -> None:
    (found,) = check(model("y = Relu(x)", "float16[4] x"), "cpu-x64")
    assert found.slow
    (found,) = check(model("y = Relu(x)", "float16[4] x"), "nnapi")
    assert not found.slow
    assert check(model("y = Relu(x)", "float16[4] x"), "cuda") == []


def test_nodes_of_subgraphs_are_judged() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = HardSwish(x) },
                    else_branch = e () => (float[2] b) { b = Relu(x) }>
    }"""
    found = [v.node.op_type for v in check(ir.parse_text(text), "nnapi")
             if v.rule == "operators" and v.node is not None]  # fmt: skip
    assert found == ["If", "HardSwish"]


def test_whole_models(tmp_path: Path) -> None:
    plain = model("y = Add(x, w)", "float[4] x", weights="float[4] w = {1, 2, 3, 4}")
    plain.ir_version = 99
    (found,) = check(plain, "portable")
    assert (found.node, found.rule) == (None, "ir_version")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])],
            [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(proto, tmp_path / "in.onnx")
    onnx.save(proto, tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    assert check(ir.load(tmp_path / "in.onnx"), "nnapi") == []
    assert rules(check(ir.load(tmp_path / "out.onnx"), "nnapi")) == ["external_data"]
    assert check(ir.load(tmp_path / "out.onnx"), "cpu-x64") == []


def test_weights_that_callers_may_override() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,1,2,2] x, float[1,1,1,1] w) => (y) <float[1,1,1,1] w = {2}> { y = Conv(x, w) }"""
    (found,) = check(ir.parse_text(text), "nnapi")
    assert found.rule == "conv-weight"
    assert "freeze-inputs" in found.reason


def test_bad_arguments() -> None:
    plain = model("y = Relu(x)")
    with pytest.raises(ConfigError, match="did you mean 'nnapi'"):
        check(plain, "nnapu")
    with pytest.raises(ConfigError, match="there is no target 'zzz'; there are cpu, cpu-x64"):
        check(plain, "zzz")
    assert graphopt.check(plain, get("cpu")) == []


def test_models_nobody_can_look_into() -> None:
    """A model with a training graph is carried through as it is."""
    proto = ir.to_proto(model("y = Relu(x)"))
    proto.training_info.add()
    opaque = ir.load(proto)
    assert ir.opaque(opaque) is not None
    with pytest.raises(UnsupportedFeature, match="is not known"):
        check(opaque, "cpu")

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import Exactness, PassManager, ir
from graphopt.passes.quantize.lower_qdq import LowerQdq
from graphopt.runtime import open_session
from graphopt.testing import assert_equivalent, check_pass


def qdq(
    body: str,
    *,
    kind: str = "uint8",
    inputs: int = 1,
    shape: str = "2,8,6,6",
    zero: int = 7,
    out: tuple[float, int] = (0.0712, 9),
    constants: str = "",
    opset: int = 17,
) -> str:
    """A model in which ``body`` computes %t from the dequantized %d0, %d1."""
    names = range(inputs)
    graph = "".join(
        f"q{i} = QuantizeLinear(x{i}, s{i}, z{i}) d{i} = DequantizeLinear(q{i}, s{i}, z{i})"
        for i in names
    )
    consts = ", ".join(
        f"float s{i} = {{{0.0531 * (i + 1)}}}, {kind} z{i} = {{{zero}}}" for i in names
    )
    return f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    g ({", ".join(f"float[{shape}] x{i}" for i in names)}) => (float[] y)
    <{consts}, float so = {{{out[0]}}}, {kind} zo = {{{out[1]}}}{constants}>
    {{ {graph} {body} q = QuantizeLinear(t, so, zo) y = DequantizeLinear(q, so, zo) }}
    """


SAME = (0.0531, 7)
WEIGHT = (
    ", int8[2,8,1,1] w = {1,-2,3,-4,5,-6,7,-8,9,-10,11,-12,13,-14,15,-16},"
    " float[2] ws = {0.011, 0.023}, int8[2] wz = {0, 0},"
    " int32[2] b = {100, -70}, float[2] bs = {0.0005841, 0.0012213}, int32[2] bz = {0, 0}"
)
DEQUANTIZED = "w0 = DequantizeLinear<axis=0>(w, ws, wz) b0 = DequantizeLinear<axis=0>(b, bs, bz) "
MATRIX = (
    ", int8[8,2] w = {1,-2,3,-4,5,-6,7,-8,9,-10,11,-12,13,-14,15,-16},"
    " float[2] ws = {0.011, 0.023}, int8[2] wz = {0, 0},"
    " int32[2] b = {100, -70}, float[2] bs = {0.0005841, 0.0012213}, int32[2] bz = {0, 0}"
)
COLUMNS = "w0 = DequantizeLinear<axis=1>(w, ws, wz) b0 = DequantizeLinear<axis=0>(b, bs, bz) "


def lower(text: str, target: str = "cpu-x64") -> tuple[ir.Model, ir.Model, dict[str, int]]:
    model = ir.parse_text(text)
    result = PassManager(LowerQdq(), target=target, objective=None).run(model)
    record = result.report.passes[0]
    assert record.status in ("ok", "unchanged"), record.reason
    ir.verify(result.model)
    return model, result.model, dict(record.declined)


def ops(model: ir.Model) -> list[str]:
    return [
        n.op_type
        for n in ir.all_nodes(model)
        if n.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]


def run(model: ir.Model, feeds: dict[str, Any], optimize: bool = False) -> Any:
    with open_session(model, optimize=optimize) as session:
        return session.run(feeds)["y"]


def feeds(model: ir.Model, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        v.name or "": (rng.standard_normal(ir.static_shape(v)) * 3).astype(np.float32)
        for v in ir.inputs(model)
    }


def test_convolution() -> None:
    check_pass(
        LowerQdq(),
        qdq(
            DEQUANTIZED + "c = Conv<strides=[2,2]>(d0, w0, b0) t = Relu(c)",
            constants=WEIGHT,
            out=(0.07, 0),
        ),
        """
        graph(%x0: float[2,8,6,6]) {
          const %b: int32[2] = [100, -70]
          const %s0: float[]
          const %so: float[]
          const %w: int8[2,8,1,1]
          const %ws: float[2]
          const %wz: int8[2]
          const %z0: uint8[]
          const %zo: uint8[]
          %q0 = QuantizeLinear(%x0, %s0, %z0)
          %qlinearconv = QLinearConv(%q0, %s0, %z0, %w, %ws, %wz, %so, %zo, %b) {strides=[2, 2]}
          %y = DequantizeLinear(%qlinearconv, %so, %zo)
          return %y
        }
        """,
    )


CASES = [
    ("QLinearAdd", {"body": "t = Add(d0, d1)", "inputs": 2}),
    ("QLinearMul", {"body": "t = Mul(d0, d1)", "inputs": 2}),
    ("QLinearConcat", {"body": "t = Concat<axis=1>(d0, d1, d0)", "inputs": 2}),
    (
        "QLinearAveragePool",
        {"body": "t = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(d0)"},
    ),
    ("QLinearGlobalAveragePool", {"body": "t = GlobalAveragePool(d0)"}),
    ("QLinearLeakyRelu", {"body": "t = LeakyRelu<alpha=0.2>(d0)"}),
    ("QLinearSigmoid", {"body": "t = Sigmoid(d0)", "out": (1 / 256, 0)}),
    ("QLinearSoftmax", {"body": "t = Softmax<axis=1>(d0)", "out": (0.0021, 3)}),
    ("QLinearSoftmax", {"body": "t = Softmax<axis=2>(d0)", "out": (1 / 256, 0), "opset": 11}),
    ("QLinearMatMul", {"body": "t = MatMul(d0, d1)", "inputs": 2, "zero": 0}),
    (
        "QLinearMatMul",
        {"body": COLUMNS + "t = MatMul(d0, w0)", "constants": MATRIX, "shape": "3,8"},
    ),
    ("QGemm", {"body": COLUMNS + "t = Gemm(d0, w0, b0)", "constants": MATRIX, "shape": "3,8"}),
    ("QLinearConv", {"body": DEQUANTIZED + "t = Conv(d0, w0, b0)", "constants": WEIGHT}),
    ("QLinearConv", {"body": DEQUANTIZED + "t = Conv(d0, w0)", "constants": WEIGHT}),
    (
        "QLinearConv",
        {
            "body": "w0 = DequantizeLinear(w, ws, wz) t = Conv(d0, w0)",
            "constants": ", uint8[1,8,1,1] w = {0,10,20,130,140,255,128,7}, float ws = {0.02},"
            " uint8 wz = {128}",
        },
    ),
    (
        "QLinearWhere",
        {
            "body": "t = Where(c, d0, d1)",
            "inputs": 2,
            "constants": ", bool[6] c = {1, 0, 0, 1, 1, 0}",
        },
    ),
]


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_within_a_step(name: str, spec: dict[str, Any]) -> None:
    model, lowered, declined = lower(qdq(**spec))
    assert ops(lowered) == [name]
    assert not declined
    step = np.float32(spec.get("out", (0.0712, 9))[0])
    for seed in range(4):
        given = feeds(model, seed)
        was, now = (np.rint(run(m, given) / step) for m in (model, lowered))
        assert np.abs(was - now).max() <= 1
        assert was.std() > 1
        # What ONNX Runtime itself makes of the model has the same bits.
        assert np.array_equal(run(model, given, optimize=True), run(lowered, given))


@pytest.mark.parametrize(("name", "spec"), CASES[:8])
def test_signed(name: str, spec: dict[str, Any]) -> None:
    text = qdq(**{**spec, "kind": "int8", "zero": -5, "out": (spec.get("out", (0.07,))[0], -3)})
    model, untouched, declined = lower(text)
    assert ops(untouched) == ops(model)
    assert list(declined) == ["lower-contributed: activations are int8, for which kernels are slow"]
    model, lowered, _ = lower(text, "cpu-arm64")
    assert ops(lowered) == [name]
    step, given = np.float32(spec.get("out", (0.07,))[0]), feeds(model)
    assert (
        np.abs(np.rint(run(model, given) / step) - np.rint(run(lowered, given) / step)).max() <= 1
    )


MOVES = [
    ("Pad", "t = Pad(d0, p)", ", int64[8] p = {0,1,0,0,0,2,1,0}"),
    ("Pad", "t = Pad(d0, p, v)", ", int64[8] p = {0,1,0,0,0,2,1,0}, float v = {1.234}"),
    ("Pad", "t = Pad(d0, p, v)", ", int64[8] p = {0,1,0,0,0,2,1,0}, float v = {1e9}"),
    ("Pad", "t = Pad<mode=\"reflect\">(d0, p)", ", int64[8] p = {0,0,1,1,0,0,1,1}"),
    (
        "Pad",
        "t = Pad<mode=\"edge\">(d0, p, v)",
        ", int64[8] p = {0,0,1,1,0,0,1,1}, float v = {1.234}",
    ),
    (
        "Pad",
        "v = DequantizeLinear(c, s0, z0) t = Pad(d0, p, v)",
        ", int64[8] p = {0,1,0,0,0,2,1,0}, uint8 c = {50}",
    ),
    ("MaxPool", "t = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(d0)", ""),
    ("Reshape", "t = Reshape(d0, p)", ", int64[2] p = {2,-1}"),
    ("Flatten", "t = Flatten(d0)", ""),
    ("Transpose", "t = Transpose<perm=[0,2,3,1]>(d0)", ""),
    ("Slice", "t = Slice(d0, p, e, a)", ", int64[1] p={1}, int64[1] e={5}, int64[1] a={-1}"),
    ("Gather", "t = Gather<axis=1>(d0, p)", ", int64[3] p = {3,0,0}"),
    ("Unsqueeze", "t = Unsqueeze(d0, p)", ", int64[1] p = {1}"),
    ("DepthToSpace", "t = DepthToSpace<blocksize=2>(d0)", ""),
    ("SpaceToDepth", "t = SpaceToDepth<blocksize=2>(d0)", ""),
    ("Expand", "t = Expand(d0, p)", ", int64[5] p = {3,2,8,6,6}"),
    ("Tile", "t = Tile(d0, p)", ", int64[4] p = {1,2,1,1}"),
    ("Resize", "t = Resize<mode=\"nearest\">(d0, , p)", ", float[4] p = {1,1,2,2}"),
    ("Concat", "t = Concat<axis=2>(d0, d0)", ""),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(("name", "body", "constants"), MOVES)
def test_moves(name: str, body: str, constants: str, kind: str) -> None:
    text = qdq(body, constants=constants.replace("uint8 c", f"{kind} c"), out=SAME, kind=kind)
    model, lowered, _ = lower(text)
    assert [(n.op_type) for n in ir.all_nodes(lowered)] == [
        "QuantizeLinear",
        name,
        "DequantizeLinear",
    ]
    assert_equivalent(model, lowered, Exactness.BITWISE)


def test_split() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (uint8[2,6] x) => (uint8[2,2] a, uint8[2,4] b)
    <float s = {0.1}, uint8 z = {3}, int64[2] p = {2, 4}> {
        d = DequantizeLinear(x, s, z)
        u, v = Split<axis=1>(d, p)
        a = QuantizeLinear(u, s, z)
        b = QuantizeLinear(v, s, z)
    }
    """
    model, lowered, _ = lower(text)
    assert [n.op_type for n in ir.all_nodes(lowered)] == ["Split"]
    assert_equivalent(model, lowered, Exactness.BITWISE)


@pytest.mark.parametrize(
    ("body", "out", "left"),
    [
        ("t = Relu(c)", (0.07, 0), []),
        ("t = Relu(c)", (0.07, 9), ["Clip"]),
        ("t = Clip(c, lo, hi)", (0.07, 0), ["Clip"]),
        ("t = Clip(c, lo, hi)", (6 / 255, 0), []),
        ("t = Clip(c, lo)", (0.07, 0), []),
    ],
)
def test_bounds(body: str, out: tuple[float, int], left: list[str]) -> None:
    text = qdq(
        f"c = Add(d0, d1) {body}",
        inputs=2,
        out=out,
        constants=", float lo = {0}, float hi = {6}",
    )
    model, lowered, _ = lower(text)
    assert ops(lowered) == ["QLinearAdd", *left]
    for seed in range(2):
        given = feeds(model, seed)
        difference = np.rint((run(model, given) - run(lowered, given)) / np.float32(out[0]))
        assert np.abs(difference).max() <= 1


def test_float_bias_is_quantized() -> None:
    text = qdq(DEQUANTIZED + "t = Conv(d0, w0, f)", constants=WEIGHT + ", float[2] f = {0.5, -1.5}")
    model, lowered, _ = lower(text)
    (conv,) = [n for n in ir.all_nodes(lowered) if n.op_type == "QLinearConv"]
    bias = ir.array(conv.inputs[8])
    assert bias is not None
    assert bias.dtype == np.int32
    assert bias.tolist() == [round(0.5 / (0.0531 * 0.011)), round(-1.5 / (0.0531 * 0.023))]
    given = feeds(model)
    assert np.abs(run(model, given) - run(lowered, given)).max() <= 0.0713


def test_bias_of_another_scale_is_requantized() -> None:
    text = qdq(
        DEQUANTIZED + "t = Conv(d0, w0, b0)",
        constants=WEIGHT.replace(
            "float[2] bs = {0.0005841, 0.0012213}", "float[2] bs = {0.1, 0.1}"
        ),
    )
    model, lowered, _ = lower(text)
    given = feeds(model)
    assert np.abs(run(model, given) - run(lowered, given)).max() <= 0.0713


def test_last_gemm_computes_floats() -> None:
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (uint8[3,8] x) => (float[3,2] y)
    <float s0 = {{0.0531}}, uint8 z0 = {{7}}{MATRIX}> {{
        d0 = DequantizeLinear(x, s0, z0) {COLUMNS} y = Gemm(d0, w0, b0)
    }}
    """
    model, lowered, _ = lower(text)
    assert [n.op_type for n in ir.all_nodes(lowered)] == ["QGemm"]
    assert_equivalent(model, lowered, Exactness.ROUNDING)


def test_only_standard_operators() -> None:
    text = qdq(
        DEQUANTIZED + "c = Conv(d0, w0) cq = QuantizeLinear(c, so, zo) "
        "cd = DequantizeLinear(cq, so, zo) t = Add(cd, cd)",
        constants=WEIGHT,
    )
    _, lowered, _ = lower(text, "portable")
    assert ops(lowered) == ["QLinearConv", "Add"]
    assert "com.microsoft" not in lowered.opset_imports
    _, lowered, _ = lower(text)
    assert ops(lowered) == ["QLinearConv", "QLinearAdd"]
    assert lowered.opset_imports["com.microsoft"] == 1


def no_match(body: str, reason: str, **spec: Any) -> Any:
    return pytest.param({"body": body, **spec}, reason, id=reason)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        no_match("t = Add(d0, x0)", "input 1 of the Add is not dequantized"),
        no_match(
            DEQUANTIZED + "t = Conv(d0, w0, b0)",
            "the zero points of its weight differ",
            constants=WEIGHT.replace("int8[2] wz = {0, 0}", "int8[2] wz = {0, 1}"),
        ),
        no_match(
            "w0 = DequantizeLinear<axis=1>(w, ws, wz) t = Conv(d0, w0)",
            "the scales of its weight are not those of output channels",
            constants=", int8[1,2,1,1] w = {1,-2}, float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0}",
            shape="2,2,6,6",
        ),
        no_match(
            DEQUANTIZED + "bb = ReduceMax<axes=[0,2,3],keepdims=0>(d0)"
            "bc = Slice(bb, zero, two) t = Conv(d0, w0, bc)",
            "its bias is not constant",
            constants=WEIGHT + ", int64[1] zero = {0}, int64[1] two = {2}",
        ),
        no_match(
            COLUMNS + "t = Gemm<alpha=0.5>(d0, w0)",
            "it has factors (alpha, beta)",
            constants=MATRIX,
            shape="3,8",
        ),
        no_match(
            "t = AveragePool<kernel_shape=[2,2],dilations=[2,2]>(d0)", "it has dilations", opset=19
        ),
        no_match("t = Flatten(d0)", "the two sides have different grids"),
        no_match(
            "t = Resize<mode=\"linear\">(d0, , p)",
            "Resize interpolates",
            constants=", float[4] p = {1,1,2,2}",
            out=SAME,
        ),
        no_match(
            "v = ReduceMax<keepdims=0>(d0) t = Pad(d0, p, v)",
            "what it pads with is not constant",
            constants=", int64[8] p = {0,1,0,0,0,2,1,0}",
            out=SAME,
        ),
        no_match(
            "t = MaxPool<kernel_shape=[2,2]>(d0)",
            "MaxPool takes 8-bit integers from opset 12 on",
            out=SAME,
            opset=11,
        ),
        no_match(
            "a = Cast<to=1>(d1) i = Identity(a) ii = QuantizeLinear(i, s1, m) "
            "iii = DequantizeLinear(ii, s1, m) t = Add(d0, iii)",
            "its integers are of different types",
            inputs=2,
            constants=", int8 m = {0}",
        ),
    ],
)  # fmt: skip
def test_declines(spec: dict[str, Any], reason: str) -> None:
    model, untouched, declined = lower(qdq(**spec))
    assert ops(untouched) == ops(model)
    assert reason in {key.split(": ", 1)[1] for key in declined}


def test_used_unquantized_too() -> None:
    text = qdq("t = Add(d0, d0) e = Exp(t)").replace("(float[] y)", "(float[] y, float[] e)")
    check_pass(LowerQdq(), text, None)

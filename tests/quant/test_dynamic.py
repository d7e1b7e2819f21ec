from __future__ import annotations

import collections
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ir
from graphopt.quant.dynamic import (
    dynamic_obstacle,
    quantize_attention,
    quantize_dynamic,
    quantize_lstm,
    quantize_rows,
)
from graphopt.quant.rounding import round_weights, weight_scales
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]


def build(graph: str, opset: int = 17, contrib: bool = False, **weights: Any) -> ir.Model:
    """Make a model of ONNX text and weights: arrays, or shapes of random float32."""
    more = ', "com.microsoft": 1' if contrib else ""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}{more}]> {graph}')
    rng = np.random.default_rng(0)
    for name, given in weights.items():
        data = rng.normal(size=given).astype(np.float32) if isinstance(given, tuple) else given
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), name))
    return ir.load(proto)


def int8(weight: Array) -> tuple[Array, Array]:
    """A weight ``[in, out]`` as int8 and its scales."""
    scale = weight_scales(weight.T, (-127, 127))
    return round_weights(weight.T, scale, (-127, 127)).T.astype(np.int8), scale[:, 0]


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == op]


def finish(rw: Rewriter) -> None:
    rw.remove_initializers()
    ir.verify(rw.model)
    onnx.checker.check_model(ir.to_proto(rw.model))


def quantize_all(model: ir.Model) -> None:
    rw = Rewriter(model)
    for node in [n for n in model.graph if n.op_type in ("MatMul", "Gemm")]:
        assert dynamic_obstacle(node) is None
        weight = ir.array(node.inputs[1])
        assert weight is not None
        transposed = node.op_type == "Gemm" and ir.attr(node, "transB")
        quantize_dynamic(rw, node, *int8(weight.T if transposed else weight))
    finish(rw)


def dequantized(x: Array) -> Array:
    """What DynamicQuantizeLinear makes of a batch, as float."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale)


def fused(model: ir.Model, path: Path) -> collections.Counter[str]:
    """Operators of the model that ONNX Runtime makes of it when it loads it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    found = onnx.load(options.optimized_model_filepath)
    return collections.Counter(n.op_type for n in found.graph.node)


def run(model: ir.Model, **feeds: Array) -> dict[str, Array]:
    with open_session(model, optimize=False) as session:
        return session.run(feeds)


def test_text_of_a_product() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,3] y) { p = MatMul(x, w) y = Add(p, b) }", w=(4, 3), b=(3,)
    )
    quantize_all(model)
    assert ir.dump(model) == textwrap.dedent(
        """\
        graph(%x: float[N,4]) {
          const %b: float[3]
          const %w.quantized: int8[4,3]
          const %w.scale: float[3]
          const %w.zero_point: int8[3]
          %dynamicquantizelinear, %dynamicquantizelinear.1, %dynamicquantizelinear.2 = DynamicQuantizeLinear(%x)
          %matmulinteger = MatMulInteger(%dynamicquantizelinear, %w.quantized, %dynamicquantizelinear.2, %w.zero_point)
          %cast = Cast(%matmulinteger) {to=1}
          %mul = Mul(%dynamicquantizelinear.1, %w.scale)
          %mul.3 = Mul(%cast, %mul)
          %y = Add(%mul.3, %b)
          return %y
        }
        """  # noqa: E501
    )


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = MatMul(x, w)", {"w": (16, 8)}),
        ("y = Gemm(x, w)", {"w": (16, 8)}),
        ("y = Gemm<transB=1>(x, w, b)", {"w": (8, 16), "b": (8,)}),
        ("y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", {"w": (16, 8), "b": (1, 8)}),
        ("y = Gemm<beta=3.0>(x, w, c)", {"w": (16, 8)}),
    ],
)
def test_numbers(body: str, weights: dict[str, Any]) -> None:
    model = build(f"g (float[N,16] x, float[8] c) => (float[N,8] y) {{ {body} }}", **weights)
    before = ir.clone(model)
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    c = np.linspace(-1, 1, 8, dtype=np.float32)
    quantize_all(model)
    # The same in floats: rounded activations and rounded weights.
    rounded = ir.clone(before)
    (node,) = rounded.graph
    weight = ir.array(node.inputs[1])
    assert weight is not None
    turned = node.op_type == "Gemm" and ir.attr(node, "transB")
    q, scale = int8(weight.T if turned else weight)
    rw = Rewriter(rounded)
    data = (q * scale).astype(np.float32)
    rw.set_input(node, 1, rw.const(data.T if turned else data))
    want = run(rounded, x=dequantized(x), c=c)["y"]
    np.testing.assert_allclose(run(model, x=x, c=c)["y"], want, rtol=1e-4, atol=1e-4)
    exact = run(before, x=x, c=c)["y"]
    assert np.abs(want - exact).max() < 0.1 * np.abs(exact).max()


def test_unsigned_weights_with_a_zero_point() -> None:
    model = build("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=(4, 3))
    weight = ir.array(model.graph[0].inputs[1])
    assert weight is not None
    q, scale = int8(weight)
    unsigned = (q.astype(np.int32) + 128).astype(np.uint8)
    both = []
    for integers, zero in ((q, None), (unsigned, np.full(3, 128))):
        copy = ir.clone(model)
        rw = Rewriter(copy)
        quantize_dynamic(rw, copy.graph[0], integers, scale, zero)
        finish(rw)
        both.append(run(copy, x=np.eye(4, dtype=np.float32))["y"])
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_onnxruntime_fuses_them(tmp_path: Path) -> None:
    model = build(
        """g (float[2,L,16] x) => (float[2,L,8] y) {
            p = MatMul(x, w) q = MatMul(x, v)
            a = Add(p, b) s = Add(q, b) h = Mul(a, s)
            r = MatMul(h, u) y = Add(c, r)
        }""",
        w=(16, 8), v=(16, 8), b=(8,), u=(8, 8), c=(8,),
    )  # fmt: skip
    quantize_all(model)
    assert len(nodes(model, "DynamicQuantizeLinear")) == 2  # two products share one
    found = fused(model, tmp_path)
    assert found["MatMulIntegerToFloat"] == 2
    assert found["DynamicQuantizeMatMul"] == 1
    assert found["DynamicQuantizeLinear"] == 1
    assert not found["MatMulInteger"] + found["Cast"]
    assert found["Add"] == 0


def test_graphs_do_not_share_what_the_other_may_not_compute() -> None:
    model = build(
        """g (bool p, float[N,4] x) => (float[N,3] y, float[N,3] z) {
            y = If(p) <
                then_branch = t () => (float[N,3] a) { a = MatMul(x, w) },
                else_branch = e () => (float[N,3] d) { d = MatMul(x, v) }
            >
            z = MatMul(x, u)
        }""",
        w=(4, 3), v=(4, 3), u=(4, 3),
    )  # fmt: skip
    before = ir.clone(model)
    rw = Rewriter(model)
    for node in [n for n in ir.all_nodes(model) if n.op_type == "MatMul"]:
        weight = ir.array(node.inputs[1])
        assert weight is not None
        quantize_dynamic(rw, node, *int8(weight))
    finish(rw)
    each = [n.op_type for n in ir.all_nodes(model)].count("DynamicQuantizeLinear")
    assert each == 3
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    for p in (True, False):
        feeds = {"x": x, "p": np.array(p)}
        a, b = run(before, **feeds), run(model, **feeds)
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=0.05)


@pytest.mark.parametrize(
    ("body", "opset", "why"),
    [
        ("y = Relu(x)", 17, "Relu has no dynamic form"),
        ("y = MatMul(x, v)", 17, "its weight is not constant"),
        ("y = MatMul(x, t)", 17, "its weight is not a matrix"),
        ("y = Gemm<transA=1>(x, w)", 17, "reads its input transposed"),
        ("y = MatMul(x, nan)", 17, "not finite"),
        ("y = MatMul(x, empty)", 17, "its weight is empty"),
        ("y = MatMul(long, deep)", 17, "sums of 40000 products may not fit"),
        ("y = MatMul(x, w)", 10, "opset 10 has no DynamicQuantizeLinear"),
        ("h = Cast<to=10>(x) y = MatMul(h, k)", 17, "32-bit floats only"),
    ],
)
def test_obstacles(body: str, opset: int, why: str) -> None:
    model = build(
        f"g (float[4,4] x, float[4,3] v, float[1,40000] long) => (float y) {{ {body} }}",
        opset, w=(4, 3), t=(2, 4, 3), k=np.ones((4, 3), np.float16), empty=(4, 0),
        nan=np.full((4, 3), np.nan, np.float32), deep=np.ones((40000, 1), np.float32),
    )  # fmt: skip
    assert why in (dynamic_obstacle(model.graph[-1]) or "")


def test_what_does_not_fit() -> None:
    model = build("g (float[N,4] x) => (float y) { y = MatMul(x, w) }", w=(4, 3))
    q, s = np.zeros((4, 3), np.int8), np.ones(3)
    for args, why in (
        ((q.astype(np.int16), s), "integers are int8 or uint8 of shape"),
        ((q.T, s), r"of shape \(4, 3\)"),
        ((q, np.ones(4)), "the scale is a scalar or"),
        ((q, s, np.zeros(())), "the zero point is of shape"),
    ):
        with pytest.raises(ValueError, match=why):
            quantize_dynamic(Rewriter(ir.clone(model)), ir.clone(model).graph[0], *args)


# Recurrent and attention operators

LSTM = """g (float[T,2,8] x, int32[2] n)
    => (float[T,{d},2,16] y, float[{d},2,16] h, float[{d},2,16] c) {{
    y, h, c = LSTM<hidden_size=16{more}>(x, w, r, b{inputs})
}}"""


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("directions", "more", "inputs"),
    [
        (1, "", ""),
        (2, ', direction="bidirectional"', ", n"),
        (1, ', direction="reverse", clip=2.0', ""),
    ],
)  # fmt: skip
def test_lstm(directions: int, more: str, inputs: str, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (directions, 64, 8), "r": (directions, 64, 16), "b": (directions, 128)}
    weights = {k: 0.3 * rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    model = build(LSTM.format(d=directions, more=more, inputs=inputs), **weights)
    before = ir.clone(model)
    (node,) = nodes(model, "LSTM")
    assert dynamic_obstacle(node) is None
    scales, integers = [], []
    for name in ("w", "r"):
        axes = -1 if per_channel else (1, 2)
        scale = np.abs(weights[name]).max(axis=axes) / 127
        spread = scale.reshape(directions, -1, 1)
        scales.append(scale)
        integers.append(np.rint(weights[name] / spread).astype(np.int8))
    rw = Rewriter(model)
    quantize_lstm(rw, node, (integers[0], integers[1]), (scales[0], scales[1]))
    rw.remove_initializers()
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["DynamicQuantizeLSTM"]
    x = rng.normal(size=(7, 2, 8)).astype(np.float32)
    feeds = {"x": x, "n": np.array([7, 4], np.int32)}
    a, b = run(before, **feeds), run(model, **feeds)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=0.03)


def test_lstm_of_which_one_output_is_used() -> None:
    model = build(
        "g (float[T,2,8] x) => (float[1,2,16] h) { , h = LSTM<hidden_size=16>(x, w, r) }"
        .replace("{ , h", '{ "", h'),
        w=(1, 64, 8), r=(1, 64, 16),
    )  # fmt: skip
    (node,) = model.graph
    q, s = np.ones((1, 64, 8), np.int8), np.ones(1)
    rw = Rewriter(model)
    quantize_lstm(rw, node, (q, np.ones((1, 64, 16), np.int8)), (s, s))
    rw.remove_initializers()
    ir.verify(model)
    (new,) = model.graph
    assert [bool(v.name) for v in new.outputs] == [False, True]
    assert run(model, x=np.ones((3, 2, 8), np.float32))["h"].shape == (1, 2, 16)


def test_lstm_that_does_not_fit() -> None:
    text = """g (float[2,T,8] x, float[1,64,16] v) => (float y) {{
        y = LSTM<hidden_size=16{}>(x, w, {})
    }}"""
    shapes = {"w": (1, 64, 8), "r": (1, 64, 16)}
    batch_first = build(text.format(", layout=1", "r"), **shapes)
    assert "layout=0" in (dynamic_obstacle(batch_first.graph[0]) or "")
    fed = build(text.format("", "v"), **shapes)
    assert "not constant" in (dynamic_obstacle(fed.graph[0]) or "")
    model = build(text.format("", "r"), **shapes)
    w, r = np.zeros((1, 64, 8), np.int8), np.zeros((1, 64, 16), np.int8)
    for weights, scales, why in (
        ((w.astype(np.uint8), r), (np.ones(1), np.ones(1)), "weights are int8"),
        ((r, r), (np.ones(1), np.ones(1)), r"of shape \(1, 64, 8\)"),
        ((w, r), (np.ones(64), np.ones(1)), "scales are of shape"),
    ):
        copy = ir.clone(model)
        with pytest.raises(ValueError, match=why):
            quantize_lstm(Rewriter(copy), copy.graph[0], weights, scales)


def test_attention() -> None:
    model = build(
        """g (float[2,L,16] x, int32[2,L] m) => (float[2,L,16] y) {
            y = com.microsoft.Attention<num_heads=4>(x, w, b, m)
        }""",
        contrib=True, w=(16, 48), b=(48,),
    )  # fmt: skip
    before = ir.clone(model)
    (node,) = model.graph
    assert dynamic_obstacle(node) is None
    weight = ir.array(node.inputs[1])
    assert weight is not None
    rw = Rewriter(model)
    with pytest.raises(ValueError, match="integers are int8"):
        quantize_attention(rw, node, np.zeros((16, 48), np.uint8), np.ones(()))
    with pytest.raises(ValueError, match="the scale is"):
        quantize_attention(rw, node, np.zeros((16, 48), np.int8), np.ones(3))
    quantize_attention(rw, node, *int8(weight))
    rw.remove_initializers()
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["DynamicQuantizeLinear", "QAttention"]
    x = np.random.default_rng(1).normal(size=(2, 6, 16)).astype(np.float32)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32)
    a, b = run(before, x=x, m=mask)["y"], run(model, x=x, m=mask)["y"]
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


@pytest.mark.parametrize(
    ("inputs", "attributes", "why"),
    [
        ('x, w, "", m', "num_heads=4", "needs a bias"),
        ("x, w, b, m, p", "num_heads=4", "no past"),
        ("x, w, b", "num_heads=4, qkv_hidden_sizes=[16,16,16]", "sizes of its own"),
        ("x, w, b", "num_heads=4, do_rotary=1", "does not rotate"),
        ("x, v, b", "num_heads=4", "not constant"),
    ],
)
def test_attention_that_does_not_fit(inputs: str, attributes: str, why: str) -> None:
    model = build(
        f"""g (float[2,6,16] x, int32[2,6] m, float[2,2,4,5,4] p, float[16,48] v) => (float y) {{
            y = com.microsoft.Attention<{attributes}>({inputs})
        }}""",
        contrib=True, w=(16, 48), b=(48,),
    )  # fmt: skip
    assert why in (dynamic_obstacle(model.graph[0]) or "")


# Tables


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("shape", [(50, 8), (50, 2, 4), (50,)])
def test_rows_of_a_table(shape: tuple[int, ...], per_row: bool, dtype: Any) -> None:
    table = np.random.default_rng(0).normal(size=shape).astype(dtype)
    name = {np.float32: "float", np.float16: "float16"}[dtype]
    rest = "".join(f",{d}" for d in shape[1:])
    model = build(f"g (int64[N,M] i) => ({name}[N,M{rest}] y) {{ y = Gather(t, i) }}", t=table)
    axes = tuple(range(1, len(shape))) if per_row else None
    scale = np.abs(table).max(axis=axes, keepdims=True).astype(np.float32) / 127
    integers = np.rint(table / scale).astype(np.int8)
    rw = Rewriter(model)
    quantize_rows(rw, model.graph[0], integers, scale if per_row else scale.reshape(()))
    finish(rw)
    i = np.array([[0, 3, 49], [-1, 7, 3]])
    got = run(model, i=i)["y"]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, (integers * scale)[i], rtol=2e-3)
    assert ir.nbytes(model) < 0.8 * table.nbytes + 600


def test_text_of_a_table() -> None:
    model = build("g (int64[N] i) => (float[N,4] y) { y = Gather(t, i) }", t=(5, 4))
    rw = Rewriter(model)
    quantize_rows(rw, model.graph[0], np.ones((5, 4), np.int8), np.ones((5, 1)))
    finish(rw)
    assert ir.dump(model) == textwrap.dedent(
        """\
        graph(%i: int64[N]) {
          const %t.quantized: int8[5,4]
          const %t.scale: float[5,1]
          %gather = Gather(%t.quantized, %i) {axis=0}
          %gather.1 = Gather(%t.scale, %i) {axis=0}
          %cast = Cast(%gather) {to=1}
          %y = Mul(%cast, %gather.1)
          return %y
        }
        """
    )


def test_tables_that_do_not_fit() -> None:
    model = build("g (int64[N] i) => (float[N,4] y) { y = Gather(t, i) }", t=(5, 4))
    for integers, scale, why in (
        (np.zeros((5, 4), np.int32), np.ones(()), "integers are int8 or uint8"),
        (np.zeros((4, 5), np.int8), np.ones(()), r"of shape \(5, 4\)"),
        (np.zeros((5, 4), np.int8), np.ones(5), r"a scalar or of shape \(5, 1\)"),
    ):
        with pytest.raises(ValueError, match=why):
            quantize_rows(Rewriter(model), model.graph[0], integers, scale)

"""How a static quantization is written: in text, and in numbers."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.quant.emit import Quantized, emit_static, quantized_bias
from graphopt.quant.params import QParams, from_range
from graphopt.quant.prepare import activation_params, quantize_weight, to_observe
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session
from graphopt.targets import Format, Scheme, get

Array = np.ndarray[Any, Any]


def scheme_of(target: str, **changes: Any) -> Scheme:
    scheme = get(target).scheme
    assert scheme is not None
    return dataclasses.replace(scheme, **changes)


def quantized(
    graph: str | ir.Model,
    ranges: Mapping[str, tuple[float, float]],
    *,
    chosen: set[str] | None = None,
    scheme: Scheme | None = None,
) -> tuple[ir.Model, ir.Model]:
    """A model and its quantized copy; ``chosen`` units, or all."""
    model = graph
    if isinstance(model, str):
        model = ir.parse_text('<ir_version: 8, opset_import: ["": 17]>\ng ' + model)
    ir.infer_shapes(model)
    copy = ir.clone(model)
    units = Units(copy, scheme or scheme_of("cpu-x64"))
    params = activation_params(units, ranges)
    weights = {u.name: quantize_weight(u, units, params) for u in units if u.weight is not None}
    rw = Rewriter(copy)
    emit_static(rw, units, {u.name for u in units} if chosen is None else chosen, params, weights)
    rw.undo((0, 0))  # as StaticForm.quantized does: nobody reads some of the ways back
    rw.remove_initializers()
    ir.infer_shapes(copy)
    ir.verify(copy)
    ir.check(model, copy)
    assert ir.interface_difference(model, copy) is None
    return model, copy


def body(model: ir.Model) -> str:
    """The nodes of a model's text."""
    lines = [line.strip() for line in ir.dump(model).splitlines()[1:-1]]
    return "\n".join(li for li in lines if not li.startswith(("const ", "return ")))


def run(model: ir.Model, **feeds: Array) -> dict[str, Any]:
    with open_session(model, optimize=False) as session:
        return session.run(feeds)


def check(got: ir.Model, want: str) -> None:
    assert body(got) == textwrap.dedent(want).strip(), body(got)


# A range of (0, 255) has the scale 1, and (-128, 127) the zero point 128.


def test_a_convolution_with_relu() -> None:
    model, got = quantized(
        "(float[1,1,1,2] x) => (float[1,2,1,2] y) <float[2,1,1,1] w = {127, 254}, "
        "float[2] b = {3, 4}> { c = Conv(x, w, b) y = Relu(c) }",
        {"x": (-128, 127), "y": (0, 510)},
    )
    ops = [n.op_type for n in got.graph]
    assert ops == ["QuantizeLinear", *["DequantizeLinear"] * 3, "Conv", "QuantizeLinear",
                   "DequantizeLinear"]  # fmt: skip
    held = {k: ir.array(v).tolist() for k, v in got.graph.initializers.items()}  # type: ignore[union-attr]
    assert held["w.quantized"] == [[[[127]]], [[[127]]]]
    assert held["w.scale"] == [1, 2]
    assert held["w.bias.quantized"] == [3, 2]
    assert held["w.bias.scale"] == [1, 2]
    points = {k: v for k, v in held.items() if k.endswith("zero_point")}
    assert points.pop("x.zero_point") == 128
    assert points == {
        "w.zero_point": [0, 0], "w.bias.zero_point": [0, 0], "y.zero_point": 0
    }  # fmt: skip
    x = np.array([[[[1.4, -3]]]], np.float32)
    assert run(got, x=x)["y"].tolist() == [[[[130, 0]], [[258, 0]]]]
    want = run(model, x=np.rint(x))["y"]
    np.testing.assert_allclose(run(got, x=x)["y"], want, atol=1.01)  # output scale 2


def test_in_text() -> None:
    _, got = quantized(
        "(float[2] x) => (float[2] y) { a = Add(x, x) b = Elu(a) y = Mul(a, b) }",
        {"x": (0, 255), "a": (0, 255), "b": (0, 255), "y": (0, 255)},
    )
    pairs = [(n.op_type, [v.name for v in n.inputs[:1] if v], n.outputs[0].name) for n in got.graph]
    assert [p[0] for p in pairs] == [
        "QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear", "DequantizeLinear", "Elu",
        "QuantizeLinear", "DequantizeLinear", "Mul", "QuantizeLinear", "DequantizeLinear",
    ]  # fmt: skip
    # Whatever reads what an integer unit writes reads it from integers, in floating point too.
    assert pairs[5][1] == [pairs[4][2]]
    assert pairs[-1][2] == "y"


def test_only_what_was_chosen_changes() -> None:
    graph = "(float[2] x) => (float[2] y) { a = Add(x, x) b = Mul(a, x) y = Add(b, x) }"
    ranges = {n: (0.0, 255.0) for n in "xaby"}
    model, none = quantized(graph, ranges, chosen=set())
    assert ir.dump(none) == ir.dump(model)
    _, got = quantized(graph, ranges, chosen={"b"})
    # The others read the floating-point numbers that are still there.
    check(
        got,
        """
        %quantizelinear.3 = QuantizeLinear(%x, %x.scale, %x.zero_point)
        %dequantizelinear.4 = DequantizeLinear(%quantizelinear.3, %x.scale, %x.zero_point)
        %a = Add(%x, %x)
        %quantizelinear.1 = QuantizeLinear(%a, %a.scale, %a.zero_point)
        %dequantizelinear.2 = DequantizeLinear(%quantizelinear.1, %a.scale, %a.zero_point)
        %b = Mul(%dequantizelinear.2, %dequantizelinear.4)
        %quantizelinear = QuantizeLinear(%b, %b.scale, %b.zero_point)
        %dequantizelinear = DequantizeLinear(%quantizelinear, %b.scale, %b.zero_point)
        %y = Add(%dequantizelinear, %x)
        """,
    )


def test_an_absorbed_relu_that_is_not_chosen_stays() -> None:
    graph = (
        "(float[1,1,2] x) => (float[1,2,2] y) <float[2,1,1] w = {1, 2}> "
        "{ c = Conv(x, w) y = Relu(c) }"
    )
    model, got = quantized(graph, {"x": (0, 255), "y": (0, 255)}, chosen=set())
    assert ir.dump(got) == ir.dump(model)


def test_an_absorbed_relu_behind_which_the_graph_goes_on() -> None:
    _, got = quantized(
        "(float[1,1,2] x) => (float[1,2,2] y, float[1,2,2] r) <float[2,1,1] w = {1, 2}> "
        "{ c = Conv(x, w) r = Relu(c) y = Elu(r) }",
        {"x": (0, 255), "r": (0, 255)},
    )
    assert [n.op_type for n in got.graph if n.op_type in ("Relu", "Elu")] == ["Elu"]
    assert [v.name for v in got.graph.outputs] == ["y", "r"]
    x = np.array([[[1, 100]]], np.float32)
    np.testing.assert_allclose(run(got, x=x)["r"], [[[1, 100], [2, 200]]], atol=1)


MOVED = (
    "(float[1,4,4,1] x) => (float[1,1,2,2] y, float[1,1,1,2] z) <int64[8] pads = {0,0,1,1,0,0,0,0},"
    " int64[1] a = {0}, int64[1] b = {1}, int64[1] two = {2}, int64[4] s = {1, 1, 2, 2}> { "
    "t = Transpose<perm=[0,3,1,2]>(x) p = Pad(t, pads) m = MaxPool<kernel_shape=[2,2], "
    "strides=[2,2]>(p) y = Reshape(m, s) z = Slice(y, a, b, two) }"
)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("moves", ["integers", "qdq"])
def test_moves(moves: Any, dtype: str) -> None:
    scheme = scheme_of("cpu-x64", moves=moves, activation=Format(dtype))
    model, got = quantized(MOVED, {"x": (-128, 127)}, scheme=scheme)
    ops = [n.op_type for n in got.graph]
    x = np.random.default_rng(0).integers(-128, 128, (1, 4, 4, 1)).astype(np.float32)
    for name, want in run(model, x=x).items():
        np.testing.assert_array_equal(run(got, x=x)[name], want)  # moves add no noise
    if moves == "integers":
        assert ops.count("QuantizeLinear") == 1
        assert ops.count("DequantizeLinear") == 2  # before each of the outputs
        pad = next(n for n in got.graph if n.op_type == "Pad")
        assert ir.array(pad.inputs[2]) == (128 if dtype == "uint8" else 0)
        kinds = {v.dtype for n in got.graph if n.op_type in ("Pad", "MaxPool") for v in n.outputs}
        assert kinds == {ir.DataType[dtype.upper()]}
    else:
        assert ops.count("DequantizeLinear") == 6 - 1 + 1
        # Every operator stands between DequantizeLinear and QuantizeLinear.
        for node in got.graph:
            if "Linear" not in node.op_type:
                assert node.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


EVERY_MOVE = {
    "DepthToSpace": "y = DepthToSpace<blocksize=2>(x)",
    "Expand": "y = Expand(x, s5)",
    "Flatten": "y = Flatten(x)",
    "GatherElements": "y = GatherElements(x, i)",
    "Gather": "y = Gather<axis=1>(x, one)",
    "Identity": "y = Identity(x)",
    "Squeeze": "y = Squeeze(x, zero)",
    "Unsqueeze": "y = Unsqueeze(x, zero)",
    "Tile": "y = Tile(x, t)",
    "ReduceMax": "y = ReduceMax<axes=[1]>(x)",
    "ReduceMin": "y = ReduceMin<axes=[1]>(x)",
    "Resize": 'y = Resize<mode="nearest">(x, , sc)',
    "Split": "y, u = Split<axis=1>(x)",
    "Slice": "y = Slice(x, zero, one, one)",
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("op", sorted(EVERY_MOVE))
def test_every_operator_that_moves_runs_on_integers(op: str, dtype: str) -> None:
    outs = "y, float[?,?,?,?] u" if op == "Split" else "y"
    rank = ",".join("?" * {"Expand": 5, "Flatten": 2, "Squeeze": 3, "Unsqueeze": 5}.get(op, 4))
    model, got = quantized(
        f"(float[1,4,2,2] x) => (float[{rank}] {outs}) <int64[5] s5 = {{2,1,4,2,2}}, "
        "int64[1,4,2,2] i = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, int64[1] zero = {0}, "
        "int64[1] one = {1}, int64[4] t = {1,2,1,1}, float[4] sc = {1,1,2,2}> "
        f"{{ {EVERY_MOVE[op]} }}",
        {"x": (-128, 127)},
        scheme=scheme_of("cpu-x64", activation=Format(dtype)),
    )
    assert [n.op_type for n in got.graph].count("QuantizeLinear") == 1
    x = np.random.default_rng(1).integers(-128, 128, (1, 4, 2, 2)).astype(np.float32)
    want, found = run(model, x=x), run(got, x=x)
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])


def test_indices_of_a_pooling_are_kept() -> None:
    model, got = quantized(
        "(float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) "
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }",
        {"x": (-128, 127)},
    )
    x = np.random.default_rng(2).permutation(np.arange(-8, 8)).reshape(1, 1, 4, 4)
    for name, want in run(model, x=x.astype(np.float32)).items():
        np.testing.assert_array_equal(run(got, x=x.astype(np.float32))[name], want)


def test_a_move_between_integer_and_float_readers() -> None:
    model, got = quantized(
        "(float[2,2] x) => (float[2,2] y, float[2,2] z) "
        "{ a = Add(x, x) t = Transpose(a) y = Add(t, a) z = Elu(t) }",
        {"x": (0, 255), "a": (0, 510), "y": (0, 1020)},
    )
    x = np.array([[0, 10], [100, 255]], np.float32)
    want, found = run(model, x=x), run(got, x=x)
    np.testing.assert_allclose(found["z"], want["z"], atol=1.01)
    np.testing.assert_allclose(found["y"], want["y"], atol=1 + 1 + 2.01)
    transpose = next(n for n in got.graph if n.op_type == "Transpose")
    assert transpose.inputs[0].dtype == ir.DataType.UINT8  # type: ignore[union-attr]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("target", ["cpu-x64", "cpu-arm64", "portable", "tensorrt"])
def test_gemm_is_the_simulation(target: str, transposed: int) -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(size=(3, 5)).astype(np.float32) * np.array([0.01, 1, 30], np.float32)[:, None]
    b = rng.normal(size=3).astype(np.float32)
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\ng (float[4,5] x) => (float[4,3] y) '
        f"<float[1] w = {{0}}, float[3] b = {{0, 0, 0}}> "
        f"{{ y = Gemm<transB={transposed}>(x, w, b) }}"
    )
    for name, data in (("w", w if transposed else w.T.copy()), ("b", b)):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(data, name=name)
        value.shape = ir.Shape(data.shape)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    y = x @ w.T + b
    bounds = {"x": (float(x.min()), float(x.max())), "y": (float(y.min()), float(y.max()))}
    scheme = scheme_of(target)
    model, got = quantized(model, bounds, scheme=scheme)
    form = dataclasses.replace(scheme.activation, granularity="tensor")
    on_x, on_y = (from_range(*bounds[n], form) for n in "xy")
    single = scheme.weight.granularity == "tensor" or target == "portable"
    limit = scheme.weight.limits[1] - (128 if scheme.weight.limits[0] == 0 else 0)
    size = np.abs(w).max() if single else np.abs(w).max(axis=1, keepdims=True)
    scale = (size / limit).astype(np.float32)
    around = np.rint(w / scale) * scale
    bias: Array = b
    if scheme.bias == "int32":
        step = np.broadcast_to(scale.reshape(-1), 3) * float(on_x.scale)
        bias = np.rint(b / step) * step
    simulated = on_y.dequantize(
        on_y.quantize(on_x.dequantize(on_x.quantize(x)) @ around.T.astype(np.float32) + bias)
    )
    found = run(got, x=x)["y"]
    # A sum at a tie may round to either side.
    np.testing.assert_allclose(found, simulated, atol=float(on_y.scale) * 1.01)
    assert np.mean(np.abs(found - simulated) < 1e-5) > 0.8
    np.testing.assert_allclose(found, y, atol=0.1 * np.abs(y).max())


def test_concat_and_constant_operands() -> None:
    model, got = quantized(
        "(float[1,2] x) => (float[1,4] y) <float[1,2] k = {1, -3}> "
        "{ a = Add(k, x) y = Concat<axis=1>(a, k) }",
        {"x": (0, 255), "a": (-128, 127), "y": (-128, 127)},
    )
    ops = [n.op_type for n in got.graph]
    # The constant is stored as integers, each time it is read.
    assert ops.count("QuantizeLinear") == 3
    held = {k: ir.array(v) for k, v in got.graph.initializers.items()}
    stored = [v for k, v in held.items() if k.startswith("k.quantized")]
    assert len(stored) == 2
    assert all(v is not None and v.dtype == np.uint8 for v in stored)
    assert "k" not in held
    x = np.array([[5, 60]], np.float32)
    np.testing.assert_allclose(run(got, x=x)["y"], [[6, 57, 1, -3]], atol=0.6)
    np.testing.assert_allclose(run(got, x=x)["y"], run(model, x=x)["y"], atol=0.6)


def test_one_value_read_twice_and_one_weight_of_two_units() -> None:
    model, got = quantized(
        "(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> "
        "{ a = Mul(x, x) b = MatMul(a, w) y = MatMul(b, w) }",
        {"x": (0, 2), "a": (0, 4), "b": (0, 24), "y": (0, 160)},
    )
    weights = [v for n in got.graph if n.op_type == "MatMul" for v in n.inputs[1:]]
    assert len({v.producer() for v in weights if v is not None}) == 2  # no reader shares its pair
    assert [n.op_type for n in got.graph].count("QuantizeLinear") == 4
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_allclose(run(got, x=x)["y"], run(model, x=x)["y"], rtol=0.05)


def test_a_kept_float_bias() -> None:
    _, got = quantized(
        "(float[1,1,2] x) => (float[1,2,2] y) <float[2,1,1] w = {1, 2}, float[2] b = {3, 4}> "
        "{ y = Conv(x, w, b) }",
        {"x": (-1, 1), "y": (-6, 6)},
        scheme=scheme_of("tensorrt"),
    )
    conv = next(n for n in got.graph if n.op_type == "Conv")
    assert conv.inputs[2] is got.graph.initializers["b"]
    types = {v.dtype for n in got.graph if n.op_type == "QuantizeLinear" for v in n.outputs}
    assert types == {ir.DataType.INT8}


def test_a_corrected_float_bias_is_written() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\ng (float[1,1,2] x) => (float[1,2,2] y) '
        "<float[2,1,1] w = {1, 2}, float[2] b = {3, 4}> { y = Conv(x, w, b) }"
    )
    ir.infer_shapes(model)
    units = Units(model, scheme_of("tensorrt"))
    params = activation_params(units, {"x": (-1, 1), "y": (-6, 6)})
    (unit,) = units
    found = quantize_weight(unit, units, params)
    better = dataclasses.replace(found, bias=np.array([3.5, 4.5], np.float32))
    emit_static(Rewriter(model), units, {"y"}, params, {"y": better})
    conv = next(n for n in model.graph if n.op_type == "Conv")
    assert ir.array(conv.inputs[2]).tolist() == [3.5, 4.5]  # type: ignore[union-attr]


def test_biases_saturate() -> None:
    found = quantized_bias(np.array([1.5, -2.5, 1e30, -1e30], np.float32), np.ones(()))
    assert found.dtype == np.int32
    assert found.tolist() == [2, -2, 2**31 - 1, -(2**31)]
    assert quantized_bias(np.array([1.0, 1.0]), np.array([0.5, 0.25])).tolist() == [2, 4]


def test_a_graph_input_that_is_a_graph_output_too() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[2] x) => (float[2] y, float[2] a) { a = Add(x, x) y = Mul(a, x) }"
    )
    model, got = quantized(model, {"x": (0, 255), "a": (0, 510), "y": (0, 510)})
    assert [v.name for v in got.graph.outputs] == ["y", "a"]
    x = np.array([1, 2], np.float32)
    np.testing.assert_allclose(run(got, x=x)["a"], [2, 4], atol=1.01)


def test_what_has_to_be_observed() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] k = {1, 2, 3, 4}> "
        "{ t = Transpose(x) y = Add(t, k) }"
    )
    ir.infer_shapes(model)
    units = Units(model, scheme_of("cpu-x64"))
    assert [v.name for v in to_observe(units)] == ["x", "y"]


def test_weights_of_any_kind_are_written() -> None:
    """What is written is what was given, not what this module would find."""
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    ir.infer_shapes(model)
    units = Units(model, scheme_of("cpu-x64"))
    params = activation_params(units, {"x": (0, 255), "y": (0, 255)})
    given = QParams(
        np.array([1, 1], np.float32), np.zeros(2, np.int8), Format("int8", symmetric=True), 1
    )
    eye = Quantized(np.eye(2, dtype=np.int8), given)
    emit_static(Rewriter(model), units, ["y"], params, {"y": eye})
    x = np.array([[7, 9]], np.float32)
    assert run(model, x=x)["y"].tolist() == [[7, 9]]

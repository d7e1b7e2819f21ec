"""repair-qdq: constants become integers of the target's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import PassManager, ir
from graphopt.passes.quantize import RepairQdq
from graphopt.testing import assert_equivalent

Check = Callable[..., Any]
Text = Callable[[Any], str]
Constants = Callable[[Any], Any]


def conv(weights: str, nodes: str) -> str:
    """A convolution of a quantized input whose weight ``w`` is made by ``nodes``."""
    return f"""(float[1,2,4,4] x) => (float[1,3,4,4] y)
    <float s = {{0.02}}, uint8 z = {{128}}, {weights}>
    {{
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      {nodes}
      y = Conv(d, w)
    }}"""


FLOATS = "float[3,2,1,1] k = {0.05, -0.05, 1.0, -2.0, 0.125, 1.275}"


def test_weights_behind_a_quantizer(check: Check, constants: Constants) -> None:
    """As TensorRT's tools leave them; halves round to even."""
    result = check(
        RepairQdq(),
        conv(
            f"{FLOATS}, float[3] t = {{0.1, 0.1, 0.01}}, int8[3] o = {{0, 0, 0}}",
            "c = QuantizeLinear<axis=0>(k, t, o) w = DequantizeLinear<axis=0>(c, t, o)",
        ),
        """
        graph(%x: float[1,2,4,4]) {
          const %k.quantized: int8[3,2,1,1]
          const %o: int8[3]
          const %s: float[]
          const %t: float[3]
          const %z: uint8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %w = DequantizeLinear(%k.quantized, %t, %o) {axis=0}
          %y = Conv(%d, %w)
          return %y
        }
        """,
    )
    got = np.ravel(constants(result)["k.quantized"])
    x = np.array([0.05, -0.05, 1, -2, 0.125, 1.275], np.float32)
    scale = np.array([0.1, 0.1, 0.1, 0.1, 0.01, 0.01], np.float32)
    assert got.tolist() == np.clip(np.rint(x / scale), -128, 127).tolist()


@pytest.mark.parametrize(
    ("kind", "zero", "opset", "codes"),
    [
        ("uint8", 128, 17, (0, 1, 128, 129, 254, 255)),
        ("uint8", 3, 17, (0, 1, 2, 3, 4, 5)),
        ("int8", 5, 17, (0, 1, -2, 3, -4, 5)),
        ("int16", 0, 21, (-128, 127, 0, 1, 2, 3)),
        ("int16", 300, 21, (299, 300, 301, 302, 303, 427)),
    ],
)
def test_other_integers(
    check: Check, kind: str, zero: int, opset: int, codes: tuple[int, ...], constants: Constants
) -> None:
    text = ", ".join(map(str, codes))
    result = check(
        RepairQdq(),
        conv(
            f"{kind}[3,2,1,1] k = {{{text}}}, float t = {{0.1}}, {kind} o = {{{zero}}}",
            "w = DequantizeLinear(k, t, o)",
        ),
        """
        graph(%x: float[1,2,4,4]) {
          const %k.1: int8[3,2,1,1]
          const %k.1.zero: int8[]
          const %s: float[]
          const %t: float[]
          const %z: uint8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %w = DequantizeLinear(%k.1, %t, %k.1.zero)
          %y = Conv(%d, %w)
          return %y
        }
        """,
        opset=opset,
    )
    found = constants(result)
    assert np.ravel(found["k.1"]).tolist() == [c - zero for c in codes]
    assert found["k.1.zero"] == 0


@pytest.mark.parametrize("axis", [0, -4])
@pytest.mark.parametrize("kind", [onnx.TensorProto.INT4, onnx.TensorProto.UINT4])
def test_four_bits(kind: int, axis: int) -> None:
    """4-bit weights of a convolution, which has no 4-bit kernel."""
    low, high = (-8, 7) if kind == onnx.TensorProto.INT4 else (0, 15)
    make = onnx.helper.make_tensor
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        onnx.helper.make_node("DequantizeLinear", ["k", "t", "o"], ["w"], axis=axis),
        onnx.helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 2, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 4, 4])],
        [
            make("s", 1, [], [0.02]),
            make("z", 2, [], [128]),
            make("k", kind, [3, 2, 1, 1], [low, high, 1, 2, 3, 4]),
            make("t", 1, [3], [0.1, 0.2, 0.3]),
            make("o", kind, [3], [0, 1, 2]),
        ],
    )
    model = ir.load(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
        )
    )
    result = PassManager(RepairQdq(), target="cpu-x64", on_mismatch="raise").run(model)
    assert_equivalent(model, result.model, RepairQdq.exactness)
    (weight,) = [v for v in result.model.graph.initializers.values() if ir.rank(v) == 4]
    assert weight.dtype == ir.DataType.INT8
    assert np.ravel(ir.array(weight)).tolist() == [low, high, 0, 1, 1, 2]
    assert not PassManager(RepairQdq(), target="cpu-x64").run(result.model).report.changed


def test_transposed_weight(check: Check, constants: Constants) -> None:
    """As exporters write linear layers: scales per channel move with the axis."""
    result = check(
        RepairQdq(),
        """(float[1,2] x) => (float[1,3] y)
        <float s = {0.02}, uint8 z = {128}, int8[3,2] k = {1,2,3,4,5,6},
         float[3] t = {0.1, 0.2, 0.3}, int8[3] o = {0, 0, 0}>
        {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          c = DequantizeLinear<axis=0>(k, t, o)
          w = Transpose<perm=[1,0]>(c)
          y = MatMul(d, w)
        }""",
        """
        graph(%x: float[1,2]) {
          const %k.1: int8[2,3]
          const %o: int8[3]
          const %s: float[]
          const %t: float[3]
          const %z: uint8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %dequantizelinear = DequantizeLinear(%k.1, %t, %o) {axis=1}
          %y = MatMul(%d, %dequantizelinear)
          return %y
        }
        """,
    )
    assert constants(result)["k.1"] == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    ("weights", "nodes", "opset", "reason"),
    [
        (
            "uint8[3,2,1,1] k = {0,1,2,3,4,255}, float t = {0.1}, uint8 o = {3}",
            "w = DequantizeLinear(k, t, o)",
            17,
            "does not fit int8",
        ),
        (
            "float[3,2,1,1] k = {inf,1,2,3,4,5}, float t = {0.1}, int8 o = {0}",
            "c = QuantizeLinear(k, t, o) w = DequantizeLinear(c, t, o)",
            17,
            "not finite",
        ),
        (
            "int16[3,2,1,1] k = {0,1,2,3,4,5}, float[3,1,1,1] t = {0.1, 0.1, 0.1}",
            "w = DequantizeLinear<axis=1, block_size=2>(k, t)",
            21,
            "scale per block",
        ),
    ],
)
def test_declines(
    check: Check, declined: Text, weights: str, nodes: str, opset: int, reason: str
) -> None:
    assert reason in declined(check(RepairQdq(), conv(weights, nodes), None, opset=opset))


def test_constants_that_are_no_weights_stay(check: Check) -> None:
    """A table that is an output is nobody's weight."""
    check(
        RepairQdq(),
        """(float[1] x) => (float[3] y, float[1] z)
        <uint8[3] k = {1,2,3}, float t = {0.1}, uint8 o = {3}>
        { y = DequantizeLinear(k, t, o) z = Neg(x) }""",
        None,
    )


BIASED = conv(
    """int8[3,2,1,1] k = {1,2,3,4,5,6}, float t = {0.1}, int8 o = {0},
    int32[3] c = {100, -200, 16777217}, float u = {0.002}""",
    "w = DequantizeLinear(k, t, o) b = DequantizeLinear(c, u)",
).replace("Conv(d, w)", "Conv(d, w, b)")


def test_bias_for_a_target_of_floating_point_biases(check: Check, constants: Constants) -> None:
    graph = BIASED.replace("uint8 z = {128}", "int8 z = {0}")
    result = check(
        RepairQdq(),
        graph,
        """
        graph(%x: float[1,2,4,4]) {
          const %b.1: float[3]
          const %k: int8[3,2,1,1]
          const %o: int8[]
          const %s: float[]
          const %t: float[]
          const %z: int8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %w = DequantizeLinear(%k, %t, %o)
          %y = Conv(%d, %w, %b.1)
          return %y
        }
        """,
        target="tensorrt",
    )
    assert constants(result)["b.1"] == pytest.approx([0.2, -0.4, 33554.434])


def test_bias_for_a_target_of_integer_biases(check: Check) -> None:
    check(RepairQdq(), BIASED, None)


def test_weights_that_may_saturate(check: Check, declined: Text) -> None:
    """Without VNNI pairs of products are added in 16 bits."""
    graph = conv(
        "int8[3,2,1,1] k = {1,2,3,4,5,127}, float t = {0.1}, int8 o = {0}",
        "w = DequantizeLinear(k, t, o)",
    )
    assert "may saturate" in declined(check(RepairQdq(), graph, None, target="cpu-x64-avx2"))
    check(RepairQdq(), graph.replace("127", "63"), None, target="cpu-x64-avx2")

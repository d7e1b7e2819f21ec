"""The passes about foreign quantized models that change numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import Exactness, PassManager, ir
from graphopt.passes.quantize import DropQdq, PlaceQdq, QuantizeBias, WidenQdq
from graphopt.runtime import open_session
from graphopt.targets import get

Check = Callable[..., Any]
Text = Callable[[Any], str]
Constants = Callable[[Any], Any]
S = "float s = {0.02}, int8 z = {0}, float t = {0.03}"
RESIDUAL = f"""(float[1,2,4,4] x) => (float[1,2,4,4] y)
<{S}, int8[2,2,1,1] k = {{50,-20,30,40}}, int8 o = {{0}}, float u = {{0.01}}>
{{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear(k, u, o)
  c = Conv(d, w)
  a = Add(d, c)
  b = Relu(a)
  r = QuantizeLinear(b, t, z)
  y = DequantizeLinear(r, t, z)
}}"""
DATA = [{"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4) * i} for i in (1, 2)]


def model_of(graph: str) -> ir.Model:
    return ir.parse_text(f'<ir_version: 10, opset_import: ["": 17]>\ng {graph}')


def output(model: ir.Model, x: Any) -> Any:
    with open_session(model) as session:
        return session.run({"x": x})["y"]


# --- place-qdq -----------------------------------------------------------------------------------


def test_between_convolution_and_addition(check: Check, constants: Constants) -> None:
    result = check(
        PlaceQdq(),
        RESIDUAL,
        """
        graph(%x: float[1,2,4,4]) {
          const %c.scale: float[]
          const %c.zero: uint8[]
          const %k: int8[2,2,1,1]
          const %o: int8[]
          const %s: float[]
          const %t: float[]
          const %u: float[]
          const %z: int8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %w = DequantizeLinear(%k, %u, %o)
          %c = Conv(%d, %w)
          %quantizelinear = QuantizeLinear(%c, %c.scale, %c.zero)
          %dequantizelinear = DequantizeLinear(%quantizelinear, %c.scale, %c.zero)
          %a = Add(%d, %dequantizelinear)
          %b = Relu(%a)
          %r = QuantizeLinear(%b, %t, %z)
          %y = DequantizeLinear(%r, %t, %z)
          return %y
        }
        """,
        data=DATA,
    )
    found = constants(result)
    with open_session(model_of(RESIDUAL.replace("float[1,2,4,4] y", "float[1,2,4,4] c"))) as run:
        seen = np.concatenate([run.run(d)["c"] for d in DATA])
    wide = np.float32(seen.max() - seen.min()) / 255
    assert found["c.scale"] == pytest.approx(wide, rel=1e-6)
    assert found["c.zero"] == round(-float(seen.min() / wide))
    x = DATA[0]["x"]
    moved = np.abs(output(result.model, x) - output(model_of(RESIDUAL), x)).max()
    assert 0 < moved <= 0.03 * 1.001  # a step of the last grid at most


def test_a_range_that_is_known_needs_no_data(check: Check) -> None:
    """One addition reads the value dequantized, the other as it was."""
    graph = f"""(float[1,8] x) => (float[1,8] y, float[1,8] v)
    <{S}>
    {{
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      e = Exp(d)
      p = QuantizeLinear(e, t, z)
      f = DequantizeLinear(p, t, z)
      a = Add(d, e)
      r = QuantizeLinear(a, t, z)
      y = DequantizeLinear(r, t, z)
      b = Mul(f, d)
      o = QuantizeLinear(b, t, z)
      v = DequantizeLinear(o, t, z)
    }}"""
    found = PassManager(PlaceQdq(), target="cpu-arm64", on_mismatch="raise").run(model_of(graph))
    (record,) = found.report.passes
    assert record.rewrites == {"insert-pair": 1}
    (add,) = [n for n in found.model.graph if n.op_type == "Add"]
    source = add.inputs[1].producer()
    assert source.op_type == "DequantizeLinear"
    assert ir.array(source.inputs[1]) == np.float32(0.03)


def test_declines_without_data(check: Check, declined: Text) -> None:
    assert "no calibration data" in declined(check(PlaceQdq(), RESIDUAL, None))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (
            f"""(float[1,2,4,4] x) => (float[1,2,4,4] y)
            <{S}, int8[2,2,1,1] k = {{50,-20,30,40}}, int8 o = {{0}}>
            {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
               w = DequantizeLinear(k, t, o) y = Conv(d, w) }}""",
            "an output of the model",
        ),
        (
            f"""(float[1,2] x) => (float[1,2] y) <{S}, float[2] k = {{1.0, 2.0}}>
            {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Add(d, k)
               r = QuantizeLinear(a, t, z) y = DequantizeLinear(r, t, z) }}""",
            "constant in floating point",
        ),
    ],
)
def test_declines_to_place(check: Check, declined: Text, graph: str, reason: str) -> None:
    size = 4 if "4,4" in graph else 1
    data = [{"x": np.ones((1, 2, 4, 4) if size == 4 else (1, 2), np.float32)}]
    assert reason in declined(check(PlaceQdq(), graph, None, data=data))


def test_what_nobody_quantized_stays(check: Check) -> None:
    """A convolution with a floating-point weight, an addition of floating-point values."""
    graph = f"""(float[1,2,4,4] x) => (float[1,2,4,4] y)
    <{S}, float[2,2,1,1] k = {{1.0,2.0,3.0,4.0}}>
    {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv(d, k) y = Add(c, c) }}"""
    check(PlaceQdq(), graph, None, data=DATA)


def test_an_addition_in_floating_point_stays(check: Check) -> None:
    """As between the blocks of a transformer: its author did not quantize its result."""
    graph = f"""(float[1,8] x) => (float[1,8] y) <{S}>
    {{ e = Erf(x) q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Add(d, e)
       y = Erf(a) }}"""
    check(PlaceQdq(), graph, None, data=[{"x": np.ones((1, 8), np.float32)}])


# --- widen-qdq -----------------------------------------------------------------------------------


def test_zero_point_behind_relu(check: Check, constants: Constants) -> None:
    result = check(
        WidenQdq(),
        f"""(float[1,64] x) => (float[1,64] y) <{S}>
        {{ a = Relu(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }}""",
        """
        graph(%x: float[1,64]) {
          const %q.zero: int8[]
          const %s: float[]
          %a = Relu(%x)
          %q = QuantizeLinear(%a, %s, %q.zero)
          %y = DequantizeLinear(%q, %s, %q.zero)
          return %y
        }
        """,
    )
    assert constants(result)["q.zero"] == -128
    x = np.linspace(-3, 3, 64, dtype=np.float32)[None]
    got = output(result.model, x)
    inside = x <= 127 * 0.02
    before = np.clip(np.rint(x / np.float32(0.02)), 0, 127) * np.float32(0.02)
    assert np.array_equal(got[inside], before[inside])
    assert np.abs(got - np.maximum(x, 0)).max() <= 0.0101


def test_through_what_moves_elements(check: Check) -> None:
    got = PassManager(WidenQdq()).run(
        model_of(
            f"""(float[1,1,4,4] x) => (float[1,1,2,2] y) <{S}>
            {{
              a = Relu(x)
              p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
              q = QuantizeLinear(p, s, z)
              y = DequantizeLinear(q, s, z)
            }}"""
        )
    )
    assert got.report.passes[0].rewrites == {"lower-zero-point": 1}


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("a = Clip(x, low) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)", "negative"),
        (
            """a = Relu(x) q = QuantizeLinear(a, s, z) r = QuantizeLinear(x, s, z)
            c = Concat<axis=0>(q, r) d = DequantizeLinear(c, s, z) y = ReduceMax<keepdims=0>(d)""",
            "meet others",
        ),
        ("a = Relu(x) q = QuantizeLinear(a, s, z) b = Abs(q) y = DequantizeLinear(b, s, z)", "Abs"),
    ],
)
def test_declines_to_widen(check: Check, declined: Text, graph: str, reason: str) -> None:
    text = f"(float[1,4] x) => (float y) <{S}, float low = {{-1.0}}> {{ {graph} }}"
    if "ReduceMax" not in graph:
        text = text.replace("(float y)", "(float[1,4] y)")
    assert reason in declined(check(WidenQdq(), text, None))


def test_what_does_not_come_from_a_relu_stays(check: Check) -> None:
    check(
        WidenQdq(),
        f"""(float[1,4] x) => (float[1,4] y) <{S}>
        {{ a = Neg(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }}""",
        None,
    )


# --- drop-qdq ------------------------------------------------------------------------------------


def test_pair_between_floating_point_operators(check: Check) -> None:
    check(
        DropQdq(),
        f"""(float[1,4] x) => (float[1,4] y) <{S}>
        {{ a = Exp(x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Erf(d) }}""",
        """
        graph(%x: float[1,4]) {
          %a = Exp(%x)
          %y = Erf(%a)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, t, z) y = Erf(d)",
            "another scale than its quantizer",
        ),
        (
            "a = Add(x, x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Erf(d)",
            "an integer kernel computes",
        ),
    ],
)
def test_declines_to_drop(check: Check, declined: Text, graph: str, reason: str) -> None:
    text = f"(float[1,4] x) => (float[1,4] y) <{S}> {{ {graph} }}"
    assert reason in declined(check(DropQdq(), text, None))


@pytest.mark.parametrize(
    "graph",
    [
        "a = Exp(x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Add(d, d)",
        "a = Exp(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)",
    ],
)
def test_what_has_a_reader_on_integers_stays(check: Check, graph: str) -> None:
    check(DropQdq(), f"(float[1,4] x) => (float[1,4] y) <{S}> {{ {graph} }}", None)


# --- quantize-bias -------------------------------------------------------------------------------

BIASED = f"""(float[1,2,4,4] x) => (float[1,2,4,4] y)
<{S}, int8[2,2,1,1] k = {{50,-20,30,40}}, int8[2] o = {{0, 0}}, float[2] u = {{0.01, 0.03}},
 float[2] b = {{0.5, -0.3}}>
{{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear<axis=0>(k, u, o)
  y = Conv(d, w, b)
}}"""


def test_bias_per_channel(check: Check, constants: Constants) -> None:
    result = check(
        QuantizeBias(),
        BIASED,
        """
        graph(%x: float[1,2,4,4]) {
          const %b.int32: int32[2] = [2500, -500]
          const %b.int32.scale: float[2]
          const %b.int32.zero: int32[2] = [0, 0]
          const %k: int8[2,2,1,1]
          const %o: int8[2]
          const %s: float[]
          const %u: float[2]
          const %z: int8[]
          %q = QuantizeLinear(%x, %s, %z)
          %d = DequantizeLinear(%q, %s, %z)
          %w = DequantizeLinear(%k, %u, %o) {axis=0}
          %dequantizelinear = DequantizeLinear(%b.int32, %b.int32.scale, %b.int32.zero) {axis=0}
          %y = Conv(%d, %w, %dequantizelinear)
          return %y
        }
        """,
    )
    assert constants(result)["b.int32.scale"] == pytest.approx([0.0002, 0.0006])
    x = DATA[0]["x"]
    off = np.abs(output(result.model, x) - output(model_of(BIASED), x)).max()
    assert off <= 0.0003 * 1.01


def test_a_bias_of_8_bits_becomes_one_of_32(check: Check) -> None:
    graph = BIASED.replace(
        "float[2] b = {0.5, -0.3}", "int8[2] c = {50, -30}, float v = {0.01}"
    ).replace("y = Conv", "b = DequantizeLinear(c, v)\n  y = Conv")
    result = PassManager(QuantizeBias(), target="cpu-x64").run(model_of(graph))
    (bias,) = [
        v for v in result.model.graph.initializers.values() if (v.name or "").endswith("int32")
    ]
    assert np.ravel(ir.array(bias)).tolist() == [2500, -500]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("{0.5, -0.3}", "{5e6, -0.3}", "too large for int32"),
        ("float s = {0.02}", "float s = {1e-44}", "product of its scales is zero"),
    ],
)
def test_declines_to_quantize_a_bias(
    check: Check, declined: Text, old: str, new: str, reason: str
) -> None:
    assert reason in declined(check(QuantizeBias(), BIASED.replace(old, new), None))


def test_targets_that_want_floating_point_biases(check: Check) -> None:
    result = check(QuantizeBias(), BIASED, None, target="tensorrt")
    assert "does not want integer biases" in str(result.report.passes[0].reason)


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [PlaceQdq(), WidenQdq(), DropQdq(), QuantizeBias()])
def test_honest(each: Any) -> None:
    assert each.exactness is Exactness.LOSSY


@pytest.mark.parametrize("each", [PlaceQdq(), DropQdq(), QuantizeBias()])
def test_need_a_scheme(each: Any) -> None:
    target = dataclasses.replace(get("cpu"), name="floating", scheme=None)
    result = PassManager(each, target=target).run(model_of(RESIDUAL))
    assert not result.report.changed
    assert "floating" in str(result.report.passes[0].reason)

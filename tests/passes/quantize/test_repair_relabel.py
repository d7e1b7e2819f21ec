"""repair-qdq: integers of activations get the type of the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from graphopt import PassManager, ir
from graphopt.passes.quantize import RepairQdq
from graphopt.targets import get

Check = Callable[..., Any]
Text = Callable[[Any], str]
PAIR = """(float[1,4] x) => (float[1,4] y)
<float s = {0.01}, int8 z = {3}>
{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""


def test_signed_to_unsigned(check: Check, constants: Callable[[Any], Any]) -> None:
    result = check(
        RepairQdq(),
        PAIR,
        """
        graph(%x: float[1,4]) {
          const %q.zero: uint8[]
          const %s: float[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %y = DequantizeLinear(%q, %s, %q.zero)
          return %y
        }
        """,
    )
    assert constants(result)["q.zero"] == 131
    assert result.model.graph[0].outputs[0].dtype == ir.DataType.UINT8


def test_unsigned_to_signed(check: Check, constants: Callable[[Any], Any]) -> None:
    graph = PAIR.replace("int8 z = {3}", "uint8 z = {3}")
    result = check(
        RepairQdq(),
        graph,
        """
        graph(%x: float[1,4]) {
          const %q.zero: int8[]
          const %s: float[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %y = DequantizeLinear(%q, %s, %q.zero)
          return %y
        }
        """,
        target="cpu-arm64",
    )
    assert constants(result)["q.zero"] == -125


def test_there_and_back(check: Check, constants: Callable[[Any], Any]) -> None:
    there = PassManager(RepairQdq(), target="cpu-x64").run(
        ir.parse_text(f'<ir_version: 10, opset_import: ["": 17]>\ng {PAIR}')
    )
    back = PassManager(RepairQdq(), target="cpu-arm64").run(there.model)
    (zero,) = [v for k, v in constants(back).items() if "zero" in k]
    assert zero == 3


def test_absent_zero_point(check: Check, constants: Callable[[Any], Any]) -> None:
    result = check(
        RepairQdq(),
        """(float[1,4] x) => (float[1,4] y) <float s = {0.01}>
        { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }""",
        """
        graph(%x: float[1,4]) {
          const %q.zero: int8[]
          const %s: float[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %y = DequantizeLinear(%q, %s, %q.zero)
          return %y
        }
        """,
        target="cpu-arm64",
    )
    assert constants(result)["q.zero"] == -128


@pytest.mark.parametrize(
    ("shape", "node"),
    [
        ("1,2,2,2", "p = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(q)"),
        ("1,8", "p = Flatten(q)"),
        ("1,2,4", "p = Transpose<perm=[0,2,1]>(q)"),
        ("1,8", "p = Concat<axis=1>(q, r)"),
        ("1,8", "p = Concat<axis=1>(q, k)"),
        ("1,8", "p = Clip(q, k0)"),
        ("1,8", "p = Pad(q, pads)"),
        ("1,8", "p = Pad(q, pads, k0)"),
        ("1,8", 'p = Pad<mode="reflect">(q, pads)'),
        ("1,8", "p, p2 = Split<axis=1, num_outputs=2>(q)"),
    ],
)
def test_through_what_moves_integers(check: Check, shape: str, node: str) -> None:
    graph = f"""(float[{shape}] x) => (float[M,N] y)
    <float s = {{0.01}}, int8 z = {{3}}, int8[1,2] k = {{-128,127}}, int8 k0 = {{7}},
     int64[4] pads = {{0,1,0,2}}, int64[2] flat = {{1,-1}}>
    {{
      q = QuantizeLinear(x, s, z)
      r = QuantizeLinear(x, s, z)
      {node}
      d = DequantizeLinear(p, s, z)
      f = Reshape(d, flat)
      e = DequantizeLinear(q, s, z)
      g = Reshape(e, flat)
      y = Concat<axis=1>(f, g)
    }}"""
    head = '<ir_version: 10, opset_import: ["": 18]>\ng '
    result = PassManager(RepairQdq(), target="cpu-x64", on_mismatch="raise").run(
        ir.parse_text(head + graph)
    )
    assert result.report.passes[0].status == "ok"
    types = {
        v.dtype
        for n in result.model.graph
        for v in n.inputs[:1] + n.outputs[:1]
        if v is not None and v.dtype != ir.DataType.FLOAT
    }
    assert types == {ir.DataType.UINT8}


def test_a_constant_with_another_reader_stays(check: Check) -> None:
    """The zero point is what the Pad pads with, too, and a weight's."""
    check(
        RepairQdq(),
        """(float[1,4] x) => (float[1,7] y, float[2] w)
        <float s = {0.01}, int8 z = {3}, int8[2] k = {1,2}, int64[4] pads = {0,1,0,2}>
        {
          q = QuantizeLinear(x, s, z)
          p = Pad(q, pads, z)
          y = DequantizeLinear(p, s, z)
          w = DequantizeLinear(k, s, z)
        }""",
        """
        graph(%x: float[1,4]) {
          const %k: int8[2]
          const %pads: int64[4] = [0, 1, 0, 2]
          const %q.zero: uint8[]
          const %s: float[]
          const %z: int8[]
          const %z.1: uint8[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %p = Pad(%q, %pads, %z.1)
          %y = DequantizeLinear(%p, %s, %q.zero)
          %w = DequantizeLinear(%k, %s, %z)
          return %y, %w
        }
        """,
    )


def test_constant_operand(check: Check, constants: Callable[[Any], Any]) -> None:
    result = check(
        RepairQdq(),
        """(float[1,2] x) => (float[1,2] y)
        <float s = {0.01}, int8 z = {3}, int8[2] k = {-128,127}>
        {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          c = DequantizeLinear(k, s, z)
          y = Add(d, c)
        }""",
        """
        graph(%x: float[1,2]) {
          const %k.1: uint8[2]
          const %k.1.zero: uint8[]
          const %q.zero: uint8[]
          const %s: float[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %d = DequantizeLinear(%q, %s, %q.zero)
          %c = DequantizeLinear(%k.1, %s, %k.1.zero)
          %y = Add(%d, %c)
          return %y
        }
        """,
    )
    assert constants(result)["k.1"] == [0, 255]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (
            """(float[1,4] x) => (float[1,4] y, int8[1,4] q) <float s = {0.1}, int8 z = {3}>
            { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
            "input or output of the model",
        ),
        (
            """(float[1,4] x) => (int8[1,4] y) <float s = {0.1}, int8 z = {3}>
            { q = QuantizeLinear(x, s, z) y = Abs(q) }""",
            "used by Abs",
        ),
        (
            """(float[1,4] x, float s) => (float[1,4] y) <int8 z = {3}>
            { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
            "its scale is computed",
        ),
        (
            """(float[1,4] x, int8[1,4] k) => (float[1,8] y) <float s = {0.1}, int8 z = {3}>
            {
                q = QuantizeLinear(x, s, z)
                c = Concat<axis=1>(q, k)
                y = DequantizeLinear(c, s, z)
            }""",
            "input or output of the model",
        ),
        (
            """(float[1,4] x) => (float[1,4] y) <float s = {-0.1}, int8 z = {3}>
            { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
            "not a positive float32",
        ),
        (
            """(float[1,4] x, bool c) => (float[1,4] y) <float s = {0.1}, int8 z = {3}>
            {
              q = QuantizeLinear(x, s, z)
              y = If<then_branch = a () => (float[1,4] t) { t = DequantizeLinear(q, s, z) },
                     else_branch = b () => (float[1,4] e) { e = Neg(x) }>(c)
            }""",
            "used in a subgraph",
        ),
    ],
)
def test_declines(check: Check, declined: Text, graph: str, reason: str) -> None:
    assert reason in declined(check(RepairQdq(), graph, None))


def test_symmetric_target_takes_one_zero_point(check: Check, declined: Text) -> None:
    graph = PAIR.replace("int8 z = {3}", "uint8 z = {3}")
    assert "zero point 0 only" in declined(check(RepairQdq(), graph, None, target="tensorrt"))
    check(
        RepairQdq(),
        PAIR.replace("int8 z = {3}", "uint8 z = {128}"),
        """
        graph(%x: float[1,4]) {
          const %q.zero: int8[]
          const %s: float[]
          %q = QuantizeLinear(%x, %s, %q.zero)
          %y = DequantizeLinear(%q, %s, %q.zero)
          return %y
        }
        """,
        target="tensorrt",
    )


def test_other_types_stay(check: Check) -> None:
    """16 bits are left alone by a target of 8 bits."""
    check(RepairQdq(), PAIR.replace("int8 z", "int16 z"), None, opset=21)


def test_weight_only_targets_take_no_quantized_activations(check: Check) -> None:
    result = check(RepairQdq(), PAIR, None, target="cuda")
    assert "target cuda has no kernels" in str(result.report.passes[0].reason)


def test_needs_a_scheme() -> None:
    model = ir.parse_text(f'<ir_version: 10, opset_import: ["": 17]>\ng {PAIR}')
    target = dataclasses.replace(get("cpu"), name="floating", scheme=None)
    result = PassManager(RepairQdq(), target=target).run(model)
    assert not result.report.changed
    assert "target floating has no kernels" in str(result.report.passes[0].reason)

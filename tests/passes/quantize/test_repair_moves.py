"""repair-qdq: quantizers around what moves elements, clips or was quantized already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, ir
from graphopt.passes.quantize import RepairQdq
from graphopt.testing import assert_equivalent

Check = Callable[..., Any]
Text = Callable[[Any], str]
Constants = Callable[[Any], Any]
S = "float s = {0.02}, uint8 z = {100}, float t = {0.03}"


def run(graph: str, target: str = "cpu-x64", opset: int = 17) -> ir.Model:
    """Run the pass and check that outputs are the same bits; return the result."""
    model = ir.parse_text(f'<ir_version: 10, opset_import: ["": {opset}]>\ng {graph}')
    result = PassManager(RepairQdq(), target=target, on_mismatch="raise").run(model)
    assert_equivalent(model, result.model, RepairQdq.exactness, seeds=(0, 1, 2))
    assert not PassManager(RepairQdq(), target=target).run(result.model).report.changed
    return result.model


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_contrib_operators_become_standard(check: Check) -> None:
    check(
        RepairQdq(),
        f"""(float[1,4] x) => (float[1,4] y) <{S}>
        {{ q = com.microsoft.QuantizeLinear(x, s, z)
           y = com.microsoft.DequantizeLinear(q, s, z) }}""",
        """
        graph(%x: float[1,4]) {
          const %s: float[]
          const %z: uint8[]
          %quantizelinear = QuantizeLinear(%x, %s, %z)
          %y = DequantizeLinear(%quantizelinear, %s, %z)
          return %y
        }
        """,
    )


def test_contrib_operators_that_the_standard_lacks_stay(check: Check, declined: Text) -> None:
    """16 bits came with opset 21."""
    result = check(
        RepairQdq(),
        """(float[1,4] x) => (float[1,4] y) <float s = {0.02}, int16 z = {100}>
        { q = com.microsoft.QuantizeLinear(x, s, z)
          y = com.microsoft.DequantizeLinear(q, s, z) }""",
        None,
    )
    assert "from opset 21 on" in declined(result)


def test_scales_of_one_element_become_scalars(check: Check) -> None:
    check(
        RepairQdq(),
        """(float[1,4] x) => (float[1,4] y) <float[1] s = {0.02}, uint8[1] z = {100}>
        { q = QuantizeLinear<axis=0>(x, s, z) y = DequantizeLinear(q, s, z) }""",
        """
        graph(%x: float[1,4]) {
          const %s.1: float[]
          const %s.3: float[]
          const %z.2: uint8[]
          const %z.4: uint8[]
          %q = QuantizeLinear(%x, %s.1, %z.2)
          %y = DequantizeLinear(%q, %s.3, %z.4)
          return %y
        }
        """,
    )


def test_quantizing_twice(check: Check) -> None:
    check(
        RepairQdq(),
        f"""(float[1,4] x) => (float[1,4] y) <{S}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          r = QuantizeLinear(d, s, z)
          y = DequantizeLinear(r, s, z)
        }}""",
        """
        graph(%x: float[1,4]) {
          const %s: float[]
          const %z: uint8[]
          %q = QuantizeLinear(%x, %s, %z)
          %y = DequantizeLinear(%q, %s, %z)
          return %y
        }
        """,
    )


def test_quantizing_twice_across_types() -> None:
    """The second grid is the first one once both are unsigned."""
    got = run(
        """(float[1,4] x) => (float[1,4] y)
        <float s = {0.02}, uint8 z = {131}, int8 o = {3}>
        {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          r = QuantizeLinear(d, s, o)
          y = DequantizeLinear(r, s, o)
        }"""
    )
    assert ops(got) == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    "second", ["r = QuantizeLinear(d, t, z)", "r = QuantizeLinear(d, s, o)"], ids=["scale", "zero"]
)
def test_quantizing_to_another_grid_stays(check: Check, second: str) -> None:
    check(
        RepairQdq(),
        f"""(float[1,4] x) => (uint8[1,4] r) <{S}, uint8 o = {{99}}>
        {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {second} }}""",
        None,
    )


def test_tiny_scales_are_no_grid(check: Check, declined: Text) -> None:
    """Where products are subnormal, dividing does not give the integer back."""
    result = check(
        RepairQdq(),
        """(float[1,4] x) => (uint8[1,4] r) <float s = {1e-40}, uint8 z = {100}>
        {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          r = QuantizeLinear(d, s, z)
        }""",
        None,
    )
    assert "too small or too large" in declined(result)


MOVERS = [
    ("1,2,4,4", "MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>({})"),
    ("1,2,4,4", "Transpose<perm=[0,2,3,1]>({})"),
    ("1,2,4,4", "Slice({}, one, two, one)"),
    ("1,2,4,4", "DepthToSpace<blocksize=1>({})"),
    ("1,2,4,4", "Pad({}, pads)"),
    ("1,2,4,4", "Concat<axis=1>({}, {})"),
    ("1,2,4,4", "Gather<axis=1>({}, one)"),
    ("1,2,4,4", 'Resize<mode="nearest">({}, , scales)'),
]
EXTRA = """int64[1] one = {1}, int64[1] two = {2}, int64[8] pads = {0,0,1,0,0,0,0,2},
    float[4] scales = {1.0,1.0,2.0,2.0}"""


@pytest.mark.parametrize(("shape", "mover"), MOVERS)
def test_quantizer_moves_before(shape: str, mover: str) -> None:
    """The addition is followed by its quantizer, as integer kernels want it."""
    if mover.count("{}") == 2:
        mover, more = mover.format("a", "b"), "b = Mul(d, d)"
    else:
        mover, more = mover.format("a"), ""
    got = run(
        f"""(float[{shape}] x) => (float[A,B,C,D] y) <{S}, {EXTRA}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          a = Add(d, d)
          {more}
          m = {mover}
          r = QuantizeLinear(m, t, z)
          y = DequantizeLinear(r, t, z)
        }}"""
    )
    for node in got.graph:
        if node.op_type in ("Add", "Mul"):
            assert [use.node.op_type for use in node.outputs[0].uses()] == ["QuantizeLinear"]


@pytest.mark.parametrize(("shape", "mover"), MOVERS)
def test_quantizer_is_repeated_after(shape: str, mover: str) -> None:
    """The addition reads dequantized integers, as integer kernels want it."""
    got = run(
        f"""(float[{shape}] x) => (float[A,B,C,D] y) <{S}, {EXTRA}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          m = {mover.replace("{}", "d")}
          a = Add(m, m)
          r = QuantizeLinear(a, t, z)
          y = DequantizeLinear(r, t, z)
        }}"""
    )
    (add,) = [n for n in got.graph if n.op_type == "Add"]
    assert all(v.producer().op_type == "DequantizeLinear" for v in add.inputs)


def test_relu_and_max_pool() -> None:
    """As TensorRT's tools place them: behind the pool."""
    got = run(
        f"""(float[1,2,4,4] x) => (float[A,B,C,D] y) <{S}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          a = Add(d, d)
          b = Relu(a)
          m = MaxPool<kernel_shape=[2,2]>(b)
          r = QuantizeLinear(m, t)
          y = DequantizeLinear(r, t)
        }}"""
    )
    assert ops(got) == [
        "QuantizeLinear", "DequantizeLinear", "Add", "QuantizeLinear", "DequantizeLinear",
        "MaxPool", "QuantizeLinear", "DequantizeLinear",
    ]  # fmt: skip


def test_padding_between_two_grids() -> None:
    """What is padded is rounded first, and integers are padded."""
    got = run(
        f"""(float[1,2,4,4] x) => (float[A,B,C,D] y) <{S}, {EXTRA}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          m = Pad(d, pads)
          r = QuantizeLinear(m, t, z)
          y = DequantizeLinear(r, t, z)
        }}"""
    )
    (pad,) = [n for n in got.graph if n.op_type == "Pad"]
    assert pad.inputs[0].producer().op_type == "QuantizeLinear"
    assert ir.array(pad.inputs[2]) == 100


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (
            """a = Add(d, d) m = Transpose(a) r = QuantizeLinear(m, t, z)
            y = DequantizeLinear(r, t, z) w = Neg(a)""",
            "used unquantized, too",
        ),
        (
            """m = Pad(d, pads, odd) a = Add(m, m) r = QuantizeLinear(a, t, z)
            y = DequantizeLinear(r, t, z) w = Neg(d)""",
            "not on the grid",
        ),
    ],
)
def test_declines_to_move(check: Check, declined: Text, graph: str, reason: str) -> None:
    text = f"""(float[1,2,4,4] x) => (float[A,B,C,D] y, float[E,F,G,H] w)
        <{S}, {EXTRA}, float odd = {{0.013}}>
        {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {graph} }}"""
    assert reason in declined(check(RepairQdq(), text, None))


def test_indices_of_a_pool_stay(check: Check) -> None:
    """Rounding before would change which of almost equal elements is taken."""
    check(
        RepairQdq(),
        f"""(float[1,2,4,4] x) => (float[A,B,C,D] y, int64[A,B,C,D] i) <{S}>
        {{
          a = Add(x, x)
          m, i = MaxPool<kernel_shape=[2,2]>(a)
          r = QuantizeLinear(m, t, z)
          y = DequantizeLinear(r, t, z)
        }}""",
        None,
    )


def test_what_is_not_computed_on_integers_gets_no_quantizer(check: Check) -> None:
    check(
        RepairQdq(),
        f"""(float[1,2,4,4] x) => (float[A,B,C,D] y) <{S}>
        {{ e = Erf(x) m = Transpose(e) q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z)
           n = Transpose(d) y = Erf(n) }}""",
        None,
    )


CLIPPED = """(float[1,16] x) => (float[1,16] y)
    <float s = {{{s}}}, uint8 z = {{{z}}}, float low = {{{low}}}, float high = {{{high}}}>
    {{ a = {clip} q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }}"""


@pytest.mark.parametrize(
    ("clip", "s", "z", "low", "high", "left"),
    [
        ("Relu(x)", 0.01, 0, 0, 0, None),
        ("Relu(x)", 0.01, 128, 0, 0, (128, None)),
        ("Relu(x)", 0.01, 7, 0, 0, (7, None)),
        ("Clip(x, low, high)", 6 / 255, 0, 0, 6, None),
        ("Clip(x, low, high)", 0.02, 0, 0, 6, None),
        ("Clip(x, low, high)", 0.1, 0, 0, 6, (None, 60)),
        ("Clip(x, low, high)", 0.1, 128, -1, 1, (118, 138)),
        ("Clip(x, low, high)", 0.1, 128, 1, -1, (118, 118)),
        ("Clip(x, low)", 0.1, 128, -0.55, 0, (122, None)),
        ("Clip(x, , high)", 0.1, 128, 0, 0.55, (None, 134)),
    ],
)
def test_clips(
    clip: str, s: float, z: int, low: float, high: float, left: tuple[int, int] | None
) -> None:
    """A clip that the quantizer saturates at goes; others clip integers."""
    got = run(CLIPPED.format(clip=clip, s=np.float32(s), z=z, low=low, high=high))
    if left is None:
        assert ops(got) == ["QuantizeLinear", "DequantizeLinear"]
    else:
        assert ops(got) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
        bounds = [ir.array(v) for v in (*got.graph[1].inputs, None)[1:3]]
        assert tuple(None if b is None else int(b) for b in bounds) == left


def test_clips_of_integers_change_type() -> None:
    """What was repaired for one target can be repaired for another."""
    there = run(CLIPPED.format(clip="Relu(x)", s=0.01, z=128, low=0, high=0))
    back = PassManager(RepairQdq(), target="cpu-arm64", on_mismatch="raise").run(there).model
    assert_equivalent(there, back, RepairQdq.exactness)
    assert ops(back) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert back.graph[1].outputs[0].dtype == ir.DataType.INT8


def test_a_clip_with_other_users_stays(check: Check) -> None:
    check(
        RepairQdq(),
        f"""(float[1,16] x) => (float[1,16] y, float[1,16] a) <{S}>
        {{ a = Relu(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }}""",
        None,
    )


def test_declines_to_clip(check: Check, declined: Text) -> None:
    text = """(float[1,16] x, float low) => (float[1,16] y) <float s = {0.1}, uint8 z = {128}>
        { a = Clip(x, low) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }"""
    assert "not constant numbers" in declined(check(RepairQdq(), text, None))
    text = CLIPPED.format(clip="Relu(x)", s=0.01, z=128, low=0, high=0)
    found = declined(check(RepairQdq(), text, None, target="nnapi"))
    assert "range is wider than the clip" in found


def test_a_pad_of_integers_gets_no_float_that_it_does_not_use() -> None:
    got = run(
        f"""(float[1,2,4,4] x) => (float[A,B,C,D] y) <{S}, {EXTRA}, float odd = {{0.013}}>
        {{
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          m = Pad<mode="edge">(d, pads, odd)
          r = QuantizeLinear(m, s, z)
          y = DequantizeLinear(r, s, z)
        }}"""
    )
    (pad,) = [n for n in got.graph if n.op_type == "Pad"]
    assert pad.inputs[0].producer().op_type == "QuantizeLinear"

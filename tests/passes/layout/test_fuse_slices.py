from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

from graphopt import PassManager, ir
from graphopt.passes.layout import FuseSlices
from graphopt.testing import assert_equivalent, check_pass

Rewrite = Callable[..., ir.Model]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_different_axes() -> None:
    check_pass(
        FuseSlices(),
        f"""
        {HEAD}
        g (float[N,8,9] x) => (float[A,B,C] y)
        <int64[1] one = {{1}}, int64[1] far = {{-2}}, int64[1] last = {{-1}}, int64[1] two = {{2}}>
        {{ a = Slice(x, one, far, last, two) y = Slice(a, far, last, one) }}
        """,
        """
        graph(%x: float[N,8,9]) {
          const %axes: int64[2] = [1, 2]
          const %ends: int64[2] = [-1, -2]
          const %starts: int64[2] = [-2, 1]
          const %steps: int64[2] = [1, 2]
          %y = Slice(%x, %starts, %ends, %axes, %steps)
          return %y
        }
        """,
    )


def test_the_same_axis_of_unknown_size() -> None:
    check_pass(
        FuseSlices(),
        f"""
        {HEAD}
        g (float[N] x) => (float[A] y)
        <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] nine = {{9}}, int64[1] four = {{4}}>
        {{ a = Slice(x, one, nine) y = Slice(a, two, four) }}
        """,
        """
        graph(%x: float[N]) {
          const %axes: int64[1] = [0]
          const %ends: int64[1] = [5]
          const %starts: int64[1] = [3]
          %y = Slice(%x, %starts, %ends, %axes)
          return %y
        }
        """,
    )


def test_bounds_as_attributes() -> None:
    check_pass(
        FuseSlices(),
        """
        <ir_version: 4, opset_import: ["": 9]>
        g (float[4,5] x) => (float[A,B] y)
        {
          a = Slice<starts=[1,1], ends=[4,9223372036854775807]>(x)
          y = Slice<axes=[-1], starts=[1], ends=[-1]>(a)
        }
        """,
        """
        graph(%x: float[4,5]) {
          %y = Slice(%x) {axes=[0, 1], ends=[4, 4], starts=[1, 2]}
          return %y
        }
        """,
    )


def test_indices_of_32_bits(rewrite: Rewrite) -> None:
    model = rewrite(
        FuseSlices(),
        """
        g (float[9] x) => (float[A] y)
        <int32[1] one = {1}, int32[1] most = {2147483647}>
        { a = Slice(x, one, most) y = Slice(a, one, most) }
        """,
    )
    assert len(model.graph) == 1


@pytest.mark.parametrize(
    ("kind", "nodes", "reason"),
    [
        ("float[N]", "a = Slice(x, given, nine) y = Slice(a, one, nine)", "not constant"),
        ("float[N]", "a = Slice(x, one, nine) y = Slice(a, one, given)", "not constant"),
        ("float[N]", "a = Slice(x, last, nine) y = Slice(a, one, nine)", "same axis"),
        ("float[N]", "a = Slice(x, one, last) y = Slice(a, one, nine)", "same axis"),
        ("float[N]", "a = Slice(x, one, nine, zero, two) y = Slice(a, one, nine)", "same axis"),
        ("float[N]", "a = Slice(x, one, nine) y = Slice(a, one, nine, zero, two)", "same axis"),
        ("float[N]", "a = Slice(x, one, nine) y = Slice(a, one, nine) z = Relu(a)", ""),
        ("float[]", "a = Slice(x, one, nine) y = Slice(a, one, nine, last)", "rank"),
    ],
)
def test_declines(declined: Callable[[Any], str], kind: str, nodes: str, reason: str) -> None:
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    text = f"""
        {HEAD}
        g ({kind} x, int64[1] given) => ({outputs})
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] nine = {{9}},
         int64[1] last = {{-1}}>
        {{ {nodes} }}
        """
    assert reason in declined(check_pass(FuseSlices(), text, None))


@st.composite
def cuts(draw: st.DrawFn) -> list[list[int]]:
    axes = draw(
        st.lists(st.sampled_from([0, 1, -1]), min_size=1, max_size=2, unique_by=lambda a: a % 2)
    )
    number = st.integers(-8, 8)
    ends = [draw(number | st.sampled_from([2**63 - 1, -(2**63)])) for _ in axes]
    steps = [draw(st.sampled_from([1, 1, 2, -1])) for _ in axes]
    return [[draw(number) for _ in axes], ends, axes, steps]


@hypothesis.given(first=cuts(), second=cuts())
@hypothesis.settings(max_examples=150)
def test_any_two(first: list[list[int]], second: list[list[int]]) -> None:
    proto = onnx.parser.parse_model(
        f"""
        {HEAD}
        g (float[5,6] x) => (float[A,B] y)
        {{ a = Slice(x, s0, e0, a0, t0) b = Relu(a) c = Slice(b, s1, e1, a1, t1)
           d = Slice(c, s0, e0, a0, t0) y = Slice(d, s1, e1, a1, t1) }}
        """
    )
    for i, given in enumerate((first, second)):
        for name, numbers in zip("seat", given, strict=True):
            array = np.array(numbers, np.int64)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}{i}"))
    model = ir.load(proto)
    result = PassManager(FuseSlices(), on_mismatch="raise", objective=None).run(model)
    assert_equivalent(model, result.model, FuseSlices.exactness, seeds=(0,))

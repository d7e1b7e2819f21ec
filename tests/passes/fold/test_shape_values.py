"""The operators on sizes against ONNX Runtime, on constants, where every element is a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fold import _shape_ops
from graphopt.passes.fold._dims import Dim
from graphopt.passes.fold._shape_values import ShapeValues
from graphopt.runtime.session import open_session

A = "int64[4] a = {6, -7, 0, 5}"
B = "int64[4] b = {4, 3, 2, -5}"
M = "int64[2,3] m = {1, 2, 3, 4, 5, 6}"

CASES = {
    "Abs": (A, "y = Abs(a)"),
    "Add": (f"{A}, {B}", "y = Add(a, b)"),
    "And": (f"{A}, {B}", "c = Less(a, b) d = Equal(a, a) y = And(c, d)"),
    "Cast": (A, "c = Cast<to = 9>(a) d = Cast<to = 6>(c) y = Cast<to = 7>(d)"),
    "CastLike": (f"{A}, int32 i = {{1}}", "c = CastLike(a, i) y = Cast<to = 7>(c)"),
    "Concat": (f"{A}, {B}", "y = Concat<axis = -1>(a, b)"),
    "Concat of matrices": (M, "y = Concat<axis = 1>(m, m)"),
    "ConstantOfShape": ("int64[2] s = {2, 3}", "y = ConstantOfShape<value = int64[1] {7}>(s)"),
    "Div": (f"{A}, {B}", "y = Div(a, b)"),
    "Equal": (f"{A}, {B}", "y = Equal(a, b)"),
    "Expand": ("int64[2,1] c = {1, 2}, int64[3] s = {4, 1, 3}", "y = Expand(c, s)"),
    "Gather": (f"{M}, int64[2] i = {{-1, 0}}", "y = Gather<axis = 1>(m, i)"),
    "Gather a scalar": (f"{A}, int64 i = {{-1}}", "y = Gather(a, i)"),
    "Greater": (f"{A}, {B}", "y = Greater(a, b)"),
    "GreaterOrEqual": (f"{A}, {B}", "y = GreaterOrEqual(a, b)"),
    "Identity": (A, "y = Identity(a)"),
    "Less": (f"{A}, {B}", "y = Less(a, b)"),
    "LessOrEqual": (f"{A}, {B}", "y = LessOrEqual(a, b)"),
    "Max": (f"{A}, {B}, int64 c = {{1}}", "y = Max(a, b, c)"),
    "Min": (f"{A}, {B}, int64 c = {{1}}", "y = Min(a, b, c)"),
    "Mod": (f"{A}, {B}", "y = Mod(a, b)"),
    "Mod like C": (f"{A}, {B}", "y = Mod<fmod = 1>(a, b)"),
    "Mul": (f"{M}, int64 c = {{3}}", "y = Mul(m, c)"),
    "Neg": (A, "y = Neg(a)"),
    "Not": (A, "c = Cast<to = 9>(a) y = Not(c)"),
    "Or": (f"{A}, {B}", "c = Less(a, b) d = Equal(a, a) y = Or(c, d)"),
    "Range": ("int64 a = {9}, int64 b = {-2}, int64 c = {-4}", "y = Range(a, b, c)"),
    "ReduceMax": (f"{A}, int64[1] x = {{-1}}", "y = ReduceMax<keepdims = 0>(a, x)"),
    "ReduceMin": (M, "y = ReduceMin(m)"),
    "ReduceProd": (f"{M}, int64[2] x = {{1, 0}}", "y = ReduceProd(m, x)"),
    "ReduceProd of nothing": (A, "y = ReduceProd<noop_with_empty_axes = 1>(a)"),
    "ReduceSum": (A, "y = ReduceSum<keepdims = 0>(a)"),
    "Reshape": (f"{M}, int64[3] s = {{0, -1, 1}}", "y = Reshape(m, s)"),
    "Shape": (M, "y = Shape(m)"),
    "Shape, in part": (M, "y = Shape<start = -1>(m)"),
    "Shape, empty": (M, "y = Shape<start = 1, end = 0>(m)"),
    "Size": (M, "y = Size(m)"),
    "Slice": (
        f"{A}, int64[1] s = {{-1}}, int64[1] e = {{-9223372036854775807}}, int64[1] x = {{0}},"
        "int64[1] p = {-2}",
        "y = Slice(a, s, e, x, p)",
    ),
    "Slice of a matrix": (
        f"{M}, int64[2] s = {{1, 0}}, int64[2] e = {{9223372036854775807, -1}}",
        "y = Slice(m, s, e)",
    ),
    "Split": (f"{A}, int64[2] s = {{1, 3}}", "z, y = Split(a, s)"),
    "Split evenly": (f"{A}", "z, y = Split<num_outputs = 2>(a)"),
    "Squeeze": ("int64[1,4] c = {1,2,3,4}", "y = Squeeze(c)"),
    "Squeeze an axis": ("int64[1,1] c = {1}, int64[1] x = {-1}", "y = Squeeze(c, x)"),
    "Sub": (f"{A}, {B}", "y = Sub(a, b)"),
    "Transpose": (M, "y = Transpose(m)"),
    "Transpose by perm": (M, "y = Transpose<perm = [1, 0]>(m)"),
    "Unsqueeze": (f"{M}, int64[2] x = {{0, -1}}", "y = Unsqueeze(m, x)"),
    "Where": (f"{A}, {B}", "c = Less(a, b) y = Where(c, a, b)"),
    "Xor": (f"{A}, {B}", "c = Less(a, b) d = Equal(a, a) y = Xor(c, d)"),
}


def parse(constants: str, body: str, out: str = "y") -> ir.Model:
    # The type of the result does not matter: a Cast makes it int64.
    text = (
        f'<ir_version: 9, opset_import: ["": 19]> g (float[N] unused) => (int64[R] out)'
        f"<{constants}> {{ {body} out = Cast<to = 7>({out}) }}"
    )
    proto = ir.to_proto(ir.parse_text(text))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.load(proto)


@pytest.mark.parametrize("name", CASES)
def test_numbers(name: str) -> None:
    model = parse(*CASES[name])
    value = next(v for node in model.graph for v in node.outputs if v.name == "y")
    known = ShapeValues(model).known[value]
    with open_session(model) as session:
        wanted: Any = session.run({"unused": np.zeros(2, np.float32)})["out"]
    assert known.shape == wanted.shape
    assert np.array_equal(known.astype(np.int64), wanted)


def test_every_operator_has_a_case() -> None:
    assert {name.split(" ")[0].split(",")[0] for name in CASES} == set(_shape_ops.TABLE)


UNKNOWN = {
    "index outside": (f"{A}, int64 i = {{4}}", "y = Gather(a, i)"),
    "division by zero": (f"{A}, int64[4] z = {{0, 0, 0, 0}}", "y = Div(a, z)"),
    "overflow": ("int64[1] c = {9223372036854775807}", "y = Add(c, c)"),
    "narrow overflow": ("int32[1] c = {2147483647}", "y = Add(c, c)"),
    "target that does not fit": (f"{M}, int64[1] s = {{7}}", "y = Reshape(m, s)"),
    "too long": ("int64[1] c = {1}, int64[1] s = {65}", "y = Expand(c, s)"),
    "range without end": ("int64 a = {0}, int64 c = {0}", "y = Range(a, a, c)"),
    "sum along an axis": (f"{M}, int64[1] x = {{0}}", "y = ReduceSum(m, x)"),
    "floats": ("int64[1] c = {1}", "d = Cast<to = 1>(c) e = Sqrt(d) y = Cast<to = 7>(e)"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(name: str) -> None:
    model = parse(*UNKNOWN[name])
    value = next(v for node in model.graph for v in node.outputs if v.name == "y")
    assert value not in ShapeValues(model).known


def dims(text: str, name: str) -> tuple[int | Dim, ...] | None:
    model = ir.parse_text('<ir_version: 9, opset_import: ["": 19]> ' + text)
    values = ShapeValues(model)
    return values.dims(next(v for n in model.graph for v in n.outputs if v.name == name))


def test_length_of_a_range_and_what_is_broadcast_with_it() -> None:
    found = dims(
        """
        g (float[N,L] x) => (float[N,L] y) <int64 zero = {0}, int64 one = {1}> {
          s = Shape(x) l = Gather(s, one) r = Range(zero, l, one) f = Cast<to = 1>(r)
          a = Add(x, f) b = Exp(a) w = Transpose(b) y = MatMul(b, w)
        }""",
        "b",
    )
    assert found == (Dim(1, ("N",)), Dim(1, ("L",)))


def test_size_left_over_by_a_reshape() -> None:
    text = """
        g (float[N,L,12] x) => (float[A,B] y) <int64[1] rest = {-1}, int64[1] four = {4}> {
          n = Shape<end = 1>(x) t = Concat<axis = 0>(n, rest, four) r = Reshape(x, t)
          y = Exp(r)
        }"""
    assert dims(text, "r") == (Dim(1, ("N",)), Dim(3, ("L",)), 4)


def test_a_size_beside_a_possible_zero_is_not_what_is_left_over() -> None:
    # At N = 0 any n is right.
    text = """
        g (float[N,12] x, int64[1] n) => (float[A,B] y) {
          a = Shape<end = 1>(x) t = Concat<axis = 0>(a, n) r = Reshape(x, t) y = Exp(r)
        }"""
    found = dims(text, "r")
    assert found is not None
    assert found[1] != 12


def test_negative_ends_and_limits_are_no_sizes() -> None:
    # x[:-N] + x is fine for any N: what is left of x may be 1 long.
    text = """
        g (float[N] x, float[1,8] z) => (float[A,B] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}, int64[1] start = {0}> {
          n = Shape(x) m = Neg(n) s = Slice(z, start, m, axis) k = Reshape(m, start)
          a = Add(x, s) r = Squeeze(m) q = Range(zero, r, one) f = Cast<to = 1>(q) y = Add(x, f)
        }"""
    n = Dim(1, ("N",))
    found = dims(text, "a")
    assert found is not None
    assert n not in found
    found = dims(text, "q")
    assert found is not None
    assert found[0] not in (n, Dim(-1, ("N",)))

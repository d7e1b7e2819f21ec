from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseClips
from graphopt.testing import assert_equivalent, check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]
BOUNDS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "six": np.float32(6),
    "minus": np.float32(-1),
    "least": np.float32(-np.inf),
}
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1, 3, 6, 7, -1, -2, 3e38], np.float32)


def chain(build: Build, *nodes: str, opset: int = 17) -> ir.Model:
    text = " ".join(nodes)
    return build(
        f"g (float[N] x) => (float[N] y) {{ {text} }}",
        opset=opset,
        **{k: v for k, v in BOUNDS.items() if re.search(rf"\b{k}\b", text)},
    )


def test_relu6(build: Build) -> None:
    check_pass(
        FuseClips(),
        chain(build, "a = Relu(x)", "y = Clip(a, zero, six)"),
        """
        graph(%x: float[N]) {
          const %six: float[]
          const %zero: float[]
          %y = Clip(%x, %zero, %six)
          return %y
        }
        """,
        data=[{"x": ODD}],
    )


def test_relu6_of_min_and_max(build: Build) -> None:
    check_pass(
        FuseClips(),
        chain(build, "a = Max(x, zero)", "y = Min(six, a)"),
        """
        graph(%x: float[N]) {
          const %six: float[]
          const %zero: float[]
          %y = Clip(%x, %zero, %six)
          return %y
        }
        """,
        data=[{"x": ODD}],
    )


def test_relu6_before_bounds_were_inputs(build: Build) -> None:
    check_pass(
        FuseClips(),
        chain(build, "a = Relu(x)", "y = Clip<max=6.0>(a)", opset=10),
        """
        graph(%x: float[N]) {
          %y = Clip(%x) {max=6, min=0}
          return %y
        }
        """,
        data=[{"x": ODD}],
    )


STEPS = [
    "Relu({})",
    "Clip({}, zero, six)",
    "Clip({}, minus, one)",
    "Clip({}, one)",
    "Clip({}, , zero)",
    "Clip({})",
    "Clip({}, six, minus)",
    "Clip({}, least, six)",
    "Min({}, one)",
    "Min(minus, {})",
    "Max({}, one)",
    "Max(minus, {})",
]


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", STEPS)
def test_every_pair(build: Build, rewrite: Rewrite, first: str, second: str) -> None:
    model = chain(build, "a = " + first.format("x"), "y = " + second.format("a"))
    result = rewrite(FuseClips(), model)
    assert len(result.graph) == 1
    # ONNX leaves min > max open before opset 13; infinities and zeros of either sign count.
    assert_equivalent(model, result, FuseClips.exactness, data=[{"x": ODD}])


def test_a_chain_of_many(build: Build, rewrite: Rewrite) -> None:
    model = chain(
        build,
        "a = Relu(x)",
        "b = Relu(a)",
        "c = Max(b, minus)",
        "d = Clip(c, zero, six)",
        "y = Relu(d)",
    )
    assert [n.op_type for n in rewrite(FuseClips(), model).graph] == ["Clip"]


@pytest.mark.parametrize(
    ("opset", "name", "dtype"),
    [
        (17, "double", np.float64),
        (17, "float16", np.float16),
        (12, "int64", np.int64),
        (17, "int32", np.int32),
        (17, "uint8", np.uint8),
    ],
)
def test_element_types(build: Build, rewrite: Rewrite, opset: int, name: str, dtype: Any) -> None:
    model = build(
        f"g ({name}[N] x) => ({name}[N] y) {{ a = Clip(x, low) y = Clip(a, , high) }}",
        opset=opset,
        low=np.array(2, dtype),
        high=np.array(5, dtype),
    )
    assert len(rewrite(FuseClips(), model).graph) == 1


def test_integers_of_64_bits_are_exact(build: Build) -> None:
    low = 2**60 + 1
    model = build(
        "g (int64[N] x) => (int64[N] y) { a = Max(x, low) y = Min(a, high) }",
        low=np.int64(low),
        high=np.int64(2**62 + 3),
    )
    check_pass(
        FuseClips(),
        model,
        """
        graph(%x: int64[N]) {
          const %high: int64[] = 4611686018427387907
          const %low: int64[] = 1152921504606846977
          %y = Clip(%x, %low, %high)
          return %y
        }
        """,
        data=[{"x": np.array([0, low, low + 1, 2**62 + 4])}],
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = Relu(x) y = Clip(a, given)", "not a constant number"),
        ("a = Relu(x) y = Max(a, given)", ""),
        ("a = Relu(x) y = Max(a, vector)", "not with a constant number"),
        ("a = Max(x, zero, one) y = Relu(a)", "more or fewer"),
        ("a = Max(x, given) y = Relu(a)", "not with a constant number"),
        ("a = Relu(x) y = Min(a, nan)", "not with a constant number"),
        ("a = Relu(x) y = Clip(a, zero, six) z = Neg(a)", ""),
        ("a = Max(x, matrix) y = Relu(a)", "raise the rank"),
    ],
)
def test_declines(build: Build, declined: Callable[[Any], str], nodes: str, reason: str) -> None:
    constants = BOUNDS | {
        "vector": np.array([1, 2], np.float32),
        "matrix": np.ones((1, 1), np.float32),
        "nan": np.float32(np.nan),
    }
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    model = build(
        f"g (float[2] x, float given) => ({outputs}) {{ {nodes} }}",
        **{k: v for k, v in constants.items() if re.search(rf"\b{k}\b", nodes)},
    )
    assert reason in declined(check_pass(FuseClips(), model, None))


@pytest.mark.parametrize(
    ("opset", "name", "dtype"), [(11, "double", np.float64), (17, "int16", np.int16)]
)
def test_types_without_a_clip(
    build: Build, declined: Callable[[Any], str], opset: int, name: str, dtype: Any
) -> None:
    model = build(
        f"g ({name}[N] x) => ({name}[N] y) {{ a = Max(x, low) y = Min(a, high) }}",
        opset=opset,
        low=np.array(0, dtype),
        high=np.array(5, dtype),
    )
    assert "no Clip" in declined(check_pass(FuseClips(), model, None))

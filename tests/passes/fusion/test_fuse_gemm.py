from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseGemm
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]


@pytest.mark.parametrize("add", ["Add(t, b)", "Add(b, t)"])
def test_matmul_and_add(build: Build, add: str) -> None:
    check_pass(
        FuseGemm(),
        build(
            f"g (float[N,3] x) => (float[N,4] y) {{ t = MatMul(x, w) y = {add} }}",
            w=(3, 4),
            b=(4,),
        ),
        """
        graph(%x: float[N,3]) {
          const %b: float[4]
          const %w: float[3,4]
          %y = Gemm(%x, %w, %b)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
@pytest.mark.parametrize("c", ["4", "1", "", "1,4", "2,1", "1,1"])
def test_every_bias(build: Build, rewrite: Rewrite, opset: int, c: str) -> None:
    shape = f"[{c}]" if c else ""
    model = build(
        f"""
        g (float[2,3] x, float[3,4] w, float{shape} c) => (float[2,4] y)
        {{ t = MatMul(x, w) y = Add(t, c) }}
        """,
        opset=opset,
    )
    assert [n.op_type for n in rewrite(FuseGemm(), model).graph] == ["Gemm"]


@pytest.mark.parametrize("dtype", ["double", "float16"])
def test_element_types(build: Build, rewrite: Rewrite, dtype: str) -> None:
    model = build(
        f"""
        g ({dtype}[2,3] x, {dtype}[3,4] w, {dtype}[4] c) => ({dtype}[2,4] y)
        {{ t = MatMul(x, w) y = Add(t, c) }}
        """
    )
    assert [n.op_type for n in rewrite(FuseGemm(), model).graph] == ["Gemm"]


def test_a_constant_matrix(build: Build) -> None:
    check_pass(
        FuseGemm(),
        build(
            "g (float[2,4] x) => (float[2,4] y) { t = MatMul(x, w) y = Add(t, r) }",
            w=(4, 4),
            r=(2, 4),
        ),
        """
        graph(%x: float[2,4]) {
          const %r: float[2,4]
          const %w: float[4,4]
          %y = Gemm(%x, %w, %r)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("rows", ["N", "2"])
def test_branches_stay_apart(build: Build, declined: Callable[[Any], str], rows: str) -> None:
    model = build(
        f"g (float[{rows},4] x, float[{rows},4] r) => (float[{rows},4] y)"
        " { t = MatMul(x, w) y = Add(t, r) }",
        w=(4, 4),
    )
    assert "another branch" in declined(check_pass(FuseGemm(), model, None))


def test_gemm_without_bias_and_add(build: Build) -> None:
    check_pass(
        FuseGemm(),
        build(
            """
            g (float[N,3] x, float[4] b) => (float[N,4] y)
            { t = Gemm<alpha=0.5, beta=3.0, transB=1>(x, w) y = Add(t, b) }
            """,
            w=(4, 3),
        ),
        """
        graph(%x: float[N,3], %b: float[4]) {
          const %w: float[4,3]
          %y = Gemm(%x, %w, %b) {alpha=0.5, transB=1}
          return %y
        }
        """,
    )


def test_transposed_factors(build: Build) -> None:
    check_pass(
        FuseGemm(),
        build(
            """
            g (float[3,N] x, float[4,3] w, float[4] b) => (float[N,4] y)
            {
              a = Transpose(x)
              t = Transpose<perm=[1,0]>(w)
              y = Gemm(a, t, b)
            }
            """
        ),
        """
        graph(%x: float[3,N], %w: float[4,3], %b: float[4]) {
          %y = Gemm(%x, %w, %b) {transA=1, transB=1}
          return %y
        }
        """,
    )


def test_transposed_back(build: Build) -> None:
    check_pass(
        FuseGemm(),
        build(
            """
            g (float[N,3] x, float[3,4] w) => (float[N,4] y)
            { t = Transpose(w) y = Gemm<transB=1>(x, t) }
            """
        ),
        """
        graph(%x: float[N,3], %w: float[3,4]) {
          %y = Gemm(%x, %w)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("graph", "flags"),
    [
        (
            "g (float[3,N] x, float[3,4] w) => (float[N,4] y) {t = Transpose(x) y = MatMul(t, w)}",
            "A",
        ),
        (
            "g (float[N,3] x, float[4,3] w) => (float[N,4] y) {t = Transpose(w) y = MatMul(x, t)}",
            "B",
        ),
    ],
)
def test_matmul_of_transposed(build: Build, rewrite: Rewrite, graph: str, flags: str) -> None:
    (gemm,) = rewrite(FuseGemm(), build(graph)).graph
    assert gemm.op_type == "Gemm"
    assert ir.attr(gemm, f"trans{flags}") == 1


def test_the_square_of_a_transposed_matrix(build: Build, rewrite: Rewrite) -> None:
    model = build(
        "g (float[3,3] x, float[3] b) => (float[3,3] y) { t = Transpose(x) y = Gemm(t, t, b) }"
    )
    (gemm,) = rewrite(FuseGemm(), model).graph
    assert (ir.attr(gemm, "transA"), ir.attr(gemm, "transB")) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "nodes", "reason"),
    [
        ("float[2,5,3] x, float[3,4] w, float[4] c", "t = MatMul(x, w) y = Add(t, c)", "matrices"),
        ("float[3] x, float[3,4] w, float[4] c", "t = MatMul(x, w) y = Add(t, c)", "matrices"),
        ("float[] x, float[3,4] w, float[4] c", "t = MatMul(x, w) y = Add(t, c)", "matrices"),
        ("int32[2,3] x, int32[3,4] w, int32[4] c", "t = MatMul(x, w) y = Add(t, c)", "floating"),
        ("float[1,3] x, float[3,4] w, float[2,4] c", "t = MatMul(x, w) y = Add(t, c)", "broadcast"),
        ("float[2,3] x, float[3,1] w, float[4] c", "t = MatMul(x, w) y = Add(t, c)", "broadcast"),
        ("float[N,3] x, float[3,4] w, float[M,4] c", "t = MatMul(x, w) y = Add(t, c)", "broadcast"),
        ("float[2,3] x, float[3,4] w, float[1,1,4] c", "t = MatMul(x, w) y = Add(t, c)", "rank"),
        ("float[2,3] x, float[3,4] w, float[] c", "t = MatMul(x, w) y = Add(t, c)", "shape"),
        ("float[2,3] x, float[3,4] w", "t = MatMul(x, w) y = Add(t, t)", "itself"),
        (
            "float[2,3] x, float[3,4] w, float[4] c",
            "t = MatMul(x, w) y = Add(t, c) z = Relu(t)",
            "",
        ),
        ("float[2,3] x, float[3,4] w", "t = Transpose<perm=[0,1]>(w) y = MatMul(x, t)", "swap"),
        ("float[2,3] x, float[4,3] w", "t = Transpose(w) y = MatMul(x, t) z = Relu(t)", ""),
        ("float[2,3,3] x, float[3,3] w", "t = Transpose(x) y = MatMul(t, w)", "matrices"),
    ],
)
def test_declines(
    build: Build, declined: Callable[[Any], str], inputs: str, nodes: str, reason: str
) -> None:
    kind = inputs.partition("[")[0]
    outputs = f"{kind}[] y, {kind}[] z" if "z =" in nodes else f"{kind}[] y"
    model = build(f"g ({inputs}) => ({outputs}) {{ {nodes} }}")
    assert reason in declined(check_pass(FuseGemm(), model, None))


def test_before_gemm_had_an_optional_bias(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (float[2,3] x, float[4,3] w) => (float[] y) { t = Transpose(w) y = MatMul(x, t) }",
        opset=10,
    )
    assert "needs a bias" in declined(check_pass(FuseGemm(), model, None))


def test_product_that_is_a_graph_output(build: Build) -> None:
    model = build(
        "g (float[2,3] x) => (float[2,4] t, float[2,4] y) { t = MatMul(x, w) y = Add(t, b) }",
        w=(3, 4),
        b=np.ones(4, np.float32),
    )
    check_pass(FuseGemm(), model, None)

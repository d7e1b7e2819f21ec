from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseAffine
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]


def test_conv_mul_and_add(build: Build) -> None:
    check_pass(
        FuseAffine(),
        build(
            """
            g (float[N,3,H,W] x) => (float[N,4,P,Q] y)
            { c = Conv(x, w) a = Mul(c, k) b = Add(d, a) y = Relu(b) }
            """,
            w=(4, 3, 3, 3),
            k=(4, 1, 1),
            d=(1, 4, 1, 1),
        ),
        """
        graph(%x: float[N,3,H,W]) {
          const %w.1: float[4,3,3,3]
          const %w.1.bias: float[4]
          %c = Conv(%x, %w.1, %w.1.bias)
          %y = Relu(%c)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "combine", ["Mul(c, k)", "Mul(k, c)", "Div(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)"]
)
@pytest.mark.parametrize(
    ("conv", "w"), [("Conv<group=2>", (4, 3, 3, 3)), ("ConvTranspose<group=2>", (6, 2, 3, 3))]
)
def test_every_shape_behind_a_convolution(
    build: Build,
    rewrite: Rewrite,
    conv: str,
    w: tuple[int, ...],
    combine: str,
    shape: tuple[int, ...],
) -> None:
    model = build(
        f"g (float[1,6,5,5] x) => (float[1,4,P,Q] y) {{ c = {conv}(x, w, b) y = {combine} }}",
        w=w,
        b=(4,),
        k=np.asarray(np.linspace(0.5, 2, int(np.prod(shape))), np.float32).reshape(shape),
    )
    assert len(rewrite(FuseAffine(), model).graph) == 1


@pytest.mark.parametrize(("x", "w"), [("1,3,7", (4, 3, 2)), ("1,3,4,4,4", (4, 3, 2, 2, 2))])
def test_one_and_three_dimensions(
    build: Build, rewrite: Rewrite, x: str, w: tuple[int, ...]
) -> None:
    model = build(
        f"g (float[{x}] x) => (float[] y) {{ c = Conv(x, w) a = Mul(c, k) y = Add(a, k) }}",
        w=w,
        k=(4, *[1] * (len(w) - 2)),
    )
    assert [n.op_type for n in rewrite(FuseAffine(), model).graph] == ["Conv"]


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<beta=0.5, alpha=2.0>", "<transA=1>"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4)])
@pytest.mark.parametrize("combine", ["Mul(c, k)", "Div(c, k)", "Add(c, k)", "Sub(k, c)"])
def test_gemm(
    build: Build, rewrite: Rewrite, attributes: str, combine: str, shape: tuple[int, ...]
) -> None:
    x = "3,2" if "transA" in attributes else "2,3"
    model = build(
        f"g (float[{x}] x) => (float[2,4] y) {{ c = Gemm{attributes}(x, w, b) y = {combine} }}",
        w=(4, 3) if "transB" in attributes else (3, 4),
        b=(4,),
        k=np.asarray(np.linspace(0.5, 2, int(np.prod(shape))), np.float32).reshape(shape),
    )
    assert len(rewrite(FuseAffine(), model).graph) == 1


@pytest.mark.parametrize("x", ["3", "2,3", "2,5,3", "B,T,3"])
def test_matmul_of_any_rank(build: Build, rewrite: Rewrite, x: str) -> None:
    model = build(
        f"g (float[{x}] x) => (float[] y) {{ c = MatMul(x, w) y = Mul(c, k) }}", w=(3, 4), k=(4,)
    )
    assert [n.op_type for n in rewrite(FuseAffine(), model).graph] == ["MatMul"]


@pytest.mark.parametrize("combine", ["Mul(a, k)", "Div(a, k)", "Add(a, k)", "Sub(k, a)"])
def test_matmul_and_add(build: Build, rewrite: Rewrite, combine: str) -> None:
    model = build(
        f"""
        g (float[B,T,3] x) => (float[B,T,4] y)
        {{ c = MatMul(x, w) a = Add(b, c) y = {combine} }}
        """,
        w=(3, 4),
        b=(4,),
        k=(4,),
    )
    assert [n.op_type for n in rewrite(FuseAffine(), model).graph] == ["MatMul", "Add"]


def test_matmul_scalar_in_float64(build: Build, rewrite: Rewrite) -> None:
    model = build(
        "g (double[2,3] x) => (double[2,4] y) { c = MatMul(x, w) y = Mul(c, k) }",
        w=np.linspace(-1, 1, 12).reshape(3, 4),
        k=np.array(1 / 3),
    )
    assert [n.op_type for n in rewrite(FuseAffine(), model).graph] == ["MatMul"]


def test_addition_keeps_a_shared_weight(build: Build) -> None:
    # Only the bias changes, so it does not matter who else uses the weight.
    check_pass(
        FuseAffine(),
        build(
            """
            g (float[1,3,5,5] x) => (float[1,4,3,3] y, float[1,4,3,3] z)
            { c = Conv(x, w, b) y = Add(c, k) z = Conv(x, w) }
            """,
            w=(4, 3, 3, 3),
            b=(4,),
            k=(4, 1, 1),
        ),
        """
        graph(%x: float[1,3,5,5]) {
          const %b.1: float[4]
          const %w: float[4,3,3,3]
          %y = Conv(%x, %w, %b.1)
          %z = Conv(%x, %w)
          return %y, %z
        }
        """,
    )


def test_inside_a_loop(build: Build, rewrite: Rewrite) -> None:
    model = build(
        """
        g (float[1,4,5,5] x) => (float[1,4,5,5] y)
        {
          y = Loop(n, , x) <
            body = t (int64 i, bool go, float[1,4,5,5] s) => (bool on, float[1,4,5,5] r)
            { on = Identity(go) c = Conv(s, w) r = Mul(c, k) }
          >
        }
        """,
        n=np.int64(3),
        w=np.full((4, 4, 1, 1), 0.25, np.float32),
        k=(4, 1, 1),
    )
    (loop,) = rewrite(FuseAffine(), model).graph
    (body,) = ir.subgraphs(loop)
    assert [n.op_type for n in body] == ["Identity", "Conv"]


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ("c = Conv(x, w) y = Mul(c, k)", {"k": (1, 1, 4, 1, 1)}, "higher rank"),
        ("c = Conv(x, w) y = Mul(c, k)", {"k": (3,)}, "varies"),
        ("c = Conv(x, w) y = Mul(c, k)", {"k": (3, 3)}, "varies"),
        ("c = Conv(x, w) y = Mul(c, k)", {"k": (4, 3, 1)}, "varies"),
        ("c = Conv(x, w) y = Mul(c, k)", {"k": (2, 4, 1, 1)}, "varies"),
        ("c = Conv(x, w1) y = Mul(c, k)", {"k": (5, 1, 1), "w1": (1, 3, 3, 3)}, "per channel"),
        ("c = Conv(x, w1) y = Add(c, k)", {"k": (5, 1, 1), "w1": (1, 3, 3, 3)}, "per channel"),
        ("c = Conv(x, w) y = Div(c, k)", {"k": np.float32(0)}, "divides by zero"),
        ("c = Conv(x, w) y = Mul(c, k)", {"k": np.float32(np.inf)}, "not finite"),
        ("c = Conv(x, wx) y = Mul(c, k)", {"k": (4, 1, 1)}, "the weight is not constant"),
        ("c = Conv(x, w, bx) y = Mul(c, k)", {"k": (4, 1, 1)}, "the bias is not constant"),
        ("c = Conv(x, w, bx) y = Add(c, k)", {"k": (4, 1, 1)}, "the bias is not constant"),
        ("c = Conv(x, w) y = Mul(c, k) z = Conv(x, w)", {"k": (4, 1, 1)}, "others use the weight"),
        ("c = Conv(x, w) y = Mul(c, k) z = Relu(c)", {"k": (4, 1, 1)}, ""),
        ("c = Conv(x, w) y = Mul(c, x)", {}, ""),
        ("c = Conv(x, w) y = Div(k, c)", {"k": (4, 1, 1)}, ""),
        ("c = Conv(x, w) y = Add(c, k)", {"w": (64, 3, 1, 1), "k": ()}, "larger"),
    ],
)
def test_declines(
    build: Build,
    declined: Callable[[Any], str],
    nodes: str,
    weights: dict[str, Any],
    reason: str,
) -> None:
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    model = build(
        f"""
        g (float[4,3,3,3] wx, float[4] bx, float[1,3,5,5] x) => ({outputs})
        {{ {nodes} }}
        """.replace("Mul(c, x)", "Mul(c, bx4)").replace("[4] bx,", "[4] bx, float[4,1,1] bx4,"),
        **({"w": (4, 3, 3, 3)} if re.search(r"\bw\b", nodes) else {}) | weights,
    )
    assert reason in declined(check_pass(FuseAffine(), model, None))


def test_keeps_a_conv_that_is_a_graph_output(build: Build) -> None:
    model = build(
        "g (float[1,3,5,5] x) => (float[1,4,3,3] c, float[1,4,3,3] y)"
        "{ c = Conv(x, w) y = Mul(c, k) }",
        w=(4, 3, 3, 3),
        k=(4, 1, 1),
    )
    check_pass(FuseAffine(), model, None)


def test_integers(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (int32[2,3] x) => (int32[2,4] y) { c = MatMul(x, w) y = Mul(c, k) }",
        w=np.ones((3, 4), np.int32),
        k=np.int32(3),
    )
    assert "not floating-point" in declined(check_pass(FuseAffine(), model, None))


@pytest.mark.parametrize(
    ("graph", "k", "reason"),
    [
        ("g (float[1,3] x) => (float[] y) { c = Gemm(x, w, b) y = Mul(c, k) }", (2, 4), "varies"),
        ("g (float[1,3] x) => (float[] y) { c = Gemm(x, w, b) y = Add(c, k) }", (1, 1, 4), "rank"),
        ("g (float[] x) => (float[] y) { c = MatMul(x, w) y = Mul(c, k) }", (1, 4), "rank"),
        ("g (float[3] x) => (float[] y) { c = MatMul(x, w) y = Mul(c, k) }", (1, 4), "rank"),
        ("g (float[2,3] x) => (float[] y) { c = MatMul(x, w) y = Mul(c, k) }", (2, 1), "varies"),
    ],
)
def test_constants_that_change_the_shape(
    build: Build, declined: Callable[[Any], str], graph: str, k: tuple[int, ...], reason: str
) -> None:
    used = {"b": (4,)} if "Gemm" in graph else {}
    model = build(graph, w=(3, 4), k=k, **used)
    assert reason in declined(check_pass(FuseAffine(), model, None))


def test_growth_from_a_bias_that_varies_over_rows(
    build: Build, declined: Callable[[Any], str]
) -> None:
    model = build(
        "g (float[2,3] x) => (float[2,4] y) { c = MatMul(x, w) a = Add(c, b) y = Mul(a, k) }",
        w=(3, 4),
        b=(2, 4),
        k=(4,),
    )
    assert "varies" in declined(check_pass(FuseAffine(), model, None))

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseInputAffine
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]


def test_normalization_of_an_image(build: Build) -> None:
    check_pass(
        FuseInputAffine(),
        build(
            """
            g (float[N,3,32,32] x) => (float[N,8,8,8] y)
            { a = Sub(x, mean) b = Div(a, std) y = Conv<strides=[4,4]>(b, w, c) }
            """,
            mean=(3, 1, 1),
            std=(1, 3, 1, 1),
            w=(8, 3, 4, 4),
            c=(8,),
        ),
        """
        graph(%x: float[N,3,32,32]) {
          const %c.2: float[8]
          const %w.1: float[8,3,4,4]
          %y = Conv(%x, %w.1, %c.2) {strides=[4, 4]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize("combine", ["Mul(x, k)", "Mul(k, x)", "Div(x, k)"])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("conv", "w"),
    [
        ("Conv<pads=[1,1,1,1]>", (4, 6, 3, 3)),
        ("Conv<group=2>", (4, 3, 3, 3)),
        ("Conv<group=6>", (12, 1, 3, 3)),
        ("ConvTranspose", (6, 4, 3, 3)),
        ("ConvTranspose<group=2>", (6, 2, 3, 3)),
    ],
)
def test_factors(
    build: Build,
    rewrite: Rewrite,
    conv: str,
    w: tuple[int, ...],
    shape: tuple[int, ...],
    combine: str,
) -> None:
    model = build(
        f"g (float[2,6,5,5] x) => (float[] y) {{ a = {combine} y = {conv}(a, w, b) }}",
        w=w,
        b=((4,) if "group=6" not in conv else (12,)),
        k=np.asarray(np.linspace(0.5, 2, int(np.prod(shape))), np.float32).reshape(shape),
    )
    assert len(rewrite(FuseInputAffine(), model).graph) == 1


@pytest.mark.parametrize("combine", ["Add(x, k)", "Add(k, x)", "Sub(x, k)"])
@pytest.mark.parametrize("shape", [(), (6, 1), (1, 6, 1)])
@pytest.mark.parametrize(
    ("conv", "w"),
    [
        ("Conv", (4, 6, 3)),
        ("Conv<group=2>", (4, 3, 3)),
        ('Conv<auto_pad="VALID">', (4, 6, 2)),
        ("Conv<pads=[0,0]>", (4, 6, 2)),
    ],
)
def test_summands(
    build: Build,
    rewrite: Rewrite,
    conv: str,
    w: tuple[int, ...],
    shape: tuple[int, ...],
    combine: str,
) -> None:
    model = build(
        f"g (float[2,6,5] x) => (float[] y) {{ a = {combine} y = {conv}(a, w) }}",
        w=w,
        k=np.asarray(np.linspace(0.5, 2, int(np.prod(shape))), np.float32).reshape(shape),
    )
    assert len(rewrite(FuseInputAffine(), model).graph) == 1


@pytest.mark.parametrize("combine", ["Mul(x, k)", "Add(x, k)", "Sub(x, k)", "Div(x, k)"])
@pytest.mark.parametrize(
    ("attributes", "x", "w", "k"),
    [
        ("", "2,3", (3, 4), (3,)),
        ("", "2,3", (3, 4), (1, 3)),
        ("", "2,3", (3, 4), ()),
        ("<transB=1, alpha=0.5, beta=2.0>", "2,3", (4, 3), (3,)),
        ("<transA=1>", "3,2", (3, 4), (3, 1)),
    ],
)
def test_gemm(
    build: Build,
    rewrite: Rewrite,
    attributes: str,
    x: str,
    w: tuple[int, ...],
    k: tuple[int, ...],
    combine: str,
) -> None:
    model = build(
        f"g (float[{x}] x) => (float[2,4] y) {{ a = {combine} y = Gemm{attributes}(a, w, c) }}",
        w=w,
        c=(4,),
        k=k,
    )
    assert len(rewrite(FuseInputAffine(), model).graph) == 1


@pytest.mark.parametrize("x", ["3", "2,3", "B,T,3"])
def test_matmul_of_any_rank(build: Build, rewrite: Rewrite, x: str) -> None:
    model = build(
        f"g (float[{x}] x) => (float[] y) {{ a = Mul(x, k) y = MatMul(a, w) }}", w=(3, 4), k=(3,)
    )
    assert len(rewrite(FuseInputAffine(), model).graph) == 1


@pytest.mark.parametrize(
    ("x", "nodes", "weights", "reason"),
    [
        ("1,3,5,5", "a = Add(x, k) y = Conv<pads=[1,0,0,0]>(a, w)", {}, "pads its input"),
        ("1,3,5,5", 'a = Sub(x, k) y = Conv<auto_pad="SAME_UPPER">(a, w)', {}, "pads its input"),
        ("1,3,5,5", "a = Add(x, k) y = Conv(a, w, bx)", {}, "the bias is not constant"),
        ("1,3,5,5", "a = Mul(x, k) y = Conv(a, wx)", {}, "the weight is not constant"),
        ("1,3,5,5", "a = Mul(x, k) y = Conv(a, w) z = Conv(x, w)", {}, "others use the weight"),
        ("1,3,5,5", "a = Mul(x, k) y = Conv(a, w) z = Relu(a)", {}, ""),
        ("1,3,5,5", "a = Div(k, x) y = Conv(a, w)", {}, ""),
        ("1,3,5,5", "a = Div(x, k) y = Conv(a, w)", {"k": np.float32(0)}, "divides by zero"),
        ("1,3,5,5", "a = Mul(x, k) y = Conv(a, w)", {"k": (3, 5, 5)}, "varies"),
        ("1,3,5,5", "a = Mul(x, k) y = Conv(a, w)", {"k": (2, 3, 1, 1)}, "varies"),
        ("1,1,5,5", "a = Mul(x, k) y = Conv(a, w)", {}, "more channels"),
        ("3,5,5", "a = Mul(x, k) y = Conv(a, w)", {"k": (1, 3, 1, 1)}, "higher rank"),
        ("N,C,5,5", "a = Mul(x, k) y = Conv(a, w)", {}, "more channels"),
        ("", "a = Mul(x, k) y = Conv(a, w)", {}, "not known"),
        ("1,3,5,5", "a = Add(x, k) y = Conv(a, w)", {"w": (64, 3, 1, 1), "k": ()}, "larger"),
    ],
)
def test_declines(
    build: Build,
    declined: Callable[[Any], str],
    x: str,
    nodes: str,
    weights: dict[str, Any],
    reason: str,
) -> None:
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    used = {"w": (4, 3, 3, 3), "k": (3, 1, 1)} | weights
    model = build(
        f"g (float[4,3,3,3] wx, float[4] bx, float[{x}] x) => ({outputs}) {{ {nodes} }}",
        **{k: v for k, v in used.items() if re.search(rf"\b{k}\b", nodes)},
    )
    assert reason in declined(check_pass(FuseInputAffine(), model, None))


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1024), (np.float64, 2.0**39)])
def test_large_shifts(
    build: Build,
    rewrite: Callable[..., ir.Model],
    declined: Callable[[Any], str],
    dtype: type[np.floating[Any]],
    limit: float,
) -> None:
    """Inputs near 100,000 of which 100,000 is subtracted would lose five of their seven digits."""
    name = {np.float32: "float", np.float64: "double"}[dtype]
    text = f"g ({name}[N,3] x) => ({name}[N,4] y) {{ a = Sub(x, k) y = Gemm(a, w) }}"
    for shift, small in ((limit, True), (-2 * limit, False)):
        model = build(text, w=np.ones((3, 4), dtype), k=np.array([1, shift, 0], dtype))
        if small:
            assert len(rewrite(FuseInputAffine(), model).graph) == 1
        else:
            assert "rounding" in declined(check_pass(FuseInputAffine(), model, None))


def test_summand_in_half_precision(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (float16[2,3] x) => (float16[2,4] y) { a = Add(x, k) y = Gemm(a, w) }",
        w=np.ones((3, 4), np.float16),
        k=np.ones(3, np.float16),
    )
    assert "16 bits" in declined(check_pass(FuseInputAffine(), model, None))


@pytest.mark.parametrize(
    ("nodes", "kernel"),
    [
        (
            """
            d = Div(x, root) e = Erf(d) f = Add(e, one) g = Mul(x, f) h = Mul(g, half)
            y = MatMul(h, w)
            """,
            "Gelu",
        ),
        (
            """
            m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) q = Mul(c, c) v = ReduceMean<axes=[-1]>(q)
            p = Add(v, half) s = Sqrt(p) n = Div(c, s) g = Mul(n, gamma) h = Add(g, gamma)
            y = Gemm(h, w)
            """,
            "LayerNormalization",
        ),
        (
            """
            q = Mul(x, x) v = ReduceMean<axes=[-1]>(q) p = Add(v, half) s = Sqrt(p)
            r = Reciprocal(s) n = Mul(x, r) g = Mul(n, gamma) y = MatMul(g, w)
            """,
            "LayerNormalization",
        ),
    ],
)
def test_leaves_together_what_runtimes_fuse(
    build: Build, declined: Callable[[Any], str], nodes: str, kernel: str
) -> None:
    constants = {
        "root": np.float32(np.sqrt(2)),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "gamma": (4,),
        "w": (4, 3),
    }
    model = build(
        f"g (float[2,4] x) => (float[2,3] y) {{ {nodes} }}",
        **{k: v for k, v in constants.items() if re.search(rf"\b{k}\b", nodes)},
    )
    assert kernel in declined(check_pass(FuseInputAffine(), model, None))

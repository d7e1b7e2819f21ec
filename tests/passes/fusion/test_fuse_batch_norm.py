from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseBatchNorm
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]
BN = {"s": (4,), "b": (4,), "m": (4,), "v": (4,)}


def test_conv(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3,H,W] x) => (float[N,4,P,Q] y)
            { c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(4, 3, 3, 3),
            **BN,
        ),
        """
        graph(%x: float[N,3,H,W]) {
          const %w.1: float[4,3,3,3]
          const %w.bias: float[4]
          %y = Conv(%x, %w.1, %w.bias) {pads=[1, 1, 1, 1]}
          return %y
        }
        """,
    )


def test_conv_with_bias_keeps_users(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[1,3,5,5] x) => (float[1,4,3,3] y, float[1,4,3,3] z)
            {
              c = Conv(x, w, cb)
              n = BatchNormalization<epsilon=0.01>(c, s, b, m, v)
              y = Relu(n)
              z = Sigmoid(n)
            }
            """,
            w=(4, 3, 3, 3),
            cb=(4,),
            **BN,
        ),
        """
        graph(%x: float[1,3,5,5]) {
          const %cb.2: float[4]
          const %w.1: float[4,3,3,3]
          %c = Conv(%x, %w.1, %cb.2)
          %y = Relu(%c)
          %z = Sigmoid(%c)
          return %y, %z
        }
        """,
    )


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "shape", "out"),
    [
        ("Conv", "", (4, 3, 3), "1,3,7", "1,4,5"),
        ("Conv", "", (4, 2, 2, 2, 2), "1,2,4,4,4", "1,4,3,3,3"),
        ("Conv", "<group=2>", (4, 3, 3, 3), "1,6,5,5", "1,4,3,3"),
        ("Conv", "<group=4>", (4, 1, 3, 3), "1,4,5,5", "1,4,3,3"),
        ("Conv", '<auto_pad="SAME_UPPER", strides=[2,2]>', (4, 3, 3, 3), "1,3,5,5", "1,4,3,3"),
        ("ConvTranspose", "", (3, 4, 3, 3), "1,3,5,5", "1,4,7,7"),
        ("ConvTranspose", "<group=2>", (6, 2, 3, 3), "1,6,5,5", "1,4,7,7"),
        ("ConvTranspose", "<group=2>", (2, 2, 3), "1,2,5", "1,4,7"),
    ],
)
@pytest.mark.parametrize("bias", ["", ", cb"])
def test_every_convolution(
    build: Build,
    rewrite: Rewrite,
    op: str,
    attributes: str,
    weight: tuple[int, ...],
    shape: str,
    out: str,
    bias: str,
) -> None:
    model = build(
        f"""
        g (float[{shape}] x) => (float[{out}] y)
        {{ c = {op}{attributes}(x, w{bias}) y = BatchNormalization(c, s, b, m, v) }}
        """,
        w=weight,
        **({"cb": (4,)} if bias else {}),
        **BN,
    )
    assert [n.op_type for n in rewrite(FuseBatchNorm(), model).graph] == [op]


@pytest.mark.parametrize(
    ("attributes", "w"), [("", (3, 4)), ("<transB=1, alpha=0.5>", (4, 3)), ("<transA=1>", (3, 4))]
)
@pytest.mark.parametrize("bias", [(), (1,), (4,), (1, 4), (1, 1)])
def test_gemm(
    build: Build, rewrite: Rewrite, attributes: str, w: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    shape = "3,2" if "transA" in attributes else "2,3"
    model = build(
        f"""
        g (float[{shape}] x) => (float[2,4] y)
        {{ c = Gemm{attributes}(x, w, cb) y = BatchNormalization(c, s, b, m, v) }}
        """,
        w=w,
        cb=np.full(bias, 2.0, np.float32),
        **BN,
    )
    result = rewrite(FuseBatchNorm(), model)
    assert [n.op_type for n in result.graph] == ["Gemm"]


def test_gemm_beta_goes_into_the_bias(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3] x) => (float[N,4] y)
            { c = Gemm<beta=0.5, alpha=2.0>(x, w, cb) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(3, 4),
            cb=(4,),
            **BN,
        ),
        """
        graph(%x: float[N,3]) {
          const %cb.2: float[4]
          const %w.1: float[3,4]
          %y = Gemm(%x, %w.1, %cb.2) {alpha=2}
          return %y
        }
        """,
    )


def test_gemm_without_bias(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3] x) => (float[N,4] y)
            { c = Gemm(x, w) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(3, 4),
            **BN,
        ),
        """
        graph(%x: float[N,3]) {
          const %w.1: float[3,4]
          const %w.bias: float[4]
          %y = Gemm(%x, %w.1, %w.bias)
          return %y
        }
        """,
    )


def test_matmul_becomes_gemm(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3] x) => (float[N,4] y)
            { c = MatMul(x, w) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(3, 4),
            **BN,
        ),
        """
        graph(%x: float[N,3]) {
          const %w.1: float[3,4]
          const %w.bias: float[4]
          %y = Gemm(%x, %w.1, %w.bias)
          return %y
        }
        """,
    )


def test_matmul_stays_where_nothing_is_added(build: Build) -> None:
    zero = np.zeros(4, np.float32)
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3] x) => (float[N,4] y)
            { c = MatMul(x, w) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(3, 4),
            s=(4,),
            b=zero,
            m=zero,
            v=(4,),
        ),
        """
        graph(%x: float[N,3]) {
          const %w.1: float[3,4]
          %y = MatMul(%x, %w.1)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("add", ["Add(c, cb)", "Add(cb, c)"])
def test_matmul_and_add(build: Build, rewrite: Rewrite, add: str) -> None:
    model = build(
        f"""
        g (float[N,3] x) => (float[N,4] y)
        {{ c = MatMul(x, w) a = {add} y = BatchNormalization(a, s, b, m, v) }}
        """,
        w=(3, 4),
        cb=(4,),
        **BN,
    )
    result = rewrite(FuseBatchNorm(), model)
    assert [n.op_type for n in result.graph] == ["MatMul", "Add"]


def test_no_bias_of_zeros_is_made(build: Build) -> None:
    zero = np.zeros(4, np.float32)
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (float[N,3,5,5] x) => (float[N,4,3,3] y)
            { c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }
            """,
            w=(4, 3, 3, 3),
            s=(4,),
            b=zero,
            m=zero,
            v=(4,),
        ),
        """
        graph(%x: float[N,3,5,5]) {
          const %w.1: float[4,3,3,3]
          %y = Conv(%x, %w.1)
          return %y
        }
        """,
    )


def test_constants_shared_by_many(build: Build, rewrite: Rewrite) -> None:
    # An untrained net after deduplication: a bias of zeros for all, statistics of zeros and ones.
    zero, one = np.zeros(64, np.float32), np.ones(64, np.float32)
    model = build(
        """
        g (float[1,64,3,3] x) => (float[1,64,3,3] y)
        {
          a = Conv(x, w, zero)
          b = BatchNormalization(a, one, zero, zero, one)
          c = Conv(b, v, zero)
          y = BatchNormalization(c, one, zero, zero, one)
        }
        """,
        w=(64, 64, 1, 1),
        v=(64, 64, 1, 1),
        zero=zero,
        one=one,
    )
    result = rewrite(FuseBatchNorm(), model)
    assert [n.op_type for n in result.graph] == ["Conv", "Conv"]
    assert ir.nbytes(result) < ir.nbytes(model)


@pytest.mark.parametrize(
    ("opset", "attributes"),
    [
        (7, ""),
        (7, "<spatial=1>"),
        (8, "<spatial=1, momentum=0.5>"),
        (9, ""),
        (13, ""),
        (14, "<training_mode=0>"),
        (15, ""),
    ],
)
def test_every_version(build: Build, rewrite: Rewrite, opset: int, attributes: str) -> None:
    model = build(
        f"""
        g (float[1,3,5,5] x) => (float[1,4,3,3] y)
        {{ c = Conv(x, w) y = BatchNormalization{attributes}(c, s, b, m, v) }}
        """,
        opset=opset,
        w=(4, 3, 3, 3),
        **BN,
    )
    assert [n.op_type for n in rewrite(FuseBatchNorm(), model).graph] == ["Conv"]


def test_half_precision_keeps_its_type(build: Build, rewrite: Rewrite) -> None:
    half = {k: np.linspace(0.5, 1.5, 4).astype(np.float16) for k in BN}
    model = build(
        """
        g (float16[1,3,5,5] x) => (float16[1,4,3,3] y)
        { c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }
        """,
        w=np.linspace(-1, 1, 108).reshape(4, 3, 3, 3).astype(np.float16),
        **half,
    )
    result = rewrite(FuseBatchNorm(), model)
    (conv,) = result.graph
    assert [v.dtype for v in conv.inputs[1:] if v] == [ir.DataType.FLOAT16] * 2


def test_mixed_precision(build: Build, rewrite: Rewrite) -> None:
    # From opset 15 on statistics may be of another type than the data.
    model = build(
        """
        g (float16[1,3,5,5] x) => (float16[1,4,3,3] y)
        { c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }
        """,
        w=np.linspace(-1, 1, 108).reshape(4, 3, 3, 3).astype(np.float16),
        **BN,
    )
    (conv,) = rewrite(FuseBatchNorm(), model, numbers=False).graph
    assert [v.dtype for v in conv.inputs[1:] if v] == [ir.DataType.FLOAT16] * 2


@pytest.mark.parametrize(
    ("name", "dtype"), [("double", np.float64), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_types_that_onnxruntime_has_no_conv_for(
    build: Build, rewrite: Rewrite, name: str, dtype: Any
) -> None:
    data = {k: np.linspace(0.5, 1.5, 4).astype(dtype) for k in BN}
    w = np.linspace(-1, 1, 24).reshape(4, 3, 2).astype(dtype)
    model = build(
        f"""
        g ({name}[1,3,5] x) => ({name}[1,4,4] y)
        {{ c = Conv(x, w) y = BatchNormalization<epsilon=0.25>(c, s, b, m, v) }}
        """,
        w=w,
        **data,
    )
    result = rewrite(FuseBatchNorm(), model, numbers=False)
    (conv,) = result.graph
    got = [ir.array(v) for v in conv.inputs[1:]]
    wide = {k: v.astype(np.float64) for k, v in data.items()}
    k = wide["s"] / np.sqrt(wide["v"] + 0.25)
    want = [w.astype(np.float64) * k.reshape(4, 1, 1), wide["b"] - wide["m"] * k]
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b.astype(dtype))


def test_inside_a_branch_with_outer_weights(build: Build) -> None:
    check_pass(
        FuseBatchNorm(),
        build(
            """
            g (bool p, float[1,3,5,5] x) => (float[1,4,3,3] y)
            {
              y = If(p) <
                then_branch = t () => (float[1,4,3,3] a)
                { c = Conv(x, w) a = BatchNormalization(c, s, b, m, v) },
                else_branch = e () => (float[1,4,3,3] d)
                { d = Conv(x, other) }
              >
            }
            """,
            w=(4, 3, 3, 3),
            other=(4, 3, 3, 3),
            **BN,
        ),
        """
        graph(%p: bool[], %x: float[1,3,5,5]) {
          const %other: float[4,3,3,3]
          %y = If(%p)
            else_branch:
              graph() {
                %d = Conv(%x, %other)
                return %d
              }
            then_branch:
              graph() {
                const %w.1: float[4,3,3,3]
                const %w.bias: float[4]
                %a = Conv(%x, %w.1, %w.bias)
                return %a
              }
          return %y
        }
        """,
    )


def test_two_in_a_row(build: Build, rewrite: Rewrite) -> None:
    model = build(
        """
        g (float[1,3,5,5] x) => (float[1,4,3,3] y)
        {
          c = Conv(x, w)
          n = BatchNormalization(c, s, b, m, v)
          y = BatchNormalization(n, b, s, v, m)
        }
        """,
        w=(4, 3, 3, 3),
        **BN,
    )
    assert [n.op_type for n in rewrite(FuseBatchNorm(), model).graph] == ["Conv"]

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseBatchNorm
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
BN = {"s": (4,), "b": (4,), "m": (4,), "v": (4,)}
NORM = "y = BatchNormalization(c, s, b, m, v)"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("c = Conv(x, w) y, m2, v2 = BatchNormalization<training_mode=1>(c, s, b, m, v)", "batch"),
        (f"c = Conv(x, wx) {NORM}", "the weight is not constant"),
        (f"c = Conv(x, w, bx) {NORM}", "the bias is not constant"),
        ("c = Conv(x, w) y = BatchNormalization(c, bx, b, m, v)", "its scale is not constant"),
        ("c = Conv(x, w) y = BatchNormalization(c, s, b, m, bx)", "its var is not constant"),
        ("c = Conv(x, w) y = BatchNormalization(c, s, b, m, neg)", "variance is not positive"),
        (f"c = Conv(x, w) {NORM} z = Conv(x, w)", "others use the weight"),
        (f"c = Relu(x4) {NORM}", ""),
        (f"c = Conv(x, w) {NORM} z = Relu(c)", ""),
    ],
)
def test_declines(build: Build, declined: Callable[[Any], str], nodes: str, reason: str) -> None:
    outputs = "float[1,4,3,3] y" + (", float[1,4,3,3] z" if "z =" in nodes else "")
    used = {"w": (4, 3, 3, 3), **BN, "neg": np.full(4, -1, np.float32)}
    model = build(
        f"""
        g (float[1,3,5,5] x, float[4,3,3,3] wx, float[4] bx, float[1,4,3,3] x4) => ({outputs})
        {{ {nodes} }}
        """,
        **{k: v for k, v in used.items() if re.search(rf"\b{k}\b", nodes)},
    )
    assert reason in declined(check_pass(FuseBatchNorm(), model, None))


def test_keeps_a_conv_that_is_a_graph_output(build: Build) -> None:
    model = build(
        "g (float[1,3,5,5] x) => (float[1,4,3,3] c, float[1,4,3,3] y)"
        "{ c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }",
        w=(4, 3, 3, 3),
        **BN,
    )
    check_pass(FuseBatchNorm(), model, None)


@pytest.mark.parametrize("opset", [7, 9])
def test_old_training_mode(build: Build, declined: Callable[[Any], str], opset: int) -> None:
    # Before opset 14 the outputs select training, even where nothing uses them.
    model = build(
        "g (float[2,3,5,5] x) => (float[2,4,3,3] y)"
        "{ c = Conv(x, w) y, m2, v2, m3, v3 = BatchNormalization(c, s, b, m, v) }",
        opset=opset,
        w=(4, 3, 3, 3),
        **BN,
    )
    assert "training mode" in declined(check_pass(FuseBatchNorm(), model, None))


def test_statistics_per_position(build: Build, declined: Callable[[Any], str]) -> None:
    flat = {k: (4, 1, 1) for k in BN}
    model = build(
        "g (float[1,3,3,3] x) => (float[1,4,1,1] y)"
        "{ c = Conv(x, w) y = BatchNormalization<spatial=0>(c, s, b, m, v) }",
        opset=8,
        w=(4, 3, 3, 3),
        **flat,
    )
    assert "spatial=0" in declined(check_pass(FuseBatchNorm(), model, None))


def test_weights_that_callers_may_override(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (float[1,3,5,5] x, float[4,3,3,3] w) => (float[1,4,3,3] y)"
        "{ c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }",
        w=(4, 3, 3, 3),
        **BN,
    )
    assert "the weight is not constant" in declined(check_pass(FuseBatchNorm(), model, None))


def test_batched_matmul(build: Build, declined: Callable[[Any], str]) -> None:
    # The channels of the normalization are rows of the product.
    model = build(
        "g (float[2,4,3] x) => (float[2,4,4] y)"
        "{ c = MatMul(x, w) y = BatchNormalization(c, s, b, m, v) }",
        w=(3, 4),
        **BN,
    )
    reasons = declined(check_pass(FuseBatchNorm(), model, None))
    assert "not the output channels" in reasons


def test_gemm_bias_per_row(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (float[2,3] x) => (float[2,4] y)"
        "{ c = Gemm(x, w, cb) y = BatchNormalization(c, s, b, m, v) }",
        w=(3, 4),
        cb=(2, 1),
        **BN,
    )
    assert "varies" in declined(check_pass(FuseBatchNorm(), model, None))


def test_half_precision_overflow(build: Build, declined: Callable[[Any], str]) -> None:
    data = {k: np.ones(4, np.float16) for k in BN}
    data["v"] = np.full(4, 1e-7, np.float16)
    model = build(
        "g (float16[1,3,5] x) => (float16[1,4,5] y)"
        "{ c = Conv(x, w) y = BatchNormalization<epsilon=0.0>(c, s, b, m, v) }",
        w=np.full((4, 3, 1), 100, np.float16),
        **data,
    )
    assert "not finite" in declined(check_pass(FuseBatchNorm(), model, None))


def test_half_precision_underflow(build: Build, declined: Callable[[Any], str]) -> None:
    data = {k: np.ones(4, np.float16) for k in BN}
    data["s"] = np.full(4, 1e-4, np.float16)
    model = build(
        "g (float16[1,3,5] x) => (float16[1,4,5] y)"
        "{ c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }",
        w=np.full((4, 3, 1), 0.01, np.float16),
        **data,
    )
    assert "lose its precision" in declined(check_pass(FuseBatchNorm(), model, None))

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FusePad
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]
PADS = np.array([0, 0, 1, 2, 0, 0, 3, 0])


def test_conv(build: Build) -> None:
    check_pass(
        FusePad(),
        build(
            """
            g (float[N,3,H,W] x) => (float[N,4,P,Q] y)
            { p = Pad(x, pads) y = Conv<pads=[1,1,1,1], strides=[2,2]>(p, w) }
            """,
            pads=PADS,
            w=(4, 3, 3, 3),
        ),
        """
        graph(%x: float[N,3,H,W]) {
          const %w: float[4,3,3,3]
          %y = Conv(%x, %w) {pads=[2, 3, 4, 1], strides=[2, 2]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("opset", "pad"),
    [
        (10, "Pad<pads=[0,0,1,2,0,0,3,0]>(x)"),
        (8, 'Pad<pads=[0,0,1,2,0,0,3,0], mode="constant", value=0.0>(x)'),
        (11, "Pad(x, pads)"),
        (13, "Pad(x, pads, zero)"),
        (17, 'Pad<mode="constant">(x, pads, zero)'),
        (18, "Pad(x, short, zero, axes)"),
        (18, "Pad(x, short, , negative)"),
        (19, "Pad(x, pads)"),
    ],
)
@pytest.mark.parametrize("conv", ["Conv", 'Conv<auto_pad="VALID">', "Conv<group=3>"])
def test_every_version(build: Build, rewrite: Rewrite, opset: int, pad: str, conv: str) -> None:
    constants = {
        "pads": PADS,
        "zero": np.float32(0),
        "short": np.array([1, 2, 3, 0]),
        "axes": np.array([2, 3]),
        "negative": np.array([-2, -1]),
    }
    model = build(
        f"g (float[1,3,5,5] x) => (float[] y) {{ p = {pad} y = {conv}(p, w) }}",
        opset=opset,
        w=(6, 1, 3, 3) if "group" in conv else (6, 3, 3, 3),
        **{k: v for k, v in constants.items() if re.search(rf"\b{k}\b", pad)},
    )
    (node,) = rewrite(FusePad(), model).graph
    assert ir.attr(node, "pads") == (1, 2, 3, 0)


@pytest.mark.parametrize(("x", "w"), [("1,3,7", (4, 3, 3)), ("1,3,4,4,4", (4, 3, 2, 2, 2))])
def test_one_and_three_dimensions(
    build: Build, rewrite: Rewrite, x: str, w: tuple[int, ...]
) -> None:
    n = len(w) - 2
    model = build(
        f"g (float[{x}] x) => (float[] y) {{ p = Pad(x, pads) y = Conv(p, w) }}",
        w=w,
        pads=np.array([0, 0, *range(n), 0, 0, *[2] * n]),
    )
    assert len(rewrite(FusePad(), model).graph) == 1


def test_average_pool_counts_the_padding(build: Build) -> None:
    check_pass(
        FusePad(),
        build(
            """
            g (float[1,3,8] x) => (float[1,3,4] y)
            { p = Pad(x, pads) y = AveragePool<kernel_shape=[3], strides=[2]>(p) }
            """,
            pads=np.array([0, 0, 1, 0, 0, 0]),
        ),
        """
        graph(%x: float[1,3,8]) {
          %y = AveragePool(%x) {count_include_pad=1, kernel_shape=[3], pads=[1, 0], strides=[2]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize("opset", [7, 10, 11, 17, 19])
def test_average_pool_with_padding_of_its_own(build: Build, rewrite: Rewrite, opset: int) -> None:
    pad = "Pad<pads=[0,0,1,1,0,0,1,1]>(x)" if opset < 11 else "Pad(x, pads)"
    model = build(
        f"""
        g (float[1,3,8,8] x) => (float[] y)
        {{
          p = {pad}
          y = AveragePool<kernel_shape=[3,3], pads=[1,0,0,1], count_include_pad=1>(p)
        }}
        """,
        opset=opset,
        **({"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])} if opset >= 11 else {}),
    )
    (pool,) = rewrite(FusePad(), model).graph
    assert ir.attr(pool, "pads") == (2, 1, 1, 2)


@pytest.mark.parametrize(
    ("nodes", "pads", "reason"),
    [
        ("p = Pad(x, pads, one) y = Conv(p, w)", PADS, "with zeros"),
        ('p = Pad<mode="reflect">(x, pads) y = Conv(p, w)', PADS, "with a constant"),
        ('p = Pad<mode="edge">(x, pads) y = Conv(p, w)', PADS, "with a constant"),
        ("p = Pad(x, px) y = Conv(p, w)", None, "padding is not constant"),
        ("p = Pad(x, pads, vx) y = Conv(p, w)", PADS, "pads with is not constant"),
        ("p = Pad(x, pads) y = Conv(p, w)", [0, 0, -1, 0, 0, 0, 0, 0], "crops"),
        ("p = Pad(x, pads) y = Conv(p, w)", [1, 0, 0, 0, 0, 0, 0, 0], "samples or channels"),
        ("p = Pad(x, pads) y = Conv(p, w4)", [0, 0, 0, 0, 0, 1, 0, 0], "samples or channels"),
        ('p = Pad(x, pads) y = Conv<auto_pad="SAME_UPPER">(p, w)', PADS, "auto_pad"),
        ("p = Pad(x, pads) y = Conv(p, w) z = Relu(p)", PADS, ""),
        (
            "p = Pad(x, pads) y = AveragePool<kernel_shape=[2,2], pads=[1,0,0,0]>(p)",
            [0, 0, 1, 0, 0, 0, 0, 0],
            "without its own padding",
        ),
        (
            "p = Pad(x, pads) y = AveragePool<kernel_shape=[2,2], ceil_mode=1, strides=[2,2]>(p)",
            [0, 0, 1, 0, 0, 0, 0, 0],
            "ceil_mode",
        ),
        (
            "p = Pad(x, pads) y = AveragePool<kernel_shape=[2,2]>(p)",
            [0, 0, 2, 0, 0, 0, 0, 0],
            "exceeds the kernel",
        ),
        # MaxPool pads with minus infinity.
        ("p = Pad(x, pads) y = MaxPool<kernel_shape=[2,2]>(p)", [0, 0, 1, 1, 0, 0, 1, 1], ""),
        # The pads of a ConvTranspose are what it cuts off.
        ("p = Pad(x, pads) y = ConvTranspose(p, w3)", PADS, ""),
    ],
)
def test_declines(
    build: Build, declined: Callable[[Any], str], nodes: str, pads: Any, reason: str
) -> None:
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    used = {
        "w": (4, 3, 3, 3),
        "w4": (4, 4, 3, 3),
        "w3": (3, 2, 3, 3),
        "one": np.float32(1),
        "pads": np.array(pads),
    }
    model = build(
        f"g (float[2,3,6,6] x, int64[8] px, float vx) => ({outputs}) {{ {nodes} }}",
        **{k: v for k, v in used.items() if re.search(rf"\b{k}\b", nodes)},
    )
    each = FusePad()
    # Random widths of padding are refused by ONNX Runtime; nothing changes, so nothing is run.
    assert reason in declined(check_pass(each, model, None))


def test_pad_of_a_graph_output(build: Build) -> None:
    model = build(
        "g (float[1,3,6,6] x) => (float[1,3,10,8] p, float[1,4,8,6] y)"
        "{ p = Pad(x, pads) y = Conv(p, w) }",
        pads=PADS,
        w=(4, 3, 3, 3),
    )
    check_pass(FusePad(), model, None)


def test_axes_need_the_rank(build: Build, declined: Callable[[Any], str]) -> None:
    model = build(
        "g (float[] x) => (float[] y) { p = Pad(x, pads, , axes) y = Conv(p, w) }",
        opset=18,
        pads=np.array([1, 1]),
        axes=np.array([-1]),
        w=(4, 3, 3, 3),
    )
    assert "rank" in declined(check_pass(FusePad(), model, None))

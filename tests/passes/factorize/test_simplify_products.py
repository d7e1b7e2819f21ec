from __future__ import annotations

import math

import numpy as np
import pytest
from convolutions import (
    build,
    declined,
    kernels,
    product,
    simplified,
    weight,
    wild,
)

from graphopt import PassManager, ir
from graphopt.passes.factorize import SimplifyConvolutions
from graphopt.testing import check_pass

# Kernels that are products


def test_depthwise_kernel_along_one_axis_and_the_other() -> None:
    box = np.full((8, 1, 9, 9), 1 / 81, np.float32)
    check_pass(
        SimplifyConvolutions(),
        build(
            """
            g (float[N,8,32,32] x) => (float[N,8,32,32] y)
            { y = Conv<group=8, kernel_shape=[9,9], pads=[4,4,4,4]>(x, w, b) }
            """,
            w=box,
            b=weight(8),
        ),
        """
        graph(%x: float[N,8,32,32]) {
          const %b: float[8]
          const %w.depth: float[8,1,9,1]
          const %w.rest: float[8,1,1,9]
          %conv = Conv(%x, %w.depth) {group=8, kernel_shape=[9, 1], pads=[4, 0, 4, 0]}
          %y = Conv(%conv, %w.rest, %b) {group=8, kernel_shape=[1, 9], pads=[0, 4, 0, 4]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize("bias", [False, True])
def test_merged_depthwise_separable_pair(bias: bool) -> None:
    w = product(wild(1, 16, 3, 3), wild(24, 16, 1, 1, seed=1))
    model = build(
        f"""
        g (float[2,16,32,32] x) => (float[] y)
        {{ y = Conv<pads=[2,0,2,0], strides=[2,2], dilations=[2,1]>(x, w{", b" if bias else ""}) }}
        """,
        w=w,
        **({"b": weight(24)} if bias else {}),
    )
    nodes = simplified(model)
    assert kernels(nodes) == [(16, 1, 3, 3), (24, 16, 1, 1)]
    assert [ir.attr(n, "strides", ()) for n in nodes] == [(2, 2), ()]
    assert [ir.attr(n, "dilations", ()) for n in nodes] == [(2, 1), ()]
    assert [len(n.inputs) for n in nodes] == [2, 2 + bias]


def test_merged_pointwise_and_depthwise_pair() -> None:
    w = product(wild(24, 1, 3, 3), wild(24, 16, 1, 1, seed=1))
    model = build("g (float[2,16,32,32] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=w)
    assert kernels(simplified(model)) == [(24, 16, 1, 1), (24, 1, 3, 3)]


def test_one_axis_of_a_dense_kernel() -> None:
    # The other axis differs from pair to pair of channels.
    w = product(wild(1, 16, 5, 1), wild(24, 16, 1, 5, seed=1))
    model = build(
        'g (float[2,16,32,32] x) => (float[] y) { y = Conv<auto_pad="SAME_LOWER">(x, w) }', w=w
    )
    assert kernels(simplified(model)) == [(16, 1, 5, 1), (24, 16, 1, 5)]
    w = product(wild(24, 1, 1, 5), wild(24, 16, 5, 1, seed=1))
    model = build("g (float[2,16,32,32] x) => (float[] y) { y = Conv(x, w) }", w=w)
    assert kernels(simplified(model)) == [(24, 16, 5, 1), (24, 1, 1, 5)]


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_products_over_axes_and_groups(axes: int, groups: int, dtype: str) -> None:
    c, kernel, ones = 32, [3] * axes, [1] * axes
    w = product(wild(groups, 1, c, *kernel), wild(groups, c, c, *ones, seed=1))
    if dtype == "double":
        w = product(
            wild(groups, 1, c, *kernel).astype(float), wild(groups, c, c, *ones).astype(float)
        )
    sizes = ",".join(map(str, (4000,) if axes == 1 else (24, 22, 9)[:axes]))
    model = build(
        f"""
        g ({dtype}[N,{c * groups},{sizes}] x) => ({dtype}[] y)
        {{ y = Conv<group={groups}, pads={[1] * 2 * axes}, strides={[1, 2, 1][:axes]}>(x, w) }}
        """,
        w=w.reshape(c * groups, c, *kernel),
    )
    nodes = simplified(model)
    assert kernels(nodes) == [(c * groups, 1, *kernel), (c * groups, c, *ones)]
    assert [ir.attr(n, "group") for n in nodes] == [c * groups, groups]


def test_products_of_coarser_floats_are_not_those_of_finer_ones() -> None:
    w = product(wild(1, 32, 3, 3), wild(32, 32, 1, 1, seed=1))
    text = "g ({0}[1,32,24,24] x) => ({0}[] y) {{ y = Conv(x, w) }}"
    assert len(simplified(build(text.format("float"), w=w))) == 2
    assert declined(build(text.format("double"), w=w.astype(float))) == ""
    assert declined(build(text.format("float16"), w=np.ones((32, 32, 3, 3), np.float16))) == ""


def test_cube_becomes_three_convolutions() -> None:
    w = product(wild(4, 1, 7, 1, 1), wild(4, 1, 1, 7, 1, seed=1), wild(4, 1, 1, 1, 7, seed=2))
    model = build(
        "g (float[1,4,20,20,20] x) => (float[] y) { y = Conv<group=4, pads=[3,3,3,3,3,3]>(x, w) }",
        w=w,
    )
    shapes = sorted(kernels(simplified(model)))
    assert shapes == [(4, 1, 1, 1, 7), (4, 1, 1, 7, 1), (4, 1, 7, 1, 1)]


def test_channels_of_very_different_sizes_are_compared_by_their_own() -> None:
    w = product(wild(1, 16, 3, 3), wild(24, 16, 1, 1, seed=1))
    w[3] *= 1e-9
    text = "g (float[1,16,32,32] x) => (float[] y) { y = Conv(x, w) }"
    assert len(simplified(build(text, w=w))) == 2
    w[3, 5, 1, 1] *= 1.01
    assert declined(build(text, w=w)) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("float[1,8,H,W] x", "not known"),
        ("float[1,8,20,20] x", "two steps"),
    ],
)
def test_products_that_stay_whole(text: str, reason: str) -> None:
    model = build(
        f"g ({text}) => (float[] y) {{ y = Conv<group=8>(x, w) }}",
        w=np.full((8, 1, 3, 3), 1 / 9, np.float32),
    )
    assert reason in declined(model)


def test_in_the_branch_of_an_if() -> None:
    model = build(
        """
        g (bool p, float[1,8,32,32] x) => (float[] y)
        {
          y = If (p) <
            then_branch = t () => (float[1,8,32,32] u) { u = Conv<pads=[1,1,1,1]>(x, w) },
            else_branch = e () => (float[1,8,32,32] v) { v = Relu(x) }
          >
        }
        """,
        w=np.ones((8, 8, 3, 3), np.float32),
    )
    (node,) = simplified(model)
    then = next(g for g in ir.subgraphs(node) if g.name == "t")
    assert kernels(list(then)) == [(8, 1, 3, 3), (8, 8, 1, 1)]


@pytest.mark.parametrize("groups", [1, 32])
def test_the_gate_agrees(groups: int) -> None:
    # What the pass holds to be faster, the pass manager does too.
    size = 7
    model = build(
        f"""
        g (float[1,32,32,32] x) => (float[1,32,32,32] y)
        {{ y = Conv<group={groups}, pads=[3,3,3,3]>(x, w) }}
        """,
        w=np.ones((32, 32 // groups, size, size), np.float32),
    )
    result = PassManager(SimplifyConvolutions()).run(model)
    assert result.report.changed
    assert not result.report.reverted
    before = math.prod(kernels(list(model.graph))[0])
    assert sum(map(math.prod, kernels(list(result.model.graph)))) < before / 2

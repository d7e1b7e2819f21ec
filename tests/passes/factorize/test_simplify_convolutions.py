from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convolutions import (
    Array,
    build,
    declined,
    diagonal,
    inside,
    kernels,
    simplified,
    weight,
    wild,
)

from graphopt import PassManager, ir
from graphopt.passes.factorize import SimplifyConvolutions
from graphopt.testing import assert_equivalent, check_pass

# Kernels that are zero at their borders


def test_becomes_pointwise() -> None:
    center = inside(weight(4, 3, 3, 3), axes=(slice(1, 2), slice(1, 2)))
    check_pass(
        SimplifyConvolutions(),
        build(
            """
            g (float[N,3,H,W] x) => (float[N,4,H,W] y)
            { y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b) }
            """,
            w=center,
            b=weight(4),
        ),
        """
        graph(%x: float[N,3,H,W]) {
          const %b: float[4]
          const %w.1: float[4,3,1,1]
          %y = Conv(%x, %w.1, %b) {kernel_shape=[1, 1]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("attrs", "kernel", "pads"),
    [
        ("pads=[2,2,2,2]", (2, 1), (1, 1, 2, 0)),
        ("pads=[1,0,0,1]", (2, 3), (0, 0, 0, 0)),
        ("pads=[2,4,2,4], dilations=[1,2]", (2, 1), (1, 2, 2, 0)),
        ("pads=[2,2,2,2], strides=[2,3]", (2, 1), (1, 1, 2, 0)),
        ('auto_pad="SAME_UPPER"', (2, 1), (0, 0, 1, 0)),
        ('auto_pad="SAME_LOWER", strides=[2,1]', (2, 2), (0, 1, 0, 0)),
    ],
)
def test_cuts_as_far_as_it_pads(attrs: str, kernel: tuple[int, ...], pads: tuple[int, ...]) -> None:
    # Elements 1 and 2 of 3, and element 1 of 4: the last column is cut where padding is there.
    wide = inside(weight(4, 3, 3, 4), axes=(slice(1, 3), slice(1, 2)))
    model = build(f"g (float[2,3,8,9] x) => (float[] y) {{ y = Conv<{attrs}>(x, w) }}", w=wide)
    (node,) = simplified(model)
    assert kernels([node])[0][2:] == kernel
    assert (ir.attr(node, "pads", ()) or (0,) * 4) == pads
    assert ir.attr(node, "auto_pad") == "NOTSET"


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_cuts_along_every_axis(axes: int, groups: int, bias: bool) -> None:
    place = (slice(1, 2), slice(0, 2), slice(2, 3))[:axes]
    w = inside(weight(4, 4 // groups, *[3] * axes), axes=place)
    sizes = ",".join(map(str, (5, 6, 7)[:axes]))
    model = build(
        f"""
        g (float[2,4,{sizes}] x) => (float[] y)
        {{ y = Conv<pads={[2] * 2 * axes}, group={groups}>(x, w{", b" if bias else ""}) }}
        """,
        w=w,
        **({"b": weight(4)} if bias else {}),
    )
    assert kernels(simplified(model))[0][2:] == (1, 2, 1)[:axes]


def test_zeros_between_become_dilation() -> None:
    w = inside(weight(2, 3, 5, 3), axes=(slice(0, 5, 2), slice(0, 3, 2)))
    model = build(
        "g (float[1,3,9,9] x) => (float[] y) { y = Conv<dilations=[1,2], strides=[2,1]>(x, w) }",
        w=w,
    )
    (node,) = simplified(model)
    assert kernels([node])[0][2:] == (3, 2)
    assert ir.attr(node, "dilations") == (2, 4)


def test_padding_beyond_the_kernel_stays() -> None:
    w = inside(weight(2, 3, 3), axes=(slice(0, 1),))
    model = build("g (float[1,3,6] x) => (float[] y) { y = Conv<pads=[3,3]>(x, w) }", w=w)
    (node,) = simplified(model)
    assert kernels([node]) == [(2, 3, 1)]
    assert ir.attr(node, "pads") == (3, 1)


# Weights that are block-diagonal


def test_becomes_groups() -> None:
    check_pass(
        SimplifyConvolutions(),
        build(
            "g (float[N,8,H,W] x) => (float[N,12,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }",
            w=diagonal(12, 8, 4, 3, 3),
            b=weight(12),
        ),
        """
        graph(%x: float[N,8,H,W]) {
          const %b: float[12]
          const %w.1: float[12,2,3,3]
          %y = Conv(%x, %w.1, %b) {group=4, pads=[1, 1, 1, 1]}
          return %y
        }
        """,
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("outputs", "inputs", "groups", "blocks"),
    [(4, 4, 1, 4), (8, 4, 1, 4), (8, 4, 2, 4), (12, 4, 3, 4), (16, 8, 2, 8), (24, 6, 1, 6)],
)
def test_groups_are_split(axes: int, outputs: int, inputs: int, groups: int, blocks: int) -> None:
    w = diagonal(outputs, inputs, blocks, *[3] * axes, groups=groups)
    sizes = ",".join(map(str, (5, 6, 7)[:axes]))
    model = build(
        f"""
        g (float[2,{inputs * groups},{sizes}] x) => (float[] y)
        {{ y = Conv<group={groups}, auto_pad="SAME_UPPER", strides={[2] * axes}>(x, w) }}
        """,
        w=w,
    )
    (node,) = simplified(model)
    assert ir.attr(node, "group") == groups * blocks
    assert ir.attr(node, "auto_pad") == "SAME_UPPER"


@pytest.mark.parametrize(
    ("channels", "kernel", "groups"), [(8, 3, 1), (32, 3, 2), (24, 3, 1), (8, 1, 2), (2, 3, 2)]
)
def test_two_groups_of_some_sizes(channels: int, kernel: int, groups: int) -> None:
    w = diagonal(channels, channels, 2, kernel, kernel)
    text = f"g (float[1,{channels},7,7] x) => (float[] y) {{ y = Conv(x, w) }}"
    model = build(text, w=w)
    if groups == 1:
        assert "so few groups" in declined(model)
    else:
        (node,) = simplified(model)
        assert ir.attr(node, "group") == groups


def test_one_element_off_the_diagonal_keeps_blocks_together() -> None:
    w = diagonal(8, 8, 8, 3, 3)
    w[1, 0, 2, 1] = 1
    model = build("g (float[1,8,7,7] x) => (float[] y) { y = Conv(x, w) }", w=w)
    (node,) = simplified(model)
    assert ir.attr(node, "group") == 4
    w[0, 7, 0, 0] = 1
    model = build("g (float[1,8,7,7] x) => (float[] y) { y = Conv(x, w) }", w=w)
    assert declined(model) == ""


# Nothing to do, or not to be done


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float(dtype: type) -> None:
    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    w = inside(diagonal(8, 8, 4, 3, 3), axes=(slice(1, 2), slice(1, 2))).astype(dtype)
    model = build(
        f"g ({name}[N,8,H,W] x) => ({name}[] y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}", w=w
    )
    (node,) = simplified(model)
    assert kernels([node]) == [(8, 2, 1, 1)]


def test_weights_that_are_inputs() -> None:
    model = build("g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[] y) { y = Conv(x, w) }")
    assert "not constant" in declined(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    text = "g (float[1,8,9,9] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    w = inside(weight(8, 8, 3, 3), axes=(slice(1, 2), slice(1, 2)))
    w[0, 0, 1, 1] = value
    assert "not finite" in declined(build(text, w=w))
    w = diagonal(8, 8, 8, 3, 3)
    w[0, 0, 0, 0] = value
    assert "not finite" in declined(build(text, w=w))
    w = np.ones((8, 8, 3, 3), np.float32)
    w[0, 0, 0, 0] = value
    assert declined(build(text, w=w)) == ""


@pytest.mark.parametrize(
    "w",
    [
        inside(weight(8, 8, 3, 3), axes=(slice(1, 2), slice(1, 2))),
        diagonal(8, 8, 8, 3, 3),
        np.ones((8, 8, 3, 3), np.float32),
    ],
    ids=["border", "blocks", "product"],
)
def test_weights_that_others_use(w: Array) -> None:
    model = build(
        """
        g (float[1,8,32,32] x) => (float[] y, float[] z)
        { y = Conv<pads=[1,1,1,1]>(x, w) z = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) }
        """,
        w=w,
    )
    assert "others use the weight" in declined(model)


@pytest.mark.parametrize(
    ("attrs", "place", "reason"),
    [
        ("strides=[1,1]", slice(1, 2), "not padded"),
        ('auto_pad="VALID"', slice(1, 2), "not padded"),
        ('auto_pad="SAME_UPPER", strides=[2,2]', slice(1, 2), "auto_pad"),
        ("pads=[1,1,1,1]", slice(0, 0), "all weights are zero"),
        ("pads=[1,1,1,1]", slice(0, 3), ""),
    ],
)
def test_kernels_that_stay(attrs: str, place: slice, reason: str) -> None:
    model = build(
        f"g (float[1,3,H,W] x) => (float[] y) {{ y = Conv<{attrs}>(x, w) }}",
        w=inside(wild(4, 3, 3, 3), axes=(place, place)),
    )
    found = declined(model)
    assert (reason in found) if reason else not found


def test_zeros_are_not_computed_in_two_steps() -> None:
    model = build(
        "g (float[1,64,32,32] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        w=np.zeros((64, 64, 3, 3), np.float32),
    )
    assert "all weights are zero" in declined(model)


def test_random_weights() -> None:
    rng = np.random.default_rng(3)
    for seed in range(20):
        axes = int(rng.integers(1, 4))
        groups = int(rng.choice([1, 2, 4]))
        kernel = [int(k) for k in rng.integers(1, 5, axes)]
        pads = [int(p) for p in rng.integers(0, 4, 2 * axes)]
        mask = rng.random((8, 8 // groups, *kernel)) < 0.05
        w = wild(8, 8 // groups, *kernel, seed=seed) * mask
        strides, dilations = ([int(v) for v in rng.integers(1, 3, axes)] for _ in range(2))
        sizes = ",".join(map(str, (13, 12, 11)[:axes]))
        model = build(
            f"""
            g (float[N,8,{sizes}] x) => (float[] y)
            {{ y = Conv<group={groups}, pads={pads}, strides={strides}, dilations={dilations}>
               (x, w) }}
            """,
            w=w.astype(np.float32),
        )
        result = PassManager(SimplifyConvolutions(), objective=None).run(model)
        assert_equivalent(model, result.model)


@pytest.mark.parametrize(
    "name", ["digits_resnet", "digits_mobilenet", "digits_vgg", "digits_lstm", "digits_transformer"]
)
def test_trained_models_stay(models_dir: Path, name: str) -> None:
    result = PassManager(SimplifyConvolutions()).run(ir.load(models_dir / f"{name}.onnx"))
    assert not result.report.changed

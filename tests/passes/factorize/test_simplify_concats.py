from __future__ import annotations

import numpy as np
import pytest
from convolutions import (
    build,
    declined,
    kernels,
    simplified,
    weight,
    wild,
)

from graphopt.passes.factorize import SimplifyConvolutions
from graphopt.testing import check_pass

# Channels that need not be read

PART = np.array([2.0, -1.0], np.float32).reshape(1, 2, 1, 1)


def test_constant_and_unread_parts_of_a_concat() -> None:
    w = wild(4, 8, 3, 3)
    w[:, 2:4] = 0
    check_pass(
        SimplifyConvolutions(),
        build(
            """
            g (float[1,2,8,8] a, float[1,2,8,8] b, float[1,2,8,8] d) => (float[1,4,6,6] y)
            {
              e = Expand(c, s)
              x = Concat<axis=1>(a, b, e, d)
              y = Conv(x, w)
            }
            """,
            w=w,
            c=PART,
            s=np.array([1, 2, 8, 8]),
        ),
        """
        graph(%a: float[1,2,8,8], %b: float[1,2,8,8], %d: float[1,2,8,8]) {
          const %w.1: float[4,4,3,3]
          const %w.bias: float[4]
          %concat = Concat(%a, %d) {axis=1}
          %y = Conv(%concat, %w.1, %w.bias)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "x = Concat<axis=1>(a, c)",
        "x = Concat<axis=-2>(c, a)",
        "e = ConstantOfShape<value=float[1] {3.0}>(s) x = Concat<axis=1>(a, e)",
        "e = Expand(k, s) x = Concat<axis=1>(e, a)",
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_concat_of_one_part_goes(nodes: str, bias: bool) -> None:
    constants = {
        "c": np.broadcast_to(PART[..., 0], (1, 2, 9)).copy(),
        "k": np.float32(5),
        "s": np.array([1, 2, 9]),
        "b": weight(4),
    }
    if not bias:
        del constants["b"]
    used = {n: v for n, v in constants.items() if n == "b" or f"({n}" in nodes or f" {n})" in nodes}
    model = build(
        f"g (float[1,3,9] a) => (float[] y) {{ {nodes} y = Conv(x, w{', b' if bias else ''}) }}",
        w=wild(4, 5, 3),
        **used,
    )
    (node,) = simplified(model)
    assert kernels([node]) == [(4, 3, 3)]
    assert len(node.inputs) == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_zeros_may_be_padded_and_of_any_type(dtype: type) -> None:
    name = {np.float16: "float16", np.float64: "double"}[dtype]
    model = build(
        f"""
        g ({name}[1,3,9,9] a, {name}[4] b) => ({name}[] y)
        {{ x = Concat<axis=1>(a, c) y = Conv<pads=[1,1,1,1]>(x, w, b) }}
        """,
        w=wild(4, 5, 3, 3).astype(dtype),
        c=np.zeros((1, 2, 9, 9), dtype),
    )
    assert len(simplified(model)) == 1


@pytest.mark.parametrize(
    ("parts", "conv", "kind", "value", "reason"),
    [
        ("a, c", "Conv<pads=[1,1,1,1]>(x, w)", "float", 2.0, "pads the constants"),
        ("a, c", 'Conv<auto_pad="SAME_UPPER">(x, w)', "float", 2.0, "pads the constants"),
        ("a, c", "Conv(x, w)", "float16", 2.0, "16 bits"),
        ("a, c", "Conv(x, w)", "float", np.inf, "not finite"),
        ("a, c", "Conv(x, w)", "float", np.nan, ""),
        ("a, c", "Conv(x, w, q)", "float", 2.0, "bias is not constant"),
        ("c, c", "Conv(x, w)", "float", 2.0, "is constant"),
        ("a, a", "Conv(x, w)", "float", 2.0, ""),
        ("a, c", "Conv<group=2>(x, w)", "float", 2.0, "in each group"),
    ],
)
def test_parts_that_stay(parts: str, conv: str, kind: str, value: float, reason: str) -> None:
    dtype = np.float16 if kind == "float16" else np.float32
    model = build(
        f"""
        g ({kind}[1,2,6,6] a, {kind}[4] q) => ({kind}[] y)
        {{ x = Concat<axis=1>({parts}) y = {conv} }}
        """,
        w=wild(4, 2 if "group" in conv else 4, 3, 3).astype(dtype),
        **({"c": np.full((1, 2, 6, 6), value, dtype)} if "c" in parts else {}),
    )
    found = declined(model)
    assert (reason in found) if reason else not found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # Something else reads the concatenation, so it is computed anyway.
        ("float[1,2,6] a) => (float[] y, float[] z) { x = Concat<axis=1>(a, c) z = Relu(x)", ""),
        ("float[1,2,6] a) => (float[] y) { x = Concat<axis=2>(a, d)", ""),
        ("float[1,n,6] a) => (float[] y) { x = Concat<axis=1>(a, c)", "channels the parts"),
    ],
)
def test_other_concats_stay(text: str, reason: str) -> None:
    d = {"d": np.ones((1, 2, 6), np.float32)} if "d)" in text else {}
    c = {} if d else {"c": np.ones((1, 2, 6), np.float32)}
    model = build(f"g ({text} y = Conv(x, w) }}", w=wild(4, 2 if d else 4, 3), **d, **c)
    found = declined(model)
    assert (reason in found) if reason else not found


@pytest.mark.parametrize(("more", "stays"), [(2, True), (16, False), (18, False)])
def test_few_channels_that_leave_an_odd_number(more: int, stays: bool) -> None:
    model = build(
        f"""
        g (float[1,{32 - more},9] a) => (float[] y)
        {{ x = Concat<axis=1>(a, c) y = Conv(x, w) }}
        """,
        w=wild(4, 32, 3),
        c=np.ones((1, more, 9), np.float32),
    )
    if stays:
        assert "number that is slower" in declined(model)
    else:
        assert kernels(simplified(model)) == [(4, 32 - more, 3)]

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from graphopt import PassManager, ir
from graphopt.passes.layout import FuseConcats
from graphopt.testing import check_pass

Rewrite = Callable[..., ir.Model]
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_concat_of_concat() -> None:
    check_pass(
        FuseConcats(),
        f"""
        {HEAD}
        g (float[2,A] a, float[2,B] b, float[2,C] c) => (float[2,D] y)
        {{
          p = Concat<axis=1>(a, b)
          q = Concat<axis=-1>(p, c, a)
          r = Concat<axis=1>(b, q)
          y = Relu(r)
        }}
        """,
        """
        graph(%a: float[2,A], %b: float[2,B], %c: float[2,C]) {
          %concat = Concat(%b, %a, %b, %c, %a) {axis=1}
          %y = Relu(%concat)
          return %y
        }
        """,
    )


@pytest.mark.parametrize("inner", ["axis=1", "axis=-2"])
def test_axes_count_from_either_end(rewrite: Rewrite, inner: str) -> None:
    model = rewrite(
        FuseConcats(),
        f"""
        g (float[2,3,4] a) => (float[] y)
        {{ p = Concat<{inner}>(a, a) y = Concat<axis=-2>(a, p) }}
        """,
    )
    assert len(model.graph) == 1


def test_one_part(rewrite: Rewrite) -> None:
    model = rewrite(
        FuseConcats(), "g (float[2,3] a) => (float[2,3] y) {p = Concat<axis=0>(a) y = Relu(p)}"
    )
    assert [n.op_type for n in model.graph] == ["Relu"]


@pytest.mark.parametrize(
    ("opset", "split"),
    [
        (7, "Split<axis=1>(x)"),
        (12, "Split<axis=-1, split=[1,2,3]>(x)"),
        (13, "Split<axis=-1>(x, sizes)"),
        (17, "Split<axis=1>(x)"),
        (18, "Split<axis=1, num_outputs=3>(x)"),
    ],
)
def test_split_and_concat(rewrite: Rewrite, opset: int, split: str) -> None:
    model = rewrite(
        FuseConcats(),
        f"""
        g (float[2,6] x) => (float[2,6] y)
        <int64[3] sizes = {{1,2,3}}>
        {{ a, b, c = {split} p = Concat<axis=1>(a, b, c) y = Relu(p) }}
        """,
        opset=opset,
    )
    assert [n.op_type for n in model.graph] == ["Relu"]


def test_split_and_concat_of_unknown_size() -> None:
    check_pass(
        FuseConcats(),
        f"""
        {HEAD}
        g (float[N,M] x) => (float[N,M] y, float[N,K] z)
        {{
          a, b = Split<axis=1>(x)
          p = Concat<axis=1>(a, b)
          y = Relu(p)
          z = Neg(a)
        }}
        """,
        """
        graph(%x: float[N,M]) {
          %a, %b = Split(%x) {axis=1}
          %y = Relu(%x)
          %z = Neg(%a)
          return %y, %z
        }
        """,
    )


@pytest.mark.parametrize(
    ("opset", "split"),
    [
        (7, "Split<axis=1, split=[2,3]>(p)"),
        (13, "Split<axis=-1>(p, sizes)"),
        (18, "Split<axis=1>(p, sizes)"),
    ],
)
def test_concat_and_split(rewrite: Rewrite, opset: int, split: str) -> None:
    model = rewrite(
        FuseConcats(),
        f"""
        g (float[N,2] a, float[N,3] b) => (float[N,2] y, float[N,3] z)
        <int64[2] sizes = {{2,3}}>
        {{ p = Concat<axis=1>(a, b) c, d = {split} y = Relu(c) z = Neg(d) }}
        """,
        opset=opset,
    )
    assert [n.op_type for n in model.graph] == ["Relu", "Neg"]


def test_concat_and_split_into_equal_parts(rewrite: Rewrite) -> None:
    model = rewrite(
        FuseConcats(),
        """
        g (float[2,3] a, float[2,3] b) => (float[2,3] y, float[2,3] z, float[4,3] u)
        { p = Concat<axis=0>(a, b) c, d = Split<axis=0>(p) y = Relu(c) z = Neg(d) u = Exp(p) }
        """,
    )
    assert [n.op_type for n in model.graph] == ["Concat", "Relu", "Neg", "Exp"]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("p = Concat<axis=1>(a, b) y = Concat<axis=0>(p, p)", ""),
        ("p = Concat<axis=1>(a, b) y = Concat<axis=1>(p, p)", ""),
        ("p = Concat<axis=1>(a, b) y = Concat<axis=1>(p, a) z = Relu(p)", ""),
        ("p, q = Split<axis=1>(a) y = Concat<axis=1>(q, p)", ""),
        ("p, q = Split<axis=1>(a) y = Concat<axis=1>(p, q, p)", "all that the Split made"),
        ("p, q, r, s = Split<axis=1>(a) y = Concat<axis=1>(p, q)", "all that the Split made"),
        ("p, q = Split<axis=1>(a) y = Concat<axis=0>(p, q)", "another axis"),
        ("p = Concat<axis=1>(a, b) q, r = Split<axis=0>(p) y = Add(q, r)", "another axis"),
        ("p = Concat<axis=1>(a, b) q, r, s = Split<axis=1>(p) y = Sum(q, r, s)", "more or fewer"),
        ("p = Concat<axis=1>(a, b) q, r = Split<axis=1>(p) y = Add(q, r)", "differ"),
        ("p = Concat<axis=1>(a, b) q, r = Split<axis=1>(p, given) y = Relu(q)", "not constant"),
        ("p = Concat<axis=1>(a, a) y, z = Split<axis=1>(p)", "a graph output"),
    ],
)
def test_declines(declined: Callable[[Any], str], nodes: str, reason: str) -> None:
    outputs = "float[] y, float[] z" if "z" in nodes else "float[] y"
    text = f"""
        {HEAD}
        g (float[2,4] a, float[2,2] b, int64[2] given) => ({outputs})
        {{ {nodes} }}
        """
    assert reason in declined(check_pass(FuseConcats(), text, None))


@pytest.mark.parametrize(
    ("kind", "start", "end", "axis", "left"),
    [
        ("N,2", 0, 2, 1, "a"),
        ("N,2", 2, 5, 1, "b"),
        ("N,2", 2, 5, -1, "b"),
        ("N,2", 5, 2**63 - 1, 1, "a"),
        ("N,2", -2, 2**63 - 1, 1, "a"),
        ("N,2", -5, -2, 1, "b"),
    ],
)
def test_slice_of_concat(
    rewrite: Rewrite, kind: str, start: int, end: int, axis: int, left: str
) -> None:
    model = rewrite(
        FuseConcats(),
        f"""
        g (float[{kind}] a, float[N,3] b) => (float[] y)
        <int64[1] start = {{{start}}}, int64[1] end = {{{end}}}, int64[1] axis = {{{axis}}}>
        {{ p = Concat<axis=1>(a, b, a) q = Slice(p, start, end, axis) y = Relu(q) }}
        """,
    )
    (relu,) = model.graph
    assert relu.inputs[0] is not None
    assert relu.inputs[0].name == left


def test_slices_that_undo_a_concat_of_unknown_size() -> None:
    check_pass(
        FuseConcats(),
        """
        <ir_version: 4, opset_import: ["": 9]>
        g (float[N,2] a, float[N,M] b) => (float[N,2] y, float[N,M] z)
        {
          p = Concat<axis=1>(a, b)
          q = Slice<axes=[1], starts=[0], ends=[2]>(p)
          r = Slice<axes=[1], starts=[2], ends=[9223372036854775807]>(p)
          y = Relu(q)
          z = Neg(r)
        }
        """,
        """
        graph(%a: float[N,2], %b: float[N,M]) {
          %y = Relu(%a)
          %z = Neg(%b)
          return %y, %z
        }
        """,
    )


SLICE = "y = Slice(p, start, end, axes)"


@pytest.mark.parametrize(
    ("nodes", "numbers", "reason"),
    [
        (f"p = Concat<axis=1>(a, b) {SLICE}", ([0], [3], [1]), "just one"),
        (f"p = Concat<axis=1>(a, b) {SLICE}", ([1], [2], [1]), "just one"),
        (f"p = Concat<axis=1>(a, b) {SLICE}", ([0], [5], [1]), "just one"),
        (f"p = Concat<axis=1>(c, a) {SLICE}", ([0], [2], [1]), "just one"),
        (f"p = Concat<axis=1>(a, c, b, c) {SLICE}", ([2], [2**63 - 1], [1]), "just one"),
        (f"p = Concat<axis=1>(c, a) {SLICE}", ([-2], [2**63 - 1], [1]), "unknown size"),
        (f"p = Concat<axis=1>(a, b) {SLICE}", ([0], [2], [0]), "not slice along"),
        (f"p = Concat<axis=1>(a, b) {SLICE}", ([0, 0], [1, 2], [0, 1]), "not only"),
        (
            "p = Concat<axis=1>(a, b) y = Slice(p, start, end, axes, end)",
            ([0], [2], [1]),
            "in steps",
        ),
        ("p = Concat<axis=1>(a, b) y = Slice(p, given, end, axes)", ([0], [2], [1]), "not slice"),
    ],
)
def test_slices_of_more_or_less(
    declined: Callable[[Any], str], nodes: str, numbers: tuple[list[int], ...], reason: str
) -> None:
    constants = ", ".join(
        f"int64[{len(n)}] {name} = {{{','.join(map(str, n))}}}"
        for name, n in zip(("start", "end", "axes"), numbers, strict=True)
    )
    text = f"""
        {HEAD}
        g (float[2,2] a, float[2,3] b, float[2,C] c, int64[1] given) => (float[] y)
        <{constants}>
        {{ {nodes} }}
        """
    assert reason in declined(check_pass(FuseConcats(), text, None))


def test_concat_that_is_a_graph_output() -> None:
    text = f"""
        {HEAD}
        g (float[2,4] a) => (float[] p, float[] y)
        {{ p = Concat<axis=1>(a, a) y = Concat<axis=1>(p, a) }}
        """
    check_pass(FuseConcats(), text, None)


def test_concat_outside_of_a_branch() -> None:
    # Inlining it would compute in the branch what is computed once outside.
    text = f"""
        {HEAD}
        g (bool c, float[2,4] a) => (float[] y)
        {{
          p = Concat<axis=1>(a, a)
          y = If(c) <
            then_branch = t () => (float[2,12] u) {{ u = Concat<axis=1>(p, a) }},
            else_branch = e () => (float[2,4] v) {{ v = Relu(a) }}
          >
        }}
        """
    check_pass(FuseConcats(), text, None)


def test_a_long_chain_takes_linear_time() -> None:
    """As where an unrolled loop appends to what it has so far."""
    length = 2000
    chain = " ".join(f"t{i + 1} = Concat<axis=0>(t{i}, x)" for i in range(length))
    body = f"t0 = Neg(x) {chain} y = Abs(t{length})"
    text = f"{HEAD}\ng (float[1,2] x) => (float[a,b] y) {{ {body} }}"
    start = time.process_time()
    result = PassManager(FuseConcats(), on_mismatch="raise").run(ir.parse_text(text))
    assert time.process_time() - start < 10
    assert [len(n.inputs) for n in result.model.graph] == [1, length + 1, 1]

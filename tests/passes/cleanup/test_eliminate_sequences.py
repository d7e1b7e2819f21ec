from __future__ import annotations

import pytest

from graphopt.passes.cleanup import EliminateSequences
from graphopt.testing import check_pass

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.mark.parametrize(("index", "element"), [(0, "a"), (1, "x"), (-2, "a")])
def test_element(index: int, element: str) -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[N] x) => (float[N] y) <int64 i = {{{index}}}>
        {{ a = Exp(x) s = SequenceConstruct(a, x) e = SequenceAt(s, i) y = Sin(e) }}
        """,
        f"""
        graph(%x: float[N]) {{
          {"%a = Exp(%x)" if element == "a" else ""}
          %y = Sin(%{element})
          return %y
        }}
        """.replace("          \n", ""),
    )


@pytest.mark.parametrize("index", [2, -3])
def test_element_out_of_range(index: int) -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[N] x) => (float[N] y) <int64 i = {{{index}}}>
        {{ s = SequenceConstruct(x, x) e = SequenceAt(s, i) y = Sin(e) }}
        """,
        None,
    )


def test_computed_index() -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[N] x, int64 i) => (float[N] y) {{ s = SequenceConstruct(x) y = SequenceAt(s, i) }}
        """,
        None,
    )


def test_insertions_and_concat() -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[2,N] x) => (float[2,M] y)
        {{
            a = Exp(x)
            s0 = SequenceEmpty()
            s1 = SequenceInsert(s0, a)
            s2 = SequenceInsert(s1, x)
            y = ConcatFromSequence<axis=1>(s2)
        }}
        """,
        """
        graph(%x: float[2,N]) {
          %a = Exp(%x)
          %y = Concat(%a, %x) {axis=1}
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    "body",
    [
        "s = SequenceConstruct(x, x) t = SequenceInsert(s, x, i) y = ConcatFromSequence<axis=0>(t)",
        "s = SequenceConstruct(x, x) y = ConcatFromSequence<axis=0,new_axis=1>(s)",
        "s = SequenceConstruct(x, x) t = SequenceErase(s, i) y = ConcatFromSequence<axis=0>(t)",
    ],
)
def test_keeps(body: str) -> None:
    check_pass(
        EliminateSequences(),
        f"{HEAD} g (float[N] x) => (float[] y) <int64 i = {{0}}> {{ {body} }}",
        None,
    )


def test_a_sequence_that_is_used_otherwise() -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[N] x) => (float[N] y, z)
        {{
            s = SequenceConstruct(x)
            z = SequenceInsert(s, x)
            n = SequenceLength(s)
            m = Cast<to=1>(n)
            e = SequenceErase(s)
            k = SequenceLength(e)
            l = Cast<to=1>(k)
            o = Add(m, l)
            y = Add(x, o)
        }}
        """,
        """
        graph(%x: float[N]) {
          const %length: int64[] = 1
          %s = SequenceConstruct(%x)
          %z = SequenceInsert(%s, %x)
          %m = Cast(%length) {to=1}
          %e = SequenceErase(%s)
          %k = SequenceLength(%e)
          %l = Cast(%k) {to=1}
          %o = Add(%m, %l)
          %y = Add(%x, %o)
          return %y, %z
        }
        """,
    )


@pytest.mark.parametrize(
    ("split", "after"),
    [
        ("SplitToSequence<axis=1,keepdims=0>(x)", "Gather(%x, %index) {axis=1}"),
        ("SplitToSequence<axis=-1>(x)", "Slice(%x, %slice, %slice.1, %slice.2)"),
        ("SplitToSequence<axis=-1>(x, two)", "Slice(%x, %slice, %slice.1, %slice.2)"),
    ],
)
def test_element_of_split(split: str, after: str) -> None:
    size = 2 if "two" in split else 1
    consts = (
        ["const %index: int64[] = 1"]
        if "Gather" in after
        else [
            f"const %slice: int64[1] = [{size}]",
            f"const %slice.1: int64[1] = [{2 * size}]",
            "const %slice.2: int64[1] = [-1]",
        ]
    )
    listed = "\n          ".join(consts)
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[3,5] x) => (float[] y) <int64 i = {{1}}, int64 two = {{2}}>
        {{ s = {split} e = SequenceAt(s, i) y = Sin(e) }}
        """,
        f"""
        graph(%x: float[3,5]) {{
          {listed}
          %gone = {after}
          %y = Sin(%gone)
          return %y
        }}
        """.replace("%gone", "%gather" if "Gather" in after else "%slice.3"),
    )


def test_the_last_part_may_be_smaller() -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[5] x) => (float[] y) <int64 i = {{2}}, int64 two = {{2}}>
        {{ s = SplitToSequence<axis=0>(x, two) y = SequenceAt(s, i) }}
        """,
        """
        graph(%x: float[5]) {
          const %slice: int64[1] = [4]
          const %slice.1: int64[1] = [6]
          const %slice.2: int64[1] = [0]
          %y = Slice(%x, %slice, %slice.1, %slice.2)
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("index", "split"),
    [
        (-1, "SplitToSequence<axis=0>(x)"),
        (0, "SplitToSequence<axis=0>(x, sizes)"),
        (0, "SplitToSequence<axis=0>(x, given)"),
        (0, "SplitToSequence<axis=0>(unknown)"),
        (5, "SplitToSequence<axis=0>(x)"),
    ],
)
def test_splits_that_stay(index: int, split: str) -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[5] x, float[N] unknown, int64 given) => (float[] y)
        <int64 i = {{{index}}}, int64[2] sizes = {{2,3}}>
        {{ s = {split} y = SequenceAt(s, i) }}
        """,
        None,
    )


def test_an_index_in_a_vector() -> None:
    check_pass(
        EliminateSequences(),
        f"""
        {HEAD}
        g (float[N] x) => (float[N] y) <int64[1] i = {{1}}>
        {{ s = SequenceConstruct(x, x) e = SequenceAt(s, i) y = Sin(e) }}
        """,
        """
        graph(%x: float[N]) {
          %y = Sin(%x)
          return %y
        }
        """,
    )

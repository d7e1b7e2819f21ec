from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt.passes.layout import FuseTransposes
from graphopt.testing import check_pass

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("perm=[0,2,3,1]", "perm=[0,3,1,2]", None),
        ("perm=[1,0,2,3]", "perm=[1,0,2,3]", None),
        ("perm=[0,2,3,1]", "perm=[0,2,3,1]", "[0, 3, 1, 2]"),
        ("perm=[3,2,1,0]", "perm=[1,0,2,3]", "[2, 3, 1, 0]"),
    ],
)
def test_two(first: str, second: str, left: str | None) -> None:
    kept = f"%transpose = Transpose(%x) {{perm={left}}}\n          " if left else ""
    check_pass(
        FuseTransposes(),
        f"""
        {HEAD}
        g (float[A,B,3,D] x) => (float[P,Q,R,S] y)
        {{ a = Transpose<{first}>(x) b = Transpose<{second}>(a) y = Relu(b) }}
        """,
        f"""
        graph(%x: float[A,B,3,D]) {{
          {kept}%y = Relu({"%transpose" if left else "%x"})
          return %y
        }}
        """,
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Transpose(x) b = Transpose(a) y = Relu(b)",
        "a = Transpose(x) b = Transpose<perm=[2,1,0]>(a) y = Relu(b)",
        "a = Transpose<perm=[2,1,0]>(x) b = Transpose(a) y = Relu(b)",
        "a = Transpose<perm=[0,1,2]>(x) y = Relu(a)",
        "a = Transpose<perm=[1,2,0]>(x) b = Transpose<perm=[1,2,0]>(a)"
        "c = Transpose<perm=[1,2,0]>(b) y = Relu(c)",
    ],
)
@pytest.mark.parametrize("kind", ["float[A,B,C]", "float[2,3,4]"])
def test_none_is_left(nodes: str, kind: str) -> None:
    check_pass(
        FuseTransposes(),
        f"{HEAD} g ({kind} x) => ({kind} y) {{ {nodes} }}",
        f"""
        graph(%x: {kind}) {{
          %y = Relu(%x)
          return %y
        }}
        """,
    )


def test_rank_known_from_the_other() -> None:
    check_pass(
        FuseTransposes(),
        f"""
        {HEAD}
        g (float[] x) => (float[] y)
        {{ a = Transpose(x) b = Transpose<perm=[0,2,1]>(a) y = Relu(b) }}
        """,
        """
        graph(%x: float[*]) {
          %transpose = Transpose(%x) {perm=[2, 0, 1]}
          %y = Relu(%transpose)
          return %y
        }
        """,
        data=[{"x": np.zeros((2, 3, 4), np.float32)}],
    )


def test_inner_result_used_elsewhere() -> None:
    # The two cancel, so the outer one goes; the inner one stays for the other user.
    check_pass(
        FuseTransposes(),
        f"""
        {HEAD}
        g (float[2,3] x) => (float[2,3] y, float[3,2] z)
        {{ a = Transpose(x) b = Transpose(a) y = Relu(b) z = Neg(a) }}
        """,
        """
        graph(%x: float[2,3]) {
          %a = Transpose(%x)
          %y = Relu(%x)
          %z = Neg(%a)
          return %y, %z
        }
        """,
    )


def test_graph_output_keeps_its_name() -> None:
    check_pass(
        FuseTransposes(),
        f"{HEAD} g (float[2,3] x) => (float[2,3] y) {{ a = Transpose(x) y = Transpose(a) }}",
        """
        graph(%x: float[2,3]) {
          %y = Identity(%x)
          return %y
        }
        """,
    )


def test_captured_by_a_branch() -> None:
    check_pass(
        FuseTransposes(),
        f"""
        {HEAD}
        g (bool p, float[2,3] x) => (float[2,3] y)
        {{
          a = Transpose(x)
          b = Transpose(a)
          y = If(p) <
            then_branch = t () => (float[2,3] c) {{ c = Relu(b) }},
            else_branch = e () => (float[2,3] d) {{ d = Neg(b) }}
          >
        }}
        """,
        """
        graph(%p: bool[], %x: float[2,3]) {
          %y = If(%p)
            else_branch:
              graph() {
                %d = Neg(%x)
                return %d
              }
            then_branch:
              graph() {
                %c = Relu(%x)
                return %c
              }
          return %y
        }
        """,
    )


@pytest.mark.parametrize(
    ("inputs", "nodes", "reason"),
    [
        ("float[] x", "a = Transpose(x) y = Transpose(a)", "rank"),
        (
            "float[2,3,4] x",
            "a = Transpose<perm=[1,2,0]>(x) y = Transpose<perm=[1,0,2]>(a) z = Neg(a)",
            "something else",
        ),
        ("float[2,3] x", "a = Transpose(x) b = Relu(a) y = Transpose(b)", ""),
        ("float[2,3] x", "y = Transpose(x)", ""),
    ],
)
def test_declines(declined: Callable[[Any], str], inputs: str, nodes: str, reason: str) -> None:
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    text = f"{HEAD} g ({inputs}) => ({outputs}) {{ {nodes} }}"
    assert reason in declined(check_pass(FuseTransposes(), text, None))

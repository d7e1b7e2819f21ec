from __future__ import annotations

import pytest

from graphopt.passes.cleanup import EliminateIdentity
from graphopt.testing import check_pass

CHAIN = """
    graph(%x: float[N]) {
      %y = Relu(%x)
      return %y
    }
"""


def test_identities() -> None:
    check_pass(
        EliminateIdentity(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y)
        { a = Identity(x) b = Identity(a) c = Relu(b) y = Identity(c) }
        """,
        CHAIN,
    )


@pytest.mark.parametrize(
    ("opset", "dropout"),
    [
        (6, "Dropout<is_test=1>(x)"),
        (7, "Dropout(x)"),
        (10, "Dropout<ratio=0.9>(x)"),
        (13, "Dropout(x)"),
        (13, "Dropout(x, ratio)"),
        (13, "Dropout(x, ratio, no)"),
        (13, "Dropout(x, , no)"),
    ],
)
def test_dropout_in_inference(opset: int, dropout: str) -> None:
    check_pass(
        EliminateIdentity(),
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g (float[N] x) => (float[N] y) <float ratio = {{0.5}}, bool no = {{0}}>
        {{ a, mask = {dropout} y = Relu(a) }}
        """,
        CHAIN,
        numbers=opset >= 7,  # ONNX Runtime has no Dropout of opset 6
    )


@pytest.mark.parametrize(
    ("opset", "dropout"),
    [(6, "Dropout(x)"), (13, "Dropout(x, , yes)"), (13, "Dropout(x, , given)")],
)
def test_dropout_in_training(opset: int, dropout: str) -> None:
    result = check_pass(
        EliminateIdentity(),
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g (float[N] x, bool given) => (float[N] y) <bool yes = {{1}}>
        {{ a = {dropout} y = Relu(a) }}
        """,
        None,
    )
    declined = result.report.passes[0].declined
    assert declined == {"drop-dropout: it may run in training mode": 1}


@pytest.mark.parametrize("use", ["m = Not(mask)", "m = Identity(mask)"])
def test_mask_is_used(use: str) -> None:
    result = check_pass(
        EliminateIdentity(),
        f"""
        <ir_version: 8, opset_import: ["": 13]>
        g (float[N] x) => (float[N] y, bool[N] m) {{ a, mask = Dropout(x) y = Relu(a) {use} }}
        """,
        None
        if "Not" in use
        else """
        graph(%x: float[N]) {
          %a, %m = Dropout(%x)
          %y = Relu(%a)
          return %y, %m
        }
        """,
    )
    declined = result.report.passes[0].declined
    assert declined["drop-dropout: the mask is used"] == 1


def test_names_of_outputs() -> None:
    check_pass(
        EliminateIdentity(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y, float[N] z, float[2] k, float[N] w) <float[2] c = {1, 2}>
        { a = Relu(x) y = Identity(a) z = Identity(a) k = Identity(c) w = Identity(x) }
        """,
        """
        graph(%x: float[N]) {
          const %c: float[2]
          %y = Relu(%x)
          %z = Identity(%y)
          %k = Identity(%c)
          %w = Identity(%x)
          return %y, %z, %k, %w
        }
        """,
    )


def test_sequences() -> None:
    check_pass(
        EliminateIdentity(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y) <int64 i = {0}>
        { s = SequenceConstruct(x) t = Identity(s) y = SequenceAt(t, i) }
        """,
        """
        graph(%x: float[N]) {
          const %i: int64[] = 0
          %s = SequenceConstruct(%x)
          %y = SequenceAt(%s, %i)
          return %y
        }
        """,
    )


def test_subgraphs() -> None:
    """The branch output that is a captured value keeps its Identity; what it captures loses one."""
    check_pass(
        EliminateIdentity(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, bool c) => (float[N] y)
        {
            a = Identity(x)
            y = If (c) <
                then_branch = t () => (float[N] p) { p = Identity(a) },
                else_branch = e () => (float[N] r) { q = Relu(a) r = Identity(q) }
            >
        }
        """,
        """
        graph(%x: float[N], %c: bool[]) {
          %y = If(%c)
            else_branch:
              graph() {
                %r = Relu(%x)
                return %r
              }
            then_branch:
              graph() {
                %p = Identity(%x)
                return %p
              }
          return %y
        }
        """,
    )

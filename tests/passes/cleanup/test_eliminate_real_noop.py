from __future__ import annotations

import pytest

from graphopt.passes.cleanup import EliminateRealNoop
from graphopt.testing import check_pass


def model(kind: str, consts: str, body: str, *, opset: int = 18, out: str | None = None) -> str:
    return f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g ({kind} x) => ({out or kind} y) <{consts}>
        {{
            {body}
            y = Identity(t)
        }}
    """


@pytest.mark.parametrize(
    ("opset", "kind", "consts", "body"),
    [
        (18, "float[N]", "float k = {0}", "t = Add(x, k)"),
        (18, "float[N,4]", "float[4] k = {0,-0.0,0,0}", "t = Add(k, x)"),
        (18, "float[N,4]", "float[1,1] k = {-0.0}", "t = Sub(x, k)"),
        (18, "float[N]", "", "t = Clip(x)"),
        (18, "float16[N]", "", "t = Clip(x)"),
        (18, "double[N]", "double h = {1.7976931348623157e308}", "t = Clip(x, , h)"),
        (18, "float[N]", "float l = {-3.4028234663852886e38}", "t = Clip(x, l)"),
        (10, "float[N]", "", "t = Clip(x)"),
        (18, "float[N,3,1,1]", "", "t = GlobalAveragePool(x)"),
        (18, "float[N,3,1,1]", "", "t = GlobalMaxPool(x)"),
    ],
)
def test_removes(opset: int, kind: str, consts: str, body: str) -> None:
    check_pass(
        EliminateRealNoop(),
        model(kind, consts, body, opset=opset),
        f"""
        graph(%x: {kind}) {{
          %y = Identity(%x)
          return %y
        }}
        """,
    )


@pytest.mark.parametrize(
    ("opset", "kind", "consts", "body", "out"),
    [
        (18, "float[N]", "float[2] k = {0,1}", "t = Add(x, k)", "float[A]"),
        (18, "float[N]", "float[2] k = {0,0}", "t = Add(x, k)", "float[A]"),
        (18, "float[N]", "float[1,1] k = {0}", "t = Add(x, k)", "float[1,N]"),
        (18, "float[N]", "float k = {0}", "t = Sub(k, x)", "float[N]"),
        (18, "float[N]", "float h = {6}", "t = Clip(x, , h)", "float[N]"),
        (18, "float[N]", "float l = {0}", "t = Clip(x, l)", "float[N]"),
        (10, "float[N]", "", "t = Clip<min=0.0>(x)", "float[N]"),
        (18, "int32[N]", "", "t = Clip(x)", "int32[N]"),
        (18, "float[N,3,1,2]", "", "t = GlobalAveragePool(x)", "float[N,3,1,1]"),
        (18, "float[N,3,H,W]", "", "t = GlobalMaxPool(x)", "float[N,3,1,1]"),
    ],
)
def test_keeps(opset: int, kind: str, consts: str, body: str, out: str) -> None:
    check_pass(EliminateRealNoop(), model(kind, consts, body, opset=opset, out=out), None)


def test_computed_bounds() -> None:
    check_pass(
        EliminateRealNoop(),
        """
        <ir_version: 8, opset_import: ["": 18]>
        g (float[N] x, float h) => (float[N] y) { t = Clip(x, , h) y = Identity(t) }
        """,
        None,
    )

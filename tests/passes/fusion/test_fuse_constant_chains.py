from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.fusion import FuseConstantChains
from graphopt.testing import check_pass

Build = Callable[..., ir.Model]
Rewrite = Callable[..., ir.Model]


def test_factors(build: Build) -> None:
    result = check_pass(
        FuseConstantChains(),
        build(
            "g (float[N] x) => (float[N] y) { a = Mul(x, p) b = Div(a, q) y = Relu(b) }",
            p=np.float32(3),
            q=np.float32(8),
        ),
        """
        graph(%x: float[N]) {
          const %p.1: float[]
          %mul = Mul(%x, %p.1)
          %y = Relu(%mul)
          return %y
        }
        """,
    )
    (constant,) = result.model.graph.initializers.values()
    assert ir.array(constant) == np.float32(0.375)


def test_summands(build: Build) -> None:
    result = check_pass(
        FuseConstantChains(),
        build(
            "g (float[N] x) => (float[N] y) { a = Sub(p, x) b = Sub(q, a) y = Add(b, p) }",
            p=np.float32(3),
            q=np.float32(8),
        ),
        """
        graph(%x: float[N]) {
          const %p.1.2: float[]
          %y = Add(%x, %p.1.2)
          return %y
        }
        """,
    )
    (constant,) = result.model.graph.initializers.values()
    assert ir.array(constant) == np.float32(8)


def test_divisors_stay_a_division(build: Build) -> None:
    check_pass(
        FuseConstantChains(),
        build(
            "g (float[N] x) => (float[N] y) { a = Div(x, p) y = Div(a, q) }",
            p=np.float32(3),
            q=np.float32(7),
        ),
        """
        graph(%x: float[N]) {
          const %p.1: float[]
          %y = Div(%x, %p.1)
          return %y
        }
        """,
    )


SUMS = ["Add({}, {})", "Add({1}, {0})", "Sub({}, {})", "Sub({1}, {0})"]
PRODUCTS = ["Mul({}, {})", "Mul({1}, {0})", "Div({}, {})"]
PAIRS = [(a, b) for kind in (SUMS, PRODUCTS) for a in kind for b in kind]


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("shapes", [((), ()), ((), (3,)), ((2, 3), (3,)), ((1, 2, 1), ())])
@pytest.mark.parametrize("kind", [("float", np.float32), ("double", np.float64)])
def test_every_pair(
    build: Build,
    rewrite: Rewrite,
    first: str,
    second: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    kind: tuple[str, Any],
) -> None:
    name, dtype = kind
    p, q = (
        np.asarray(np.linspace(*r, int(np.prod(s))), dtype).reshape(s)
        for r, s in zip(((1, 2), (5, 7)), shapes, strict=True)
    )
    model = build(
        f"g ({name}[3] x) => ({name}[] y) {{ a = {first.format('x', 'p')} "
        f"y = {second.format('a', 'q')} }}",
        p=p,
        q=q,
    )
    assert len(rewrite(FuseConstantChains(), model).graph) == 1


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ("a = Add(x, p) y = Sub(a, p)", {"p": np.float32(12582912)}, "cancel"),
        (
            "a = Add(x, p) y = Add(a, q)",
            {"p": np.float32(1000), "q": np.float32(-999.5)},
            "cancel",
        ),
        ("a = Mul(x, p) y = Mul(a, p)", {"p": np.float32(1e30)}, "not finite"),
        ("a = Mul(x, p) y = Mul(a, p)", {"p": np.float32(1e-30)}, "precision"),
        ("a = Div(x, p) y = Mul(a, p)", {"p": np.float32(0)}, "not finite"),
        ("a = Div(p, x) y = Mul(a, p)", {"p": np.float32(2)}, "divides by a variable"),
        (
            "a = Mul(x, p) y = Mul(a, q)",
            {"p": np.ones((30, 1), np.float32), "q": np.ones(30, np.float32)},
            "larger",
        ),
        (
            "a = Mul(x, p) y = Mul(a, q)",  # it fails, if it ever runs
            {"p": np.ones((2, 1), np.float32), "q": np.ones((3, 1), np.float32)},
            "do not fit",
        ),
        ("a = Mul(x, p) y = Add(a, p)", {"p": np.float32(2)}, ""),
        ("a = Mul(x, x) y = Mul(a, p)", {"p": np.float32(2)}, ""),
        ("a = Mul(x, p) y = Mul(a, p) z = Relu(a)", {"p": np.float32(2)}, ""),
        (
            "e = Erf(x) f = Add(e, p) g = Mul(x, f) a = Mul(g, q) y = Mul(a, q)",
            {"p": np.float32(1), "q": np.float32(0.5)},
            "Gelu",
        ),
    ],
)
def test_declines(
    build: Build,
    declined: Callable[[Any], str],
    nodes: str,
    constants: dict[str, Any],
    reason: str,
) -> None:
    outputs = "float[] y, float[] z" if re.search("z =", nodes) else "float[] y"
    model = build(f"g (float[1] x) => ({outputs}) {{ {nodes} }}", **constants)
    assert reason in declined(check_pass(FuseConstantChains(), model, None))


def test_integers(build: Build, declined: Callable[[Any], str]) -> None:
    model = build("g (int32[N] x) => (int32[N] y) { a = Add(x, p) y = Add(a, p) }", p=np.int32(2))
    assert "integers" in declined(check_pass(FuseConstantChains(), model, None))

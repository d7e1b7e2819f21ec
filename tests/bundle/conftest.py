"""Models that tests of exports share."""

from __future__ import annotations

import pytest

from graphopt import ir


@pytest.fixture
def model() -> ir.Model:
    """Two inputs that share a symbol, a free image size."""
    return ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,H,W] x, float[N,?] s) => (float[N,K] y)
        { p = GlobalAveragePool(x) f = Flatten(p) t = ReduceSum(s) y = Mul(f, t) }
    """)


@pytest.fixture
def plain() -> ir.Model:
    """A model that every target takes once its batch is known."""
    return ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }
    """)

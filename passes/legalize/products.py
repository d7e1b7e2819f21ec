"""Gemm and fused convolutions in plainer forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Var, ir, rule
from graphopt.passes.legalize.activations import activation
from graphopt.passes.legalize.spatial import reshaped

__all__ = ["RULES"]

_a, _b, _c = Var(), Var(), Var(optional=True)
_w, _bias, _z = Var(), Var(optional=True), Var(optional=True)


@rule(Op("Gemm", _a, _b, _c), benefit=2)
def normalize_gemm(m: Match, rw: Rewriter) -> Replacement:
    """Make alpha and beta 1 and transA 0; constant operands take them in."""
    node = m.root
    alpha, beta = float(ir.attr(node, "alpha", 1.0)), float(ir.attr(node, "beta", 1.0))
    flipped = bool(ir.attr(node, "transA", 0))
    a, b, c = m[_a], m[_b], m.find(_c)
    if alpha == 1.0 and (beta == 1.0 or c is None) and not flipped:
        return None
    dtype = a.dtype
    if dtype is None or not dtype.is_floating_point():
        return m.fail("it does not compute in floating point")
    if flipped:
        a = rw.op("Transpose", a, perm=[1, 0])
    if alpha != 1.0:
        if ir.const(b) is not None:
            b = _scaled(rw, b, alpha, dtype)
        else:
            a = _scaled(rw, a, alpha, dtype)
    if c is not None and beta != 1.0:
        c = _scaled(rw, c, beta, dtype)
    return rw.op("Gemm", a, b, c, like=node, alpha=None, beta=None, transA=None)


@rule(Op("Gemm", _a, _b, _c, alpha=1.0, beta=1.0, transA=0))
def gemm_to_matmul(m: Match, rw: Rewriter) -> Replacement:
    """MatMul and Add."""
    b = m[_b]
    if ir.attr(m.root, "transB", 0):
        data = ir.array(b)
        if data is not None:
            b = rw.const(np.ascontiguousarray(data.T), b.name or "weight")
        else:
            b = rw.op("Transpose", b, perm=[1, 0])
    product = rw.op("MatMul", m[_a], b)
    c = m.find(_c)
    return product if c is None else rw.op("Add", product, c)


@rule(Op("MatMul", _a, _b))
def flatten_matmul(m: Match, rw: Rewriter) -> Replacement:
    """A stack of matrices times one matrix, as one product of two matrices."""
    a, b = ir.static_shape(m[_a]), ir.static_shape(m[_b])
    if a is None or b is None or len(b) != 2 or len(a) < 3 or 0 in a:
        return m.fail("it is not a stack of matrices times one matrix, of known shapes")
    product = rw.op("MatMul", reshaped(rw, m[_a], (math.prod(a[:-1]), a[-1])), m[_b])
    return reshaped(rw, product, (*a[:-1], b[1]))


def _scaled(rw: Rewriter, value: ir.Value, factor: float, dtype: ir.DataType) -> ir.Value:
    data = ir.array(value)
    if data is not None:
        wide: np.ndarray[Any, Any] = data.astype(np.float64) * factor
        return rw.const(wide.astype(data.dtype), value.name or "weight")
    return rw.op("Mul", value, rw.const(np.array(factor, dtype.numpy()), "factor"))


@rule(Op("FusedConv", _a, _w, _bias, _z, domain="com.microsoft"))
def split_fused_conv(m: Match, rw: Rewriter) -> Replacement:
    """Conv, the addition, and the activation."""
    node = m.root
    kind = str(ir.attr(node, "activation", ""))
    params = tuple(float(p) for p in ir.attr(node, "activation_params", ()))
    out = rw.op(
        "Conv", m[_a], m[_w], m.find(_bias), like=node, activation=None, activation_params=None
    )
    added = m.find(_z)
    if added is not None:
        out = rw.op("Add", out, added)
    dtype = m[_a].dtype or m[_w].dtype
    if dtype is None:
        return m.fail("its element type is not known")
    found = activation(rw, out, kind, params, dtype)
    return m.fail(found) if isinstance(found, str) else found


RULES = (normalize_gemm, gemm_to_matmul, flatten_matmul, split_fused_conv)

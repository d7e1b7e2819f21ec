"""Activation functions in terms of simpler ones."""

from __future__ import annotations

import math

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Var, ir, rule

__all__ = ["RULES", "activation"]

_x, _low, _high = Var(), Var(optional=True), Var(optional=True)
_RELU6 = 1e-6  # relative: slopes of 1/6 are stored as float32


def _scalar(rw: Rewriter, like: ir.Value, number: float, name: str) -> ir.Value | None:
    """A constant of the type of another value; None where that is no floating-point type."""
    if like.dtype is None or not like.dtype.is_floating_point():
        return None
    return rw.const(np.array(number, like.dtype.numpy()), name)


def _clip(rw: Rewriter, x: ir.Value, low: ir.Value, high: ir.Value, span: float) -> ir.Value:
    if ir.opset(rw.model) >= 11:
        return rw.op("Clip", x, low, high)
    return rw.op("Clip", x, min=0.0, max=span)


@rule(Op("HardSwish", _x))
def lower_hard_swish(m: Match, rw: Rewriter) -> Replacement:
    """``x * clip(x + 3, 0, 6) / 6``."""
    gate = _relu6_gate(m, rw, m[_x])
    return None if gate is None else rw.op("Mul", m[_x], gate)


@rule(Op("HardSigmoid", _x))
def lower_hard_sigmoid(m: Match, rw: Rewriter) -> Replacement:
    """``clip(x + 3, 0, 6) / 6`` where it is that; else ``max(min(alpha * x + beta, 1), 0)``."""
    x = m[_x]
    alpha, beta = ir.attr(m.root, "alpha", 0.2), ir.attr(m.root, "beta", 0.5)
    if abs(6 * alpha - 1) <= _RELU6 and beta == 0.5:
        return _relu6_gate(m, rw, x)
    slope, shift = _scalar(rw, x, alpha, "alpha"), _scalar(rw, x, beta, "beta")
    one, zero = _scalar(rw, x, 1.0, "one"), _scalar(rw, x, 0.0, "zero")
    if slope is None or shift is None or one is None or zero is None:
        return m.fail("the type of its input is not known")
    line = rw.op("Add", rw.op("Mul", x, slope), shift)
    return rw.op("Max", rw.op("Min", line, one), zero)


def _relu6_gate(m: Match, rw: Rewriter, x: ir.Value) -> ir.Value | None:
    three, zero, six, sixth = (
        _scalar(rw, x, number, name)
        for number, name in ((3.0, "three"), (0.0, "zero"), (6.0, "six"), (1 / 6, "sixth"))
    )
    if three is None or zero is None or six is None or sixth is None:
        return m.fail("the type of its input is not known")
    return rw.op("Mul", _clip(rw, rw.op("Add", x, three), zero, six, 6.0), sixth)


@rule(Op("Clip", _x, _low, _high))
def lower_clip(m: Match, rw: Rewriter) -> Replacement:
    """Relu, or Min and Max."""
    x, low, high = m[_x], m.find(_low), m.find(_high)
    if ir.opset(rw.model) < 11:
        low, high = (
            _scalar(rw, x, float(m.root.attributes[name].value), name)
            if name in m.root.attributes
            else None
            for name in ("min", "max")
        )
    bound = ir.array(low)
    if high is None and bound is not None and bound.item() == 0:
        return rw.op("Relu", x)
    if high is not None:
        x = rw.op("Min", x, high)
    if low is not None:
        x = rw.op("Max", x, low)
    return x


@rule(Op("Softplus", _x))
def lower_softplus(m: Match, rw: Rewriter) -> Replacement:
    """``max(x, 0) + log(1 + exp(-|x|))``; the standard's definition overflows."""
    one = _scalar(rw, m[_x], 1.0, "one")
    if one is None:
        return m.fail("the type of its input is not known")
    decay = rw.op("Exp", rw.op("Neg", rw.op("Abs", m[_x])))
    return rw.op("Add", rw.op("Relu", m[_x]), rw.op("Log", rw.op("Add", decay, one)))


@rule(Op("Reciprocal", _x))
def lower_reciprocal(m: Match, rw: Rewriter) -> Replacement:
    """``1 / x``."""
    one = _scalar(rw, m[_x], 1.0, "one")
    if one is None:
        return m.fail("the type of its input is not known")
    return rw.op("Div", one, m[_x])


@rule(Op("Gelu", _x, domain="com.microsoft"))
def lower_contrib_gelu(m: Match, rw: Rewriter) -> Replacement:
    """The standard operator, or its definition where the opset has none."""
    if ir.opset(m.root) >= 20:
        return rw.op("Gelu", m[_x])
    one, half = _scalar(rw, m[_x], 1.0, "one"), _scalar(rw, m[_x], 0.5, "half")
    root = _scalar(rw, m[_x], math.sqrt(2), "root")
    if one is None or half is None or root is None:
        return m.fail("the type of its input is not known")
    phi = rw.op("Add", rw.op("Erf", rw.op("Div", m[_x], root)), one)
    return rw.op("Mul", rw.op("Mul", m[_x], half), phi)


@rule(Op("QuickGelu", _x, domain="com.microsoft"))
def lower_quick_gelu(m: Match, rw: Rewriter) -> Replacement:
    """``x * sigmoid(alpha * x)``."""
    alpha = _scalar(rw, m[_x], ir.attr(m.root, "alpha", 1.702), "alpha")
    if alpha is None:
        return m.fail("the type of its input is not known")
    return rw.op("Mul", m[_x], rw.op("Sigmoid", rw.op("Mul", m[_x], alpha)))


def activation(
    rw: Rewriter, x: ir.Value, kind: str, params: tuple[float, ...], dtype: ir.DataType
) -> ir.Value | str:
    """An activation as fused operators of ONNX Runtime name it, or why there is none."""
    if kind in ("", "Relu", "Sigmoid", "Tanh"):
        return rw.op(kind, x) if kind else x
    if kind == "LeakyRelu":
        return rw.op(kind, x, alpha=params[0] if params else 0.01)
    if kind == "HardSigmoid":
        alpha, beta = params if len(params) == 2 else (0.2, 0.5)
        return rw.op(kind, x, alpha=alpha, beta=beta)
    if kind == "Clip" and len(params) == 2:
        if ir.opset(rw.model) < 11:
            return rw.op(kind, x, min=params[0], max=params[1])
        low, high = (
            rw.const(np.array(p, dtype.numpy()), name)
            for p, name in zip(params, ("low", "high"), strict=True)
        )
        return rw.op(kind, x, low, high)
    return f"its activation {kind!r} is not known"


RULES = (
    lower_hard_swish,
    lower_hard_sigmoid,
    lower_clip,
    lower_softplus,
    lower_reciprocal,
    lower_contrib_gelu,
    lower_quick_gelu,
)

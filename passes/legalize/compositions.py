"""Normalizations and functions of many arguments in terms of simpler operators."""

from __future__ import annotations

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Var, ir, rule
from graphopt.passes.legalize.spatial import with_axes

__all__ = ["RULES"]

_x, _scale, _bias = Var(), Var(), Var(optional=True)
_PAIRWISE = {"Sum": "Add", "Max": "Max", "Min": "Min"}


@rule(Op("LayerNormalization", _x, _scale, _bias))
def lower_layer_normalization(m: Match, rw: Rewriter) -> Replacement:
    """Mean and variance, spelled out: the standard's own definition loses digits."""
    node = m.root
    rank = ir.rank(m[_x])
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        return m.fail("mean or deviation are used")
    if rank is None:
        return m.fail("the rank of its input is not known")
    if m[_x].dtype != ir.DataType.FLOAT:
        return m.fail("it computes in another type than it is given")
    first = int(ir.attr(node, "axis", -1)) % rank
    axes = list(range(first, rank))
    centred = rw.op("Sub", m[_x], with_axes(rw, "ReduceMean", m[_x], axes, 18))
    variance = with_axes(rw, "ReduceMean", rw.op("Mul", centred, centred), axes, 18)
    epsilon = rw.const(np.array(ir.attr(node, "epsilon", 1e-5), np.float32), "epsilon")
    out = rw.op("Div", centred, rw.op("Sqrt", rw.op("Add", variance, epsilon)))
    out = rw.op("Mul", out, m[_scale])
    bias = m.find(_bias)
    return out if bias is None else rw.op("Add", out, bias)


@rule(Op(tuple(_PAIRWISE), variadic=True))
def pair_arguments(m: Match, rw: Rewriter) -> Replacement:
    """An operator of many arguments as several of two."""
    node = m.root
    values = [v for v in node.inputs if v is not None]
    op = _PAIRWISE[node.op_type]
    if op == node.op_type and len(values) == 2:
        return None
    out = values[0]
    for value in values[1:]:
        out = rw.op(op, out, value)
    return out


@rule(Op("Pow", _x, _scale))
def lower_power(m: Match, rw: Rewriter) -> Replacement:
    """Squares and square roots."""
    power = ir.array(m[_scale])
    if power is None or power.size != 1:
        return m.fail("its exponent is not one constant")
    if ir.rank(m[_x]) is None or power.ndim > (ir.rank(m[_x]) or 0):
        return m.fail("its exponent adds dimensions")
    if power.item() == 2:
        return rw.op("Mul", m[_x], m[_x])
    if power.item() == 0.5:
        return rw.op("Sqrt", m[_x])
    return None


RULES = (lower_layer_normalization, pair_arguments, lower_power)

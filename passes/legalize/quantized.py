"""Operators that choose among elements, on integers instead of between conversions of them."""

from __future__ import annotations

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Var, ir, rule

__all__ = ["RULES"]

_integers, _scale, _zero = Var(), Var(), Var(optional=True)
_float = Op("DequantizeLinear", _integers, _scale, _zero, shared=True)


@rule(Op("MaxPool", _float))
def pool_integers(m: Match, rw: Rewriter) -> Replacement:
    """``MaxPool(Q(DQ(x)))`` for ``Q(MaxPool(DQ(x)))``: rounding keeps the order of elements."""
    node = m.root
    users = list(node.outputs[0].uses())
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return m.fail("something else uses its result")
    after = users[0].node
    if after.op_type != "QuantizeLinear" or after.domain or users[0].idx:
        return None
    if len(node.outputs) > 1:
        return m.fail("it has a second output, of positions")
    if ir.opset(node) < 12 or after.outputs[0].dtype not in (ir.DataType.UINT8, ir.DataType.INT8):
        return m.fail("it pools no such integers at this opset")
    scale, zero = after.inputs[1], after.inputs[2] if len(after.inputs) > 2 else None
    if not _is_positive(scale) or not _is_positive(m[_scale]):
        return m.fail("its scales are not constant, positive and one")
    if _same(scale, m[_scale]) and _same(zero, m.find(_zero)):
        x = m[_integers]
    else:
        x = rw.op("QuantizeLinear", m[_float].outputs[0], scale, zero, like=after)
    rw.replace(after.outputs[0], rw.op("MaxPool", x, like=node))
    rw.erase(after)
    return node.outputs[0]


def _is_positive(scale: ir.Value | None) -> bool:
    data = ir.array(scale)
    return data is not None and data.size == 1 and bool(data > 0)


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    one, other = ir.array(a), ir.array(b)
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and np.array_equal(one, other)


RULES = (pool_integers,)

"""Remove nodes that do nothing to real numbers."""

from __future__ import annotations

import numpy as np

from graphopt import Const, Exactness, Match, Op, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.cleanup.sameness import keeps_shape, same_shape, uniform

__all__ = ["EliminateRealNoop"]

x, c = Var(), Const()


@rule(Op(("Add", "Sub"), x, c))
def noop_zero(m: Match, rw: Rewriter) -> ir.Value | None:
    """Plus or minus zero of either sign."""
    constant = ir.const(m.value(c))
    if constant is None or not keeps_shape(m[x], tuple(constant.shape.numpy())):
        return m.fail("it may broadcast")
    return m[x] if uniform(m[c], 0) else m.fail("the constant is not 0")


@rule(Op("Clip", x, variadic=True))
def noop_clip_real(m: Match, rw: Rewriter) -> ir.Value | None:
    """Bounds that no finite number exceeds."""
    dtype = m[x].dtype
    if dtype is None or not dtype.is_floating_point():
        return m.fail("not a floating-point type")
    for index, name, sign in ((1, "min", -1), (2, "max", 1)):
        if ir.opset(m.root) < 11:
            bound = np.asarray(ir.attr(m.root, name))
        elif index >= len(m.root.inputs) or m.root.inputs[index] is None:
            continue
        else:
            found = ir.array(m.root.inputs[index])
            if found is None:
                return m.fail("the bounds are computed")
            bound = found
        # A bound that is infinite, or the largest number of the type.
        with np.errstate(over="ignore"):
            beyond = sign * bound.astype(np.float64) >= _largest(dtype)
        if not beyond.all():
            return m.fail("it may cut off")
    return m[x]


def _largest(dtype: ir.DataType) -> float:
    return float(dtype.max)


@rule(Op(("GlobalAveragePool", "GlobalMaxPool"), x))
def noop_global_pool(m: Match, rw: Rewriter) -> ir.Value | None:
    """Over a single element."""
    return m[x] if same_shape(m[x], m.root.outputs[0]) else m.fail("it may pool")


class EliminateRealNoop(RewritePass):
    """Remove nodes that do nothing to real numbers, though they may to -0.0 and to infinity.

    What it does: Adding and subtracting a floating-point zero (-0.0 + 0.0 is 0.0); Clip whose
    bounds no finite number exceeds (it cuts infinity); global pooling of a single element.

    Exactness: Rounding. Every finite number stays what it is, but for the sign of zero.

    Needs: Types and shapes as inferred. Opset 7, where broadcasting became what it is.

    Options: None.

    Example: ``const zero = 0; a = Add(x, zero); y = Relu(a)`` -> ``y = Relu(x)``

    Declines when: The constant may broadcast the other operand, or a bound may be exceeded.

    References: IEEE 754-2019, 6.3 (the sign bit); onnx-optimizer's eliminate_nop_with_unit.
    """

    name = "eliminate-real-noop"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (noop_zero, noop_clip_real, noop_global_pool)

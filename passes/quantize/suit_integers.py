"""Operators written as others that the target computes on integers."""

from __future__ import annotations

import numpy as np

from graphopt import Context, Exactness, Match, Op, RewritePass, Rewriter, Rule, Var, ir, rule

__all__ = ["SuitIntegers"]

_pool = Op("GlobalAveragePool", Var())
_shaped = Op(("Flatten", "Squeeze", "Unsqueeze"), variadic=True)


@rule(_pool)
def global_pool(m: Match, rw: Rewriter) -> ir.Value | None:
    """A pooling over all positions, as one with a kernel of that size."""
    x = m.root.inputs[0]
    shape = ir.static_shape(x)
    if shape is None:
        return m.fail("the size of its input is not known")
    return rw.op("AveragePool", x, kernel_shape=list(shape[2:]))


@rule(_shaped)
def reshape(m: Match, rw: Rewriter) -> ir.Value | None:
    """Flatten, Squeeze or Unsqueeze to a known shape, as a Reshape."""
    x, shape = m.root.inputs[0], ir.static_shape(m.root.outputs[0])
    if shape is None or 0 in shape:
        return m.fail("the shape of its result is not known")
    return rw.op("Reshape", x, rw.const(np.array(shape, np.int64), "shape"))


_RULES = ((("GlobalAveragePool",), "AveragePool", global_pool),
          (("Flatten", "Squeeze", "Unsqueeze"), "Reshape", reshape))  # fmt: skip


class SuitIntegers(RewritePass):
    """Write operators without an integer kernel on the target as others that have one.

    What it does: GlobalAveragePool becomes AveragePool, and Flatten, Squeeze and Unsqueeze become
    Reshape, where the target computes the second on integers and not the first: in floating point
    they would part the quantized graph. quantize-int8 does it by itself.

    Exactness: ROUNDING

    Needs: known shapes; a target that has integer kernels

    Options: none

    Example: GlobalAveragePool(x) -> AveragePool(x) {kernel_shape=[7,7]}

    Declines when: shapes are not known (fix-shapes makes them so); the target has the kernel, or
    has neither.

    References: ONNX Runtime, NNAPI execution provider, op_support_helpers.cc (quantized operators).
    """

    name = "suit-integers"
    exactness = Exactness.ROUNDING
    gated = False
    min_opset = 7

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        """Return the rules for operators that the target lacks."""
        scheme = ctx.target.scheme
        if scheme is None:
            return ()
        return tuple(
            found
            for operators, other, found in _RULES
            if other in scheme.kernels and not any(op in scheme.kernels for op in operators)
        )

"""Rules about Relu and Clip before a quantizer, which saturates anyway."""

from __future__ import annotations

import math

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Rule, Var, ir, rule
from graphopt.passes.quantize._grids import integers, limits, quantize, read

__all__ = ["bounds", "clip_rules"]

_x = Var()
_clip = Op(("Relu", "Clip"), _x, variadic=True)
_quantize = Op("QuantizeLinear", _clip, variadic=True)


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip clips to, or None where that is computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if ir.opset(node) < 11:
        low, high = ir.attr(node, "min", -math.inf), ir.attr(node, "max", math.inf)
        return float(low), float(high)
    found = [-math.inf, math.inf]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            data = ir.array(value)
            if data is None or data.size != 1 or np.isnan(data).any():
                return None
            found[i] = float(data.reshape(()))
    return min(found), found[1]  # the upper bound wins where they cross


def clip_rules(on_integers: bool) -> tuple[Rule, ...]:
    """The rules.

    Args:
        on_integers: Clip integers where the quantizer does not saturate where the clip does.
    """

    @rule(_quantize)
    def absorb_clip(m: Match, rw: Rewriter) -> Replacement:
        """Leave clipping to the quantizer, or to a Clip of the integers.

        Quantizing is monotonic, so clipping commutes with it.
        """
        grid, ends = read(m.root), bounds(m[_clip])
        if isinstance(grid, str):
            return m.fail(grid)
        if ends is None:
            return m.fail("the bounds of the Clip are not constant numbers")
        if grid.axis is not None:
            return m.fail("it has a scale per channel")
        least, most = limits(integers(grid))
        with np.errstate(over="ignore"):
            low, high = (int(grid.quantize(np.array(end, np.float32))) for end in ends)
        if (low, high) == (least, most):
            rw.set_input(m.root, 0, m.value(_x))
            return m.root.outputs[0]
        if not on_integers or ir.opset(m.root) < 12:
            return m.fail("the quantizer's range is wider than the clip")
        if integers(grid) not in (ir.DataType.INT8, ir.DataType.UINT8):
            return m.fail("there is no Clip of its integers")
        codes = quantize(rw, m.value(_x), grid)
        kind = integers(grid).numpy()
        return rw.op(
            "Clip",
            codes,
            None if low == least else rw.const(np.array(low, kind), "min"),
            None if high == most else rw.const(np.array(high, kind), "max"),
        )

    return (absorb_clip,)

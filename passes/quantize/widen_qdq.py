"""Zero points at the bottom of the range behind a Relu."""

from __future__ import annotations

from graphopt import (
    Context,
    Exactness,
    Match,
    Op,
    Pass,
    Replacement,
    Rewriter,
    apply_rules,
    ir,
    rule,
)
from graphopt.passes.quantize._clips import bounds
from graphopt.passes.quantize._codes import moved, shift, trace
from graphopt.passes.quantize._grids import integers, is_quantize, limits, read
from graphopt.passes.quantize._spelling import SPELLING

__all__ = ["WidenQdq"]

_quantize = Op("QuantizeLinear", variadic=True)


@rule(_quantize)
def lower_zero_point(m: Match, rw: Rewriter) -> Replacement:
    """Give numbers above the range the integers that stood for numbers that do not occur."""
    clip = _source(m.root)
    if clip is None or clip.domain or clip.op_type not in ("Relu", "Clip"):
        return None
    grid, ends = read(m.root), bounds(clip)
    if isinstance(grid, str):
        return m.fail(grid)
    least, _ = limits(integers(grid))
    if grid.axis is not None or (grid.zero_point == least).all():
        return None
    if ends is None or ends[0] < 0:
        return m.fail("what it quantizes may be negative")
    codes = trace(m.root.outputs[0])
    if isinstance(codes, str):
        return m.fail(codes)
    if codes.constants or sum(map(is_quantize, codes.ends)) != 1:
        return m.fail("its integers meet others that may stand for negative numbers")
    shift(rw, codes, integers(grid), least - int(grid.zero_point))
    return m.root.outputs[0]


def _source(node: ir.Node) -> ir.Node | None:
    """The node that computes what another reads, past those that only move elements."""
    value = node.inputs[0]
    found = None if value is None else value.producer()
    while found is not None and len(moved(found)) == 1 and found.op_type != "Pad":
        value = found.inputs[0]
        found = None if value is None else value.producer()
    return found


class WidenQdq(Pass):
    """Use all integers for what comes out of a Relu.

    What it does: symmetric schemes quantize what comes out of a Relu with a zero point in the
    middle, so that half of the integers never occur. With the same scale and the zero point at the
    lowest integer they stand for larger numbers, and nothing but those that were cut off at the
    upper end changes, towards what the model computed before it was quantized. The Relu then is
    superfluous (repair-qdq removes it); ONNX Runtime's kernels do with one zero point or another.

    Exactness: LOSSY

    Needs: nothing

    Options: none

    Example: DQ(Q(Relu(x), s, 0), s, 0) -> DQ(Q(Relu(x), s, -128), s, -128), of int8

    Declines when: a Clip's lower bound is negative or computed; integers of several quantizers
    meet, or are an output of the model; something computes with the integers.

    References: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 2.4.
    """

    name = "widen-qdq"
    exactness = Exactness.LOSSY
    min_opset = 10

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Spell quantizers as the rule reads them, and apply it."""
        changed = False
        for rules in (SPELLING, (lower_zero_point,)):
            found = apply_rules(ctx.rewriter(), rules)
            ctx.stats.add(found)
            changed |= found.changed
        return changed

"""Remove nodes that do nothing."""

from __future__ import annotations

from graphopt import Exactness, RewritePass
from graphopt.passes.cleanup.noop_data import DATA_RULES
from graphopt.passes.cleanup.noop_values import VALUE_RULES

__all__ = ["EliminateNoop"]


class EliminateNoop(RewritePass):
    """Remove nodes whose output is their input, bit by bit and in shape.

    What it does: Cast and CastLike to the same type, or back from a type that holds every element;
    Reshape, Flatten, Expand, Tile to the same shape; Transpose that moves nothing; Slice that takes
    everything; Pad by nothing; Concat of one, Split into one; Squeeze and Unsqueeze without axes;
    Resize and Upsample by 1; DepthToSpace and SpaceToDepth in blocks of 1; reductions over no axes
    or over kept axes of size 1; pooling of single elements; multiplying with, dividing by, raising
    to 1; adding and subtracting the neutral zero; And true, Or false, Xor false, the bitwise ones,
    shifts by 0; Not, Neg and BitwiseNot twice; Relu, Abs, Sign and rounding again; Where that
    always takes one branch; Clip of integers without bounds; Max, Mean, Min, Sum of one.

    Exactness: Bitwise. Which NaN a NaN becomes is the processor's choice and does not count, nor
    that the Where of ONNX Runtime turns -0.0 into 0.0.

    Needs: Types and shapes as inferred. Opset 7, where broadcasting became what it is.

    Options: None.

    Example: ``a = Cast<to = 1>(x); b = Mul(a, one); y = Relu(b)`` -> ``y = Relu(x)``

    Declines when: The shape or the type of the output is not known to be that of the input: a
    constant 1 may broadcast, a dim may be unknown. Where a floating-point number might change that
    is no real number or a zero, it is left to eliminate-real-noop.

    References: onnx-optimizer's eliminate_nop_*, ONNX Runtime's NoopElimination and
    CastChainElimination.
    """

    name = "eliminate-noop"
    exactness = Exactness.BITWISE
    min_opset = 7
    rules = (*DATA_RULES, *VALUE_RULES)

"""Chains of casts into one or none."""

from __future__ import annotations

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.layout.axes import inner_is_spare

__all__ = ["FuseCasts"]

_x = Var()
_inner = Op("Cast", _x, shared=True)

_D = ir.DataType
# Sign and number of bits of the integers, exponent and significand bits of the floats.
_INTS = {
    _D.BOOL: (False, 1),
    _D.INT8: (True, 8),
    _D.UINT8: (False, 8),
    _D.INT16: (True, 16),
    _D.UINT16: (False, 16),
    _D.INT32: (True, 32),
    _D.UINT32: (False, 32),
    _D.INT64: (True, 64),
    _D.UINT64: (False, 64),
}
_FLOATS = {_D.FLOAT16: (5, 11), _D.BFLOAT16: (8, 8), _D.FLOAT: (8, 24), _D.DOUBLE: (11, 53)}


@rule(Op("Cast", _inner))
def fuse_casts(m: Match, rw: Rewriter) -> Replacement:
    """Two casts, the first of which keeps every value."""
    source = m[_x].dtype
    middle = _D(ir.attr(m[_inner], "to"))
    target = _D(ir.attr(m.root, "to"))
    if source is None:
        return m.fail("the element type is not known")
    if not holds(middle, source):
        return m.fail("the first cast may change values")
    if source == target:
        return m[_x]
    if not holds(target, source) and target != _D.BOOL:
        return m.fail("the second cast may change values, which each type does its own way")
    if not inner_is_spare(m[_inner]):
        return m.fail("something else uses the inner result")
    return rw.op("Cast", m[_x], like=m.root)


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every value of one element type exists in another."""
    if wide == narrow:
        return wide in _INTS or wide in _FLOATS
    if narrow in _FLOATS:
        return wide in _FLOATS and all(
            a >= b for a, b in zip(_FLOATS[wide], _FLOATS[narrow], strict=True)
        )
    if narrow not in _INTS or wide == _D.BOOL:
        return False
    signed, bits = _INTS[narrow]
    digits = bits - signed
    if wide in _INTS:
        also, room = _INTS[wide]
        return also >= signed and room - also >= digits
    return wide in _FLOATS and digits <= _FLOATS[wide][1]


class FuseCasts(RewritePass):
    """Merge casts.

    What it does: a Cast to a type that has every value of the type before it changes nothing, so a
    Cast behind it can do without it, and goes away itself where it leads back.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Cast(Cast(x: float16) {to=float}) {to=float16} -> x

    Declines when: the first Cast may change values (as from float to float16); the second may, and
    does not lead back or to bool, since conversions that overflow or round depend on the type they
    start from; one of the types is not a plain number; something else uses the inner result and the
    second does not lead back.

    References: ONNX operator Cast (https://onnx.ai/onnx/operators/onnx__Cast.html).
    """

    name = "fuse-casts"
    exactness = Exactness.BITWISE
    min_opset = 6
    rules = (fuse_casts,)

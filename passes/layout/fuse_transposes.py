"""Chains of transpositions into one or none."""

from __future__ import annotations

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, rule
from graphopt.passes.layout.axes import inner_is_spare, permutation

__all__ = ["FuseTransposes"]

_x = Var()
_inner = Op("Transpose", _x, shared=True)


@rule(Op("Transpose", _inner), benefit=2)
def fuse_transposes(m: Match, rw: Rewriter) -> Replacement:
    """Two transpositions."""
    first = permutation(m[_inner])
    second = permutation(m.root, None if first is None else len(first))
    if first is None and second is not None:
        first = permutation(m[_inner], len(second))
    if first is None or second is None:
        return m.fail("the rank is not known")
    perm = tuple(first[i] for i in second)
    if perm == tuple(range(len(perm))):
        return m[_x]
    if not inner_is_spare(m[_inner]):
        return m.fail("something else uses the inner result")
    return rw.op("Transpose", m[_x], perm=perm)


@rule(Op("Transpose", _x))
def drop_transpose(m: Match, rw: Rewriter) -> Replacement:
    """A transposition that leaves every dimension where it is."""
    perm = permutation(m.root)
    if perm is None or perm != tuple(range(len(perm))):
        return None
    return m[_x]


class FuseTransposes(RewritePass):
    """Merge transpositions.

    What it does: two Transpose in a row become the one of the composed permutation, or none where
    that is the identity; a Transpose by the identity goes away.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Transpose(Transpose(x) {perm=[0,2,3,1]}) {perm=[0,3,1,2]} -> x

    Declines when: perm is missing and the rank not known; something else uses the inner result and
    the two do not cancel.

    References: ONNX operator Transpose (https://onnx.ai/onnx/operators/onnx__Transpose.html).
    """

    name = "fuse-transposes"
    exactness = Exactness.BITWISE
    rules = (fuse_transposes, drop_transpose)

"""Chains of Reshape, Flatten, Squeeze and Unsqueeze into one or none."""

from __future__ import annotations

import numpy as np

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.layout.axes import inner_is_spare, integers, normalized
from graphopt.passes.layout.views import VIEWS, apply, same_shape, shape_input, start

__all__ = ["FuseReshapes"]

_x = Var()
_inner = Op(VIEWS, _x, variadic=True, shared=True)
_squeezed = Op(("Squeeze", "Unsqueeze"), _x, variadic=True, shared=True)
_spare = Op(("Squeeze", "Unsqueeze"), _x, variadic=True)


@rule(Op(("Squeeze", "Unsqueeze"), _squeezed, variadic=True), benefit=2)
def fuse_squeezes(m: Match, rw: Rewriter) -> Replacement:
    """Two of Squeeze and Unsqueeze, whatever the shape of the tensor."""
    rank = ir.rank(m[_x])
    origin = _origin(rank, m[_squeezed], m.root)
    if rank is None or origin is None:
        return None
    new = [i for i, a in enumerate(origin) if a is None]
    gone = sorted(set(range(rank)) - {a for a in origin if a is not None})
    if new == gone and all(a in (i, None) for i, a in enumerate(origin)):
        return m[_x]  # what went was of size one, and so is what came in its place
    if (new and gone) or not inner_is_spare(m[_squeezed]):
        return None
    op = "Unsqueeze" if new else "Squeeze"
    if ir.opset(m.root) < 13:
        return rw.op(op, m[_x], axes=new or gone)
    return rw.op(op, m[_x], rw.const(np.array(new or gone, np.int64), "axes"))


@rule(Op("Flatten", _spare), benefit=2)
def fuse_flatten(m: Match, rw: Rewriter) -> Replacement:
    """Flatten behind Squeeze or Unsqueeze, whatever the shape of the tensor."""
    origin = _origin(ir.rank(m[_x]), m[_spare])
    if origin is None:
        return None
    axis = int(ir.attr(m.root, "axis", 1))
    before = [a for a in origin[:axis] if a is not None]
    axis = before[-1] + 1 if before else 0
    if axis == 1 and ir.rank(m[_x]) == 2:
        return m[_x]
    return rw.op("Flatten", m[_x], axis=axis)


def _origin(rank: int | None, *nodes: ir.Node) -> list[int | None] | None:
    """Which axis of x every axis behind some Squeeze and Unsqueeze is; None for one that is new."""
    if rank is None:
        return None
    origin: list[int | None] = list(range(rank))
    for node in nodes:
        given = integers(node, "axes", 1, 13)
        added = node.op_type == "Unsqueeze"
        if not given:
            return None
        axes = normalized(given, len(origin) + (len(given) if added else 0)) or ()
        if added:
            rest = iter(origin)
            size = len(origin) + len(axes)
            origin = [None if i in axes else next(rest) for i in range(size)]
        else:
            origin = [a for i, a in enumerate(origin) if i not in axes]
    return origin


@rule(Op(VIEWS, _inner, variadic=True))
def fuse_reshapes(m: Match, rw: Rewriter) -> Replacement:
    """Two of Reshape, Flatten, Squeeze, Unsqueeze, and Transpose of dimensions of size one."""
    if m.root.op_type == m[_inner].op_type == "Transpose":
        return None
    view = start(m[_x])
    for node in (m[_inner], m.root):
        found = apply(view, node)
        if isinstance(found, str):
            return None if node.op_type == "Transpose" else m.fail(found)
        view = found
    if same_shape(view, m[_x]):
        return m[_x]
    if not inner_is_spare(m[_inner]):
        return m.fail("something else uses the inner result")
    shape = shape_input(view)
    if isinstance(shape, str):
        return m.fail(shape)
    return rw.op("Reshape", m[_x], _shape_value(m, rw, shape))


def _shape_value(m: Match, rw: Rewriter, shape: tuple[int, ...]) -> ir.Value:
    """A constant that holds a shape: one that is there already, where that is possible."""
    for node in (m.root, m[_inner]):
        value = node.inputs[1] if node.op_type == "Reshape" else None
        if value is not None and integers(node, "shape", 1, 5) == shape:
            return value
    return rw.const(np.array(shape, np.int64), "shape")


class FuseReshapes(RewritePass):
    """Merge changes of shape.

    What it does: of two in a row of Reshape, Flatten, Squeeze and Unsqueeze one remains, or nothing
    where the shape is as before. A Transpose next to one of them that moves nothing but dimensions
    of size one counts, too.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Reshape(Reshape(x, [0,-1]), [2,3,4]) -> Reshape(x, [2,3,4])

    Declines when: a shape or axes are computed at run time; more than one dimension of the result
    is neither known nor a copy of the same dimension of x (a 0 in a shape refers to the tensor in
    between); a -1 would have to be told from an empty dimension; something else uses the inner
    result and the two do not cancel.

    References: ONNX operators Reshape, Flatten, Squeeze, Unsqueeze, Transpose
    (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-reshapes"
    exactness = Exactness.BITWISE
    min_opset = 5
    rules = (fuse_squeezes, fuse_flatten, fuse_reshapes)

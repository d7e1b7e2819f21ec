"""Sequences as images of height 1; plainer forms of pooling, means, Softmax and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Var, ir, rule

__all__ = ["RULES", "reshaped", "with_axes"]

_x, _w, _b = Var(), Var(), Var(optional=True)
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
# What precedes the one spatial dimension: a height of 1 that nothing moves along.
_NEUTRAL = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}


def reshaped(rw: Rewriter, x: ir.Value, shape: Sequence[int]) -> ir.Value:
    """A Reshape to a constant shape."""
    return rw.op("Reshape", x, rw.const(np.array(shape, np.int64), "shape"))


def with_axes(rw: Rewriter, op: str, x: ir.Value, axes: Sequence[int], since: int = 13) -> ir.Value:
    """An operator whose axes became an input with opset ``since``."""
    if ir.opset(rw.model) >= since:
        return rw.op(op, x, rw.const(np.array(axes, np.int64), "axes"))
    return rw.op(op, x, axes=list(axes))


def _lifted(node: ir.Node) -> dict[str, Any]:
    """Attributes with the dimension in front that the operator gets."""
    changed: dict[str, Any] = {}
    for name, neutral in _NEUTRAL.items():
        if name in node.attributes:
            changed[name] = [neutral, *ir.attr(node, name)]
    if "pads" in node.attributes:
        begin, end = ir.attr(node, "pads")
        changed["pads"] = [0, begin, 0, end]
    return changed


def _between(m: Match, rw: Rewriter, *others: ir.Value | None) -> ir.Value:
    node = m.root
    up = with_axes(rw, "Unsqueeze", m[_x], [2])
    out = rw.op(node.op_type, up, *others, like=node, **_lifted(node))
    return with_axes(rw, "Squeeze", out, [2])


@rule(Op(("Conv", "ConvTranspose"), _x, _w, _b))
def lift_convolution(m: Match, rw: Rewriter) -> Replacement:
    """A convolution over one dimension as one over two."""
    weight = ir.array(m[_w])
    if ir.rank(m[_x]) != 3 and ir.rank(m[_w]) != 3:
        return None
    if "output_shape" in m.root.attributes:
        return m.fail("it asks for a shape of the output")
    if weight is not None:
        kernel = rw.const(np.expand_dims(weight, 2), m[_w].name or "weight")
    else:
        kernel = with_axes(rw, "Unsqueeze", m[_w], [2])
    return _between(m, rw, kernel, m.find(_b))


@rule(Op(_POOLS, _x))
def lift_pool(m: Match, rw: Rewriter) -> Replacement:
    """A pooling over one dimension as one over two."""
    if ir.rank(m[_x]) != 3:
        return None
    if len(m.root.outputs) > 1:
        return m.fail("it has a second output, of positions")
    return _between(m, rw)


@rule(Op("GlobalAveragePool", _x))
def pool_by_size(m: Match, rw: Rewriter) -> Replacement:
    """GlobalAveragePool as AveragePool over the whole image."""
    shape = ir.static_shape(m[_x])
    if ir.rank(m[_x]) != 4:
        return None
    if shape is None or 0 in shape:
        return m.fail("the size of its input is not known")
    return rw.op("AveragePool", m[_x], kernel_shape=list(shape[2:]))


@rule(Op("AveragePool", _x, count_include_pad=1))
def pad_before_pool(m: Match, rw: Rewriter) -> Replacement:
    """Zeros that count become elements; where there are none the attribute says nothing."""
    node = m.root
    pads = ir.attr(node, "pads", ())
    if ir.attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return m.fail("its padding depends on the size of the image")
    if ir.attr(node, "ceil_mode", 0):
        return m.fail("its ceil_mode is 1")
    x = m[_x]
    if any(pads):
        half = len(pads) // 2
        whole = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        if ir.opset(rw.model) < 11:
            x = rw.op("Pad", x, pads=whole)
        else:
            x = rw.op("Pad", x, rw.const(np.array(whole, np.int64), "pads"))
    return rw.op("AveragePool", x, like=node, pads=None, count_include_pad=None)


@rule(Op("Softmax", _x))
def flatten_softmax(m: Match, rw: Rewriter) -> Replacement:
    """Softmax over the last dimensions of a matrix."""
    shape = ir.static_shape(m[_x])
    if shape is None or 0 in shape or len(shape) == 2:
        return m.fail("the shape of its input is not known, or it is a matrix")
    axis = int(ir.attr(m.root, "axis")) % len(shape)
    if ir.opset(rw.model) >= 13 and axis != len(shape) - 1:
        return m.fail("its axis is not the last one")
    # Before opset 13 all dimensions from the axis on were one.
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    flat = reshaped(rw, m[_x], (rows, int(np.prod(shape[axis:], dtype=np.int64))))
    return reshaped(rw, rw.op("Softmax", flat, axis=1), shape)


@rule(Op("ReduceMean", _x, variadic=True))
def mean_to_pool(m: Match, rw: Rewriter) -> Replacement:
    """A mean over height and width as GlobalAveragePool."""
    node = m.root
    if ir.rank(m[_x]) != 4:
        return None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        data = ir.array(node.inputs[1])
        if data is None:
            return m.fail("its axes are not constant")
        axes = sorted(int(a) % 4 for a in data.tolist())
    else:
        axes = sorted(int(a) % 4 for a in ir.attr(node, "axes", ()) or ())
    if axes != [2, 3]:
        return None
    pooled = rw.op("GlobalAveragePool", m[_x])
    if ir.attr(node, "keepdims", 1):
        return pooled
    shape = ir.static_shape(node.outputs[0])
    return (
        with_axes(rw, "Squeeze", pooled, [2, 3]) if shape is None else reshaped(rw, pooled, shape)
    )


@rule(Op(("Flatten", "Squeeze", "Unsqueeze"), _x, variadic=True))
def view_to_reshape(m: Match, rw: Rewriter) -> Replacement:
    """Another shape, known, as Reshape."""
    shape = ir.static_shape(m.root.outputs[0])
    if shape is None or 0 in shape:
        return m.fail("the shape of its output is not known")
    return reshaped(rw, m[_x], shape)


RULES = (
    lift_convolution,
    lift_pool,
    pool_by_size,
    pad_before_pool,
    flatten_softmax,
    mean_to_pool,
    view_to_reshape,
)

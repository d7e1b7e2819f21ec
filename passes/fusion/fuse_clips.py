"""Chains of Relu, Clip, Min and Max into one."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

import numpy as np

from graphopt import Const, Exactness, Match, Op, Replacement, RewritePass, Rewriter, ir, rule

__all__ = ["FuseClips"]

Bound: TypeAlias = "float | int"

_CLIPS = ("Relu", "Clip", "Min", "Max")
_inner = Op(_CLIPS, variadic=True)
_const = Const()

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
# The types that ONNX Runtime has a Clip for. A chain that has a Clip already may be of any type.
_CLIPPABLE = (
    *_FLOATS,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT32,
    ir.DataType.UINT32,
    ir.DataType.INT64,
    ir.DataType.UINT64,
)
_TYPES = (*_CLIPPABLE, ir.DataType.INT16, ir.DataType.UINT16)


@dataclasses.dataclass(frozen=True)
class _Clip:
    """``min(max(x, low), high)`` with low at most high, so that nothing else need be known of it.

    Attributes:
        x: What is clipped.
        low: Lower bound.
        high: Upper bound.
        values: Constants in the model that hold a bound.
    """

    x: ir.Value
    low: Bound
    high: Bound
    values: dict[Bound, ir.Value]


@rule(Op(("Relu", "Clip"), _inner, variadic=True))
def fuse_clips(m: Match, rw: Rewriter) -> Replacement:
    """Relu or Clip behind any of the four."""
    return _fuse(m, rw)


@rule(Op(("Min", "Max"), _inner, _const))
def fuse_min_max(m: Match, rw: Rewriter) -> Replacement:
    """Min or Max with a constant behind any of the four."""
    return _fuse(m, rw)


def _fuse(m: Match, rw: Rewriter) -> Replacement:
    dtype = m.root.outputs[0].dtype or m[_inner].outputs[0].dtype
    if dtype not in _TYPES:
        return m.fail("the element type is not known, or of another kind")
    first, second = _read(m[_inner], dtype), _read(m.root, dtype)
    if isinstance(first, str):
        return m.fail(first)
    if isinstance(second, str):
        return m.fail(second)
    # Each is monotonic, so together they clip to the images of the two ends.
    low = min(max(first.low, second.low), second.high)
    high = min(max(first.high, second.low), second.high)
    both = _Clip(first.x, low, high, first.values | second.values)
    return _build(m, rw, both, dtype, {m.root.op_type, m[_inner].op_type})


def _read(node: ir.Node, dtype: ir.DataType) -> _Clip | str:
    """What a node clips to, or why that is not known."""
    least, most = _limits(dtype)
    bottom, top = (-math.inf, math.inf) if dtype in _FLOATS else (least, most)
    inputs = (*node.inputs, None, None)
    x = inputs[0]
    assert x is not None
    if node.op_type == "Relu":
        return _Clip(x, 0, top, {})
    if node.op_type == "Clip":
        if ir.opset(node) < 11:
            low, high = ir.attr(node, "min", least), ir.attr(node, "max", most)
            return _Clip(x, min(low, high), high, {})
        found: list[Bound] = []
        values: dict[Bound, ir.Value] = {}
        for value, default in ((inputs[1], least), (inputs[2], most)):
            bound = default if value is None else _scalar(value)
            if bound is None:
                return "a bound is not a constant number"
            found.append(bound)
            if value is not None:
                values[bound] = value
        low, high = found
        return _Clip(x, min(low, high), high, values)
    if len(node.inputs) != 2 or inputs[1] is None:
        return f"the {node.op_type} has more or fewer than two operands"
    other = inputs[1]
    if ir.const(x) is not None:
        x, other = other, x
    bound = _scalar(other)
    if bound is None:
        return f"the {node.op_type} is not with a constant number"
    rank, widest = ir.rank(x), ir.rank(other)
    if widest and (rank is None or rank < widest):
        return f"the {node.op_type} may raise the rank"
    low, high = (bound, top) if node.op_type == "Max" else (bottom, bound)
    return _Clip(x, low, high, {bound: other})


def _scalar(value: ir.Value) -> Bound | None:
    """A constant of one element as a number; None for other constants, other values, and NaN."""
    tensor = ir.const(value)
    if tensor is None or tensor.size != 1:
        return None
    element = tensor.numpy().reshape(())
    if tensor.dtype in _FLOATS:
        number = float(element)
        return None if math.isnan(number) else number
    return int(element) if element.dtype.kind in "iu" else None


def _limits(dtype: ir.DataType) -> tuple[Bound, Bound]:
    """What Clip clips to where it has no bounds: the smallest and the largest finite number."""
    if dtype in _FLOATS:
        floats = np.finfo(dtype.numpy())
        return float(floats.min), float(floats.max)
    ints = np.iinfo(dtype.numpy())
    return int(ints.min), int(ints.max)


def _build(m: Match, rw: Rewriter, clip: _Clip, dtype: ir.DataType, ops: set[str]) -> Replacement:
    least, most = _limits(dtype)
    bottom, top = (-math.inf, math.inf) if dtype in _FLOATS else (least, most)

    def bound(number: Bound, name: str) -> ir.Value:
        found = clip.values.get(number)
        if found is not None and ir.rank(found) == 0:
            return found
        return rw.const(np.array(number, dtype.numpy()), name)

    if (clip.low, clip.high) == (0, top) and "Relu" in ops:
        return rw.op("Relu", clip.x)
    if clip.low == bottom and "Min" in ops:
        return rw.op("Min", clip.x, bound(clip.high, "max"))
    if clip.high == top and "Max" in ops:
        return rw.op("Max", clip.x, bound(clip.low, "min"))
    version = ir.opset(m.root)
    if "Clip" not in ops and (
        dtype not in _CLIPPABLE or (version < 12 and dtype != ir.DataType.FLOAT)
    ):
        return m.fail(f"there is no Clip of {dtype.name.lower()}")
    low = None if clip.low == least else clip.low
    high = None if clip.high == most else clip.high
    if version < 11:
        return rw.op(
            "Clip",
            clip.x,
            min=None if low is None else float(low),
            max=None if high is None else float(high),
        )
    return rw.op(
        "Clip",
        clip.x,
        None if low is None else bound(low, "min"),
        None if high is None else bound(high, "max"),
    )


class FuseClips(RewritePass):
    """Merge chains of Relu, Clip, Min and Max.

    What it does: Relu, Clip, and Min and Max with a constant number all clip; two in a row clip to
    one range, which one node can do: a Relu, a Min or a Max where one was there and suffices, else
    a Clip.

    Exactness: BITWISE

    Needs: nothing

    Options: none

    Example: Clip(Relu(x), 0, 6) -> Clip(x, 0, 6)

    Declines when: bounds are not constant numbers, or are NaN; Min or Max has other than two
    operands or would raise the rank; something else uses the inner result; ONNX Runtime has no Clip
    of the element type.

    References: ONNX operators Clip, Relu, Min, Max (https://onnx.ai/onnx/operators/).
    """

    name = "fuse-clips"
    exactness = Exactness.BITWISE
    min_opset = 8
    rules = (fuse_clips, fuse_min_max)

"""Rules for nodes that move, reshape or resize data, where they leave it as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphopt import Match, Op, Rewriter, Var, ir, rule
from graphopt.passes.cleanup.sameness import keeps_shape, same_shape, small_ints, uniform

__all__ = ["DATA_RULES"]

x, y = Var(), Var()
# Ends of a slice from here on mean "to the end": exporters write INT32_MAX or INT64_MAX.
_TO_THE_END = 2**31 - 1


def _attr_or_input(node: ir.Node, name: str, index: int, since: int) -> tuple[int, ...] | None:
    """Integers that were an attribute before opset ``since`` and are an input from then on.

    Returns:
        The integers, empty where the attribute or input is absent, None where they are computed.
    """
    if ir.opset(node) < since:
        found = ir.attr(node, name)
        return () if found is None else tuple(found)
    value = node.inputs[index] if index < len(node.inputs) else None
    return () if value is None else small_ints(value)


@rule(Op("Reshape", x, y))
def noop_reshape(m: Match, rw: Rewriter) -> ir.Value | None:
    """The new shape is the old one."""
    if same_shape(m[x], m.root.outputs[0]):
        return m[x]
    have, target = ir.dims(m[x]), small_ints(m[y])
    if have is None or target is None or len(have) != len(target) or target.count(-1) > 1:
        return m.fail("the shape may change")
    copies = not ir.attr(m.root, "allowzero", 0)
    if all(t == -1 or t == d or (t == 0 and copies) for t, d in zip(target, have, strict=True)):
        # At most one dim is left to be computed, and all others are kept, so it is kept too.
        return m[x]
    return m.fail("the shape may change")


@rule(Op("Flatten", x))
def noop_flatten(m: Match, rw: Rewriter) -> ir.Value | None:
    """A matrix flattened to its rows."""
    if same_shape(m[x], m.root.outputs[0]):
        return m[x]
    if ir.rank(m[x]) == 2 and ir.attr(m.root, "axis") in (1, -1):
        return m[x]
    return m.fail("the shape may change")


@rule(Op("Transpose", x))
def noop_transpose(m: Match, rw: Rewriter) -> ir.Value | None:
    """No dim moves, or only dims of size 1 past each other."""
    have, perm = ir.dims(m[x]), ir.attr(m.root, "perm")
    if perm is None:
        if have is None:
            return m.fail("the rank is unknown")
        perm = tuple(reversed(range(len(have))))
    if list(perm) == list(range(len(perm))):
        return m[x]
    if have is not None and len(have) == len(perm):
        moved = [p for p in perm if have[p] != 1]
        if moved == sorted(moved) and all(have[p] == d for p, d in zip(perm, have, strict=True)):
            return m[x]
    return m.fail("dims move")


@rule(Op("Slice", x, variadic=True))
def noop_slice(m: Match, rw: Rewriter) -> ir.Value | None:
    """From the first to the last element of every axis."""
    starts = _attr_or_input(m.root, "starts", 1, 10)
    ends = _attr_or_input(m.root, "ends", 2, 10)
    axes = _attr_or_input(m.root, "axes", 3, 10)
    steps = _attr_or_input(m.root, "steps", 4, 10)
    if steps is None or any(s != 1 for s in steps):
        return m.fail("the step may not be 1")
    have = ir.static_shape(m[x])
    if have is not None and have == ir.static_shape(m.root.outputs[0]):
        return m[x]  # as many elements with step 1 are all of them
    if starts is None or ends is None or axes is None:
        return m.fail("the bounds are computed")
    if _slices_all(starts, ends, axes or range(len(starts)), ir.dims(m[x])):
        return m[x]
    return m.fail("something is cut off")


def _slices_all(
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    have: tuple[int | str | None, ...] | None,
) -> bool:
    for start, end, axis in zip(starts, ends, axes, strict=True):
        size = None if have is None else have[axis]
        known = size if isinstance(size, int) else math.inf
        if not ((start == 0 or start <= -known) and (end >= _TO_THE_END or end >= known)):
            return False
    return True


@rule(Op("Pad", x, variadic=True))
def noop_pad(m: Match, rw: Rewriter) -> ir.Value | None:
    """Nothing is added, nothing is cut off."""
    pads = _attr_or_input(m.root, "pads", 1, 11)
    if pads is None or any(pads):
        return m.fail("it may add or remove elements")
    return m[x]


@rule(Op("Concat", x))
def noop_concat(m: Match, rw: Rewriter) -> ir.Value:
    """Concatenation of one tensor."""
    return m[x]


@rule(Op("Split", x, variadic=True))
def noop_split(m: Match, rw: Rewriter) -> ir.Value | None:
    """Split into one part."""
    if len(m.root.outputs) != 1:
        return m.fail("there are several parts")
    return m[x]


@rule(Op("Expand", x, y))
def noop_expand(m: Match, rw: Rewriter) -> ir.Value | None:
    """Broadcast to what it is."""
    if same_shape(m[x], m.root.outputs[0]):
        return m[x]
    target = small_ints(m[y])
    if target is not None and keeps_shape(m[x], target):
        return m[x]
    return m.fail("the shape may change")


@rule(Op("Tile", x, y))
def noop_tile(m: Match, rw: Rewriter) -> ir.Value | None:
    """Repeated once."""
    repeats = small_ints(m[y])
    if same_shape(m[x], m.root.outputs[0]):
        return m[x]
    if repeats is not None and all(r == 1 for r in repeats):
        return m[x]
    return m.fail("it may repeat")


@rule(Op("Squeeze", x, variadic=True))
def noop_squeeze(m: Match, rw: Rewriter) -> ir.Value | None:
    """There is no dim of size 1 to remove."""
    axes, have = _attr_or_input(m.root, "axes", 1, 13), ir.static_shape(m[x])
    if axes is None or axes or have is None or 1 in have:
        return m.fail("it may remove dims")
    return m[x]


@rule(Op("Unsqueeze", x, variadic=True))
def noop_unsqueeze(m: Match, rw: Rewriter) -> ir.Value | None:
    """No dim is added."""
    axes = _attr_or_input(m.root, "axes", 1, 13)
    if axes is None or axes:
        return m.fail("it may add dims")
    return m[x]


@rule(Op(("Resize", "Upsample"), x, variadic=True))
def noop_resize(m: Match, rw: Rewriter) -> ir.Value | None:
    """Every dim keeps its size: whatever the mode, each sample falls on an element."""
    if ir.attr(m.root, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return m.fail("it crops")
    if _scales_are_one(m.root) or _sizes_are_kept(m.root):
        return m[x]
    return m.fail("the size may change")


def _scales_are_one(node: ir.Node) -> bool:
    version = ir.opset(node)
    if version < 9:
        return all(s == 1.0 for s in ir.attr(node, "scales"))
    index = 1 if node.op_type == "Upsample" or version < 11 else 2
    scales = ir.array(node.inputs[index]) if index < len(node.inputs) else None
    return scales is not None and uniform(scales, 1.0)


def _sizes_are_kept(node: ir.Node) -> bool:
    if len(node.inputs) < 4:
        return False
    sizes, have = small_ints(node.inputs[3]), ir.dims(node.inputs[0])
    if not sizes or have is None:
        return False
    axes = ir.attr(node, "axes") or range(len(have))
    return len(sizes) == len(axes) and all(s == have[a] for s, a in zip(sizes, axes, strict=True))


@rule(Op(("DepthToSpace", "SpaceToDepth"), x, blocksize=1))
def noop_depth_to_space(m: Match, rw: Rewriter) -> ir.Value:
    """Blocks of one element."""
    return m[x]


@rule(Op(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), x, variadic=True))
def noop_reduce(m: Match, rw: Rewriter) -> ir.Value | None:
    """Over no axes, or over axes of size 1 that are kept."""
    if same_shape(m[x], m.root.outputs[0]):
        return m[x]
    since = 13 if m.root.op_type == "ReduceSum" else 18
    if ir.attr(m.root, "noop_with_empty_axes") and _attr_or_input(m.root, "axes", 1, since) == ():
        return m[x]
    return m.fail("it may reduce")


@rule(Op(("AveragePool", "MaxPool"), x))
def noop_pool(m: Match, rw: Rewriter) -> ir.Value | None:
    """Windows of one element."""
    node = m.root
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return m.fail("the indices are used")
    kernel, strides = ir.attr(node, "kernel_shape"), ir.attr(node, "strides") or ()
    if any(k != 1 for k in kernel) or any(s != 1 for s in strides):
        return m.fail("it may pool")
    if any(ir.attr(node, "pads") or ()):
        return m.fail("it may pad")
    return m[x]


DATA_RULES = (
    noop_reshape,
    noop_flatten,
    noop_transpose,
    noop_slice,
    noop_pad,
    noop_concat,
    noop_split,
    noop_expand,
    noop_tile,
    noop_squeeze,
    noop_unsqueeze,
    noop_resize,
    noop_depth_to_space,
    noop_reduce,
    noop_pool,
)

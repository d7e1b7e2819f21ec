"""Kernels that are products: of one along some axes and one along the others and the channels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.factorize._convolution import Convolution
from graphopt.passes.fusion.linear import Array, Unfit

__all__ = ["separate"]

# What differs from a product by this many units in the last place differs by rounding.
_ULPS = 8
# The estimate of graphopt.analyses.Cost, in multiply-accumulates: what moving a byte and running
# one more node take as long as.
_PER_BYTE = 2.5
_PER_NODE = 50_000


@dataclasses.dataclass(frozen=True)
class _Split:
    """Two convolutions: one of single channels along some axes, and one along the others.

    Attributes:
        axes: Spatial axes of the depthwise one.
        first: Whether it comes first, on the input channels; else last, on the output channels.
    """

    axes: tuple[int, ...]
    first: bool


def separate(conv: Convolution, rw: Rewriter) -> ir.Value | None:
    """Compute a convolution in two steps, if its weight is their product and that is less work.

    Raises:
        Unfit: The weight is a product, but computing it in two steps takes no less time, or may
            not be done.
    """
    if conv.data.dtype.itemsize == 2:
        return None  # what is between the steps would be rounded to 16 bits
    if not conv.data.any():
        return None  # a product of anything, and constant
    macs = {split: _macs(conv, split) for split in _splits(conv)}
    for split in sorted(macs, key=lambda s: (macs[s], not s.first)):
        factors = _factors(conv, split)
        if factors is None:
            continue
        conv.check_change()
        pads = conv.pads()
        between = _between(conv, split)
        if _estimate(conv, split, between) >= _whole(conv):
            raise Unfit("two steps are not estimated to take less time")
        return _write(conv, rw, split, factors, pads, between)
    return None


def _splits(conv: Convolution) -> Iterator[_Split]:
    """Ways to compute it in two steps with fewer weights."""
    long = [a for a, k in enumerate(conv.kernel) if k > 1]
    for n in range(len(long), 0, -1):
        for axes in itertools.combinations(long, n):
            for first in (True, False):
                split = _Split(axes, first)
                if sum(_weights(conv, split)) < conv.data.size:
                    yield split


def _weights(conv: Convolution, split: _Split) -> tuple[int, int]:
    """Weights of the depthwise convolution and of the other."""
    depth = math.prod(conv.kernel[a] for a in split.axes)
    return _channels(conv, split) * depth, conv.data.size // depth


def _channels(conv: Convolution, split: _Split) -> int:
    """Number of channels of the depthwise convolution."""
    return int(conv.data.shape[1] * conv.groups if split.first else conv.data.shape[0])


def _macs(conv: Convolution, split: _Split) -> int:
    """Multiply-accumulates per element of an output channel."""
    depth, other = _weights(conv, split)
    on = math.prod(conv.strides[a] for a in split.axes)
    off = math.prod(conv.strides) // on
    return depth * off + other if split.first else other * on + depth


def _factors(conv: Convolution, split: _Split) -> tuple[Array, Array] | None:
    """The weights of both convolutions, the depthwise one first, if the weight is their product."""
    data, n = conv.data, len(conv.kernel)
    groups, inputs = conv.groups, data.shape[1]
    whole = data.reshape(groups, -1, inputs, *conv.kernel)
    own, other = (2, 1) if split.first else (1, 2)
    rest = [a for a in range(n) if a not in split.axes]
    order = (0, own, *(3 + a for a in split.axes), other, *(3 + a for a in rest))
    turned = whole.transpose(order)
    depth = math.prod(conv.kernel[a] for a in split.axes)
    channels = whole.shape[0] * whole.shape[own]
    # [channels, depthwise kernel, channels of the other side, rest of the kernel]
    matrices = turned.reshape(channels, depth, whole.shape[other], -1)
    # Most weights are no products, which a channel of them shows.
    if _rank_one(matrices[:1]) is None:
        return None
    found = _rank_one(matrices)
    if found is None:
        return None
    left, right = found
    kernel = [k if a in split.axes else 1 for a, k in enumerate(conv.kernel)]
    flat = [1 if a in split.axes else k for a, k in enumerate(conv.kernel)]
    right = right.reshape(groups, whole.shape[own], whole.shape[other], *flat)
    if split.first:
        right = right.swapaxes(1, 2)
    return left.reshape(channels, 1, *kernel), right.reshape(-1, inputs, *flat)


def _rank_one(matrices: Array) -> tuple[Array, Array] | None:
    """Vectors whose products are matrices ``[count, p, n, r]``, up to rounding.

    Every kernel, that is every ``[:, :, n, :]``, is compared by its own largest element: others
    may be of another size.
    """
    count, p = matrices.shape[:2]
    flat = matrices.reshape(count, p, -1)
    size = np.abs(flat)
    place = size.reshape(count, -1).argmax(axis=1)
    row, column = np.divmod(place, flat.shape[2])
    each = np.arange(count)
    pivot = flat[each, row, column]
    wide = np.float64
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        left = flat[each, :, column].astype(wide) / pivot[:, None].astype(wide)
        left = np.where(pivot[:, None] == 0, 0.0, left).astype(matrices.dtype)
        right = flat[each, row, :]
        product = left.astype(wide)[:, :, None] * right.astype(wide)[:, None, :]
        off = np.abs(flat - product).reshape(matrices.shape)
        largest = size.reshape(matrices.shape).max(axis=(1, 3), keepdims=True)
        tolerance = _ULPS * np.finfo(matrices.dtype).eps * largest.astype(wide)
        if not (off <= tolerance).all():
            return None
    return left, right


def _between(conv: Convolution, split: _Split) -> ir.Shape:
    """Shape of what is between the steps."""
    before, after = conv.input.shape, conv.node.outputs[0].shape
    known = (ir.dims(conv.input) or ())[2:] + (ir.dims(conv.node.outputs[0]) or ())[2:]
    n = len(conv.kernel)
    if before is None or after is None or len(known) != 2 * n:
        raise Unfit("the sizes it works on are not known, so that no time can be estimated")
    if not all(isinstance(d, int) for d in known):
        raise Unfit("the sizes it works on are not known, so that no time can be estimated")
    done = [(a in split.axes) == split.first for a in range(n)]
    sizes = [known[n + a] if done[a] else known[a] for a in range(n)]
    return ir.Shape([before[0], _channels(conv, split), *sizes])


def _estimate(conv: Convolution, split: _Split, between: ir.Shape) -> float:
    depth, other = _weights(conv, split)
    counts = (depth, other) if split.first else (other, depth)
    middle = _elements(between)
    source, result = _elements(conv.input.shape), _elements(conv.node.outputs[0].shape)
    first = _step(conv, source, counts[0], middle, _channels(conv, split))
    return first + _step(conv, middle, counts[1], result, conv.data.shape[0])


def _whole(conv: Convolution) -> float:
    source, result = _elements(conv.input.shape), _elements(conv.node.outputs[0].shape)
    return _step(conv, source, conv.data.size, result, conv.data.shape[0])


def _step(conv: Convolution, read: int, weights: int, written: int, channels: int) -> float:
    moved = _PER_BYTE * (read + weights + written) * int(conv.data.dtype.itemsize)
    return max(float(written // channels * weights), moved) + _PER_NODE


def _elements(shape: ir.Shape | None) -> int:
    """Number of elements, unknown dimensions counted as 1."""
    return math.prod(d for d in (() if shape is None else shape) if isinstance(d, int))


def _write(
    conv: Convolution,
    rw: Rewriter,
    split: _Split,
    factors: tuple[Array, Array],
    pads: tuple[int, ...],
    between: ir.Shape,
) -> ir.Value:
    """Two convolutions instead of one; each moves along its own axes as the one did."""
    name, node = conv.weight.name or "weight", conv.node
    n = len(conv.kernel)
    rest = tuple(a for a in range(n) if a not in split.axes)

    def step(value: ir.Value, depthwise: bool, bias: ir.Value | None) -> ir.Value:
        weights = np.ascontiguousarray(factors[0] if depthwise else factors[1])
        axes = split.axes if depthwise else rest

        def along(values: Sequence[int], other: int) -> list[int] | None:
            found = [v if i % n in axes else other for i, v in enumerate(values)]
            return None if all(v == other for v in found) else found

        groups = len(weights) if depthwise else conv.groups
        return rw.op(
            "Conv", value, rw.const(weights, f"{name}.{'depth' if depthwise else 'rest'}"), bias,
            like=node, auto_pad=None, strides=along(conv.strides, 1),
            dilations=along(conv.dilations, 1), pads=along(pads, 0),
            group=groups if groups > 1 else None,
            kernel_shape=list(weights.shape[2:]) if "kernel_shape" in node.attributes else None,
        )  # fmt: skip

    middle = step(conv.input, split.first, None)
    dtype = conv.weight.dtype
    assert dtype is not None
    middle.type, middle.shape = ir.TensorType(dtype), between
    return step(middle, not split.first, conv.bias)

"""Parts of a Concat whose channels a convolution need not read."""

from __future__ import annotations

import math

import numpy as np

from graphopt import Rewriter, ir
from graphopt.passes.factorize._convolution import BLOCK, Convolution
from graphopt.passes.fusion.linear import Array, Unfit, constant, round_to

__all__ = ["drop_parts"]


def drop_parts(conv: Convolution, concat: ir.Node, rw: Rewriter) -> ir.Value | None:
    """Let a convolution read no parts whose weights are zero, or that are constant.

    Constants times their weights become part of the bias.

    Returns:
        What the convolution computes; None where it has to read all parts.

    Raises:
        Unfit: There are parts that it need not read, but they cannot go.
    """
    parts = [v for v in concat.inputs if v is not None]
    rank = conv.data.ndim
    if int(ir.attr(concat, "axis")) not in (1, 1 - rank):
        return None
    counts = [_channels(part, rank) for part in parts]
    constants = [_constant(part, rank) for part in parts]
    if conv.groups > 1:
        if any(c is not None for c in constants):
            raise Unfit("it reads as many channels in each group, also if they are constant")
        return None
    known = [c for c in counts if c is not None]
    if len(known) != len(counts) or sum(known) != conv.data.shape[1]:
        raise Unfit("how many channels the parts of its input have is not known")
    read = (conv.data != 0).any(axis=(0, *range(2, rank)))
    added = np.zeros(conv.data.shape[0])
    kept, channels, reasons = [], [], []
    ends = np.cumsum(known)
    for part, end, count, values in zip(parts, ends, known, constants, strict=True):
        which = np.arange(end - count, end)
        if read[which].any():
            problem = None if values is None else _problem(conv, values)
            if values is None or problem is not None:
                kept.append(part)
                channels.append(which)
                reasons += [] if problem is None else [problem]
                continue
            taps = conv.data[:, which].astype(np.float64).reshape(len(added), count, -1).sum(axis=2)
            added += taps @ np.broadcast_to(values, (count,))
    if len(kept) == len(parts):
        if reasons:
            raise Unfit(reasons[0])
        return None
    if not kept:
        raise Unfit("nothing it reads counts: what it computes is constant")
    before, after = sum(known), sum(map(len, channels))
    if before % BLOCK == 0 and after % BLOCK and after > before // 2:
        raise Unfit("what is left are channels of a number that is slower")
    conv.check_change()
    _write(conv, concat, rw, kept, np.concatenate(channels), added)
    return conv.node.outputs[0]


def _write(
    conv: Convolution,
    concat: ir.Node,
    rw: Rewriter,
    kept: list[ir.Value],
    channels: Array,
    added: Array,
) -> None:
    bias = None
    if added.any():
        before = np.zeros(1) if conv.bias is None else constant(conv.bias, "the bias")
        bias = round_to(before.astype(np.float64) + added, conv.data.dtype, "the bias")
    name = conv.weight.name or "weight"
    rw.set_input(conv.node, 1, rw.const(np.ascontiguousarray(conv.data[:, channels]), name))
    if bias is not None:
        rw.set_input(conv.node, 2, rw.const(bias, f"{name}.bias"))
    whole = kept[0] if len(kept) == 1 else rw.op("Concat", *kept, like=concat)
    rw.set_input(conv.node, 0, whole)


def _channels(value: ir.Value, rank: int) -> int | None:
    sizes = ir.dims(value)
    found = sizes[1] if sizes is not None and len(sizes) == rank else None
    return found if isinstance(found, int) else None


def _constant(value: ir.Value, rank: int) -> Array | None:
    """What each channel is everywhere, float64 of shape [1] or [channels]; None where it varies."""
    data = ir.array(value)
    node = value.producer()
    if data is None and node is not None and not node.domain:
        if node.op_type == "ConstantOfShape":
            tensor = ir.attr(node, "value")
            data = np.zeros(1) if tensor is None else np.asarray(tensor.numpy())
        elif node.op_type == "Expand":
            data = ir.array(node.inputs[0])
    if data is None or not data.size or data.ndim > rank:
        return None
    data = data.reshape((1,) * (rank - data.ndim) + data.shape)
    first = data[(slice(0, 1), slice(None), *[slice(0, 1)] * (rank - 2))]
    if not (data == first).all():
        return None
    return first.reshape(-1).astype(np.float64)


def _problem(conv: Convolution, values: Array) -> str | None:
    """Why a constant cannot move to the bias; None if it can."""
    if not values.any():
        return None
    if any(conv.pads()):
        return "it pads the constants with zeros"
    if conv.data.dtype.itemsize == 2:
        return "the sum over the weight would lose precision in 16 bits"
    if not math.isfinite(float(np.abs(values).max())):
        return "the constants are not finite"
    if conv.bias is not None and ir.const(conv.bias) is None:
        return "the bias is not constant"
    return None

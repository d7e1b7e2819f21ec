"""Masked models: what removing channels has to be equal to."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels, End
from graphopt.pruning.cut import nodes_of
from graphopt.pruning.losses import Losses
from graphopt.rewrite import Rewriter

__all__ = ["masked"]

Array = np.ndarray[Any, Any]

# Zero points of inputs that hold integers, by operator.
_ZERO_POINTS = {
    "ConvInteger": {0: 2},
    "MatMulInteger": {0: 2, 1: 3},
    "QLinearConv": {0: 2},
    "QLinearMatMul": {0: 2, 3: 5},
}


def masked(channels: Channels, dead: Array) -> ir.Model:
    """A clone of a model in which removed channels are zero where they end.

    It computes what the model that :func:`~graphopt.pruning.cut.cut` makes computes, at its
    original size.

    Args:
        channels: Channels of the model.
        dead: Whether a class is removed, bool ``[channels.count]``.

    Raises:
        ValueError: A class may not be removed.
    """
    losses = Losses(channels, dead)
    model = ir.clone(channels.model)
    rw = Rewriter(model)
    nodes = nodes_of(channels, model)
    made: dict[tuple[Any, ...], ir.Value] = {}
    for end in channels.ends:
        keep = losses.of([end.factor])
        if not keep:
            continue
        ((axis, kept),) = keep.items()
        here = nodes[end.node]
        value = here.inputs[end.index]
        assert value is not None
        mask = kept.reshape([len(kept) if a == axis else 1 for a in range(end.factor.ndim)])
        key = (here, value, mask.shape, mask.tobytes())
        if key not in made:
            with rw.at(here):
                made[key] = _zeroed(rw, here, end, value, mask)
        rw.set_input(here, end.index, made[key])
    ir.infer_shapes(model)
    return model


def _zeroed(rw: Rewriter, here: ir.Node, end: End, value: ir.Value, mask: Array) -> ir.Value:
    # Inputs of what sums have one type, and shape inference may have lost that of this one.
    dtype = next(v.dtype for v in (value, *here.inputs) if v is not None and v.dtype is not None)
    if dtype.is_floating_point():
        out = rw.op("Mul", value, rw.const(mask.astype(dtype.numpy()), "mask"))
    else:
        place = _ZERO_POINTS.get(here.op_type, {}).get(end.index, -1)
        zero = here.inputs[place] if 0 <= place < len(here.inputs) else None
        if zero is None:
            zero = rw.const(np.zeros((), dtype.numpy()), "zero")
        out = rw.op("Where", rw.const(mask, "mask"), value, zero)
    out.type = ir.TensorType(dtype)
    return out

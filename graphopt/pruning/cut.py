"""Surgery: leaving channels out of a model, weights, parameters of operators and all."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.analyses.channel_constants import carried
from graphopt.pruning.cut_nodes import FIXES, resized
from graphopt.pruning.losses import Keep, Losses
from graphopt.rewrite import Rewriter
from graphopt.rewrite.rewriter import is_dead

__all__ = ["cut", "nodes_of"]

Array = np.ndarray[Any, Any]


def cut(rw: Rewriter, channels: Channels, dead: Array) -> None:
    """Remove channels, so that what is left computes what it did with zeros in their place.

    Weights lose elements per use (two uses that lose the same share the result), numbers that
    depend on sizes follow (``group``, ``hidden_size``, targets of Reshape, bounds of Slice, ...),
    and shapes are inferred anew.

    Args:
        rw: Rewriter of the analysed model, or of a clone of it.
        channels: Its channels. They are of no use afterwards if the model itself was cut.
        dead: Whether to remove a class, bool ``[channels.count]``.

    Raises:
        ValueError: A class may not be removed, or a tensor would have no channels left.
    """
    losses = Losses(channels, dead)
    if not np.any(dead):
        return
    nodes = nodes_of(channels, rw.model)
    unused = {node for node in nodes.values() if is_dead(node)}
    # Where a layer is bypassed others stand in for its nodes.
    nodes = {node: here for node, here in nodes.items() if here.op_type == node.op_type}
    trim = _Trim(rw)
    for (node, index), factors in channels.constants.items():
        keep = losses.of(factors)
        if keep and node in nodes:
            here = nodes[node]
            value = here.inputs[index]
            assert value is not None
            rw.set_input(here, index, trim(value, keep))
    for node, here in nodes.items():
        fix = None if node.domain else FIXES.get(node.op_type)
        if fix is not None and losses.touch(node):
            fix(rw, node, here, losses)
    _redeclare(rw, channels, losses)
    for node in reversed(list(ir.all_nodes(rw.model))):
        if is_dead(node) and node not in unused:
            rw.erase(node)
    rw.remove_initializers()
    ir.infer_shapes(rw.model)


def _redeclare(rw: Rewriter, channels: Channels, losses: Losses) -> None:
    """Other sizes for what graphs inside of nodes take and return."""
    for before, here in zip(ir.all_graphs(channels.model), ir.all_graphs(rw.model), strict=True):
        if before is not channels.model.graph:
            interface = zip(
                (*before.inputs, *before.outputs), (*here.inputs, *here.outputs), strict=True
            )
            for value, now in interface:
                keep = losses.at(value)
                if keep:
                    rw.redeclare(now, {axis: int(kept.sum()) for axis, kept in keep.items()})


def nodes_of(channels: Channels, model: ir.Model) -> dict[ir.Node, ir.Node]:
    """For every node of the analysed model, in order, that of it or of its clone."""
    pairs = zip(ir.all_nodes(channels.model), ir.all_nodes(model), strict=True)
    return dict(pairs)


class _Trim:
    """Constants without what is removed, one for all uses that lose the same."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._made: dict[tuple[Any, ...], ir.Value] = {}

    def __call__(self, value: ir.Value, keep: Keep) -> ir.Value:
        if not keep:
            return value
        key = (value, *((a, k.tobytes()) for a, k in sorted(keep.items())))
        if key not in self._made:
            self._made[key] = self._trimmed(value, keep)
        return self._made[key]

    def _trimmed(self, value: ir.Value, keep: Keep) -> ir.Value:
        """Another value where the old one is, so that all who read that can read this."""
        data = ir.array(value)
        if data is not None:
            for axis, kept in keep.items():
                data = data.compress(kept, axis)
            assert isinstance(value.graph, ir.Graph)
            with self._rw.at_end(value.graph):
                return self._rw.const(data, value.name or "weight")
        node = value.producer()
        assert node is not None
        inputs = [
            source if source is None else self(source, _of_input(node, i, keep))
            for i, source in enumerate(node.inputs)
        ]
        with self._rw.at(node):
            place = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
            if place is not None:
                sizes = {axis: int(kept.sum()) for axis, kept in keep.items()}
                target = inputs[place]
                assert target is not None
                inputs[place] = resized(self._rw, node, target, sizes)
            made = self._rw.op(node.op_type, *inputs, like=node)
        if value.dtype is not None:
            made.type = ir.TensorType(value.dtype)
        if value.shape is not None:
            dims = list(value.shape)
            made.shape = ir.Shape(
                [int(keep[a].sum()) if a in keep else n for a, n in enumerate(dims)]
            )
        return made


def _of_input(node: ir.Node, index: int, keep: Keep) -> Keep:
    """What an input of a node that is made of constants keeps."""
    before = ir.dims(node.inputs[index])
    if index == 0 and node.op_type != "ConstantOfShape":
        axes = carried(node, before or ())
        return {b: kept for a, kept in keep.items() if (b := axes[a]) is not None}
    rank = ir.rank(node.outputs[0])
    if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or rank is None:
        return {}
    if before is None or len(before) != 1 or before[0] == 1:
        return {}
    axis = int(ir.attr(node, "axis", 1)) % rank  # of the scales
    return {0: keep[axis]} if axis in keep else {}

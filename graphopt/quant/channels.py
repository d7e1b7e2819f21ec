"""Which channels of which tensors belong together, and which constants take up their factors.

A positive factor per channel commutes with much of what convolutional networks compute: Relu of a
channel that was divided by a number is that of the channel, divided by it. So the channels of a
tensor fall into classes that have to be divided by the same, across additions, concatenations and
poolings; at a convolution one set of classes ends and another begins, and its weights take up the
factors of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import connected
from graphopt.quant.channel_ops import Fold, Follower, Ids, Labels
from graphopt.quant.constants import Declined, Edits
from graphopt.rewrite import Rewriter

__all__ = ["Channels", "Fold", "Labels", "scaled"]

Array = np.ndarray[Any, Any]


class Channels:
    """Classes of channels in the main graph of a model.

    Attributes:
        model: The model.
        count: Number of classes.
        labels: Channels of the tensors that have any, with their classes. What is not understood,
            the inputs of the model among it, has none.
        folds: The constants that factors go into.
        clips: Tensors that a Clip with bounds made, with these. Empty unless ``clips`` was given.
        free: Whether the channels of a class may be divided, ``[count]``.
    """

    def __init__(self, model: ir.Model, *, clips: bool = False) -> None:
        """Follow the channels.

        Args:
            model: A model in normal form with shapes inferred.
            clips: Let classes go through Clip with bounds, too. Dividing its channels is exact only
                for values that its bounds do not change, before and after.
        """
        self.model = model
        found = Follower(model.graph, clips=clips)
        self.clips = found.clips
        used, classes = np.unique(connected(found.count, found.pairs), return_inverse=True)
        self.count = len(used)
        self.free = np.ones(self.count, bool)
        self._reasons: dict[int, str] = {}
        for ids, reason in found.frozen:
            each = np.unique(classes[ids])
            self._reasons |= {int(k): reason for k in each[self.free[each]]}
            self.free[each] = False
        self.labels = {v: Labels(x.axis, classes[x.ids]) for v, x in found.labels.items()}

        def resolved(ids: Ids | None) -> Ids | None:
            return None if ids is None else classes[ids]

        self.folds = [
            dataclasses.replace(f, multiply=resolved(f.multiply), divide=resolved(f.divide))
            for f in found.folds
        ]

    def why_not(self, value: ir.Value) -> str | None:
        """Why no channel of a tensor may be divided, or None if one may be."""
        labels = self.labels.get(value)
        if labels is None:
            return "its channels are not known"
        if self.free[labels.ids].any() or not len(labels.ids):
            return None
        return self._reasons[int(labels.ids[0])]

    def components(self) -> list[list[ir.Value]]:
        """Tensors with free classes, those together that share some, in the order of the graph."""
        named = [(v, x.ids[self.free[x.ids]]) for v, x in self.labels.items()]
        named = [(v, ids) for v, ids in named if len(ids)]
        first = [np.broadcast_to(ids[:1], ids.shape) for _, ids in named]
        roots = connected(self.count, list(zip((ids for _, ids in named), first, strict=True)))
        found: dict[int, list[ir.Value]] = {}
        for value, ids in named:
            found.setdefault(int(roots[ids[0]]), []).append(value)
        return list(found.values())

    def fold(self, rw: Rewriter, factors: Array) -> str | None:
        """Divide the channels of every class by its factor, through constants.

        Args:
            rw: Rewriter of the model, or of a clone of it.
            factors: Positive, ``[count]``; 1 for classes that are not free.

        Returns:
            Why nothing was done: a constant would overflow its type. None if it was done.

        Raises:
            ValueError: A factor is not a positive number, or that of a class that is not free.
        """
        if factors.shape != (self.count,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(f"factors have to be {self.count} positive numbers")
        if (factors[~self.free] != 1).any():
            raise ValueError("a class that may not be divided has a factor other than 1")
        edits = Edits()
        nodes = self._nodes_of(rw.model)
        try:
            for each in self.folds:
                by = scaled(each, factors)
                if np.any(by != 1):
                    node = nodes(each.node)
                    edits.set(node, each.index, edits.get(node, each.index) * by)
            edits.apply(rw)
        except Declined as e:
            return str(e)
        return None

    def _nodes_of(self, model: ir.Model) -> Callable[[ir.Node], ir.Node]:
        if model is self.model:
            return lambda node: node
        by_output = {n.outputs[0].name: n for n in model.graph}
        return lambda node: by_output[node.outputs[0].name]


def scaled(fold: Fold, factors: Array) -> Array:
    """What a constant is multiplied by."""
    by = np.ones(()) if fold.multiply is None else factors[fold.multiply]
    return np.asarray(by if fold.divide is None else by / factors[fold.divide])

"""What tensors keep along their axes where channels are removed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels

__all__ = ["Keep", "Losses"]

Array = np.ndarray[Any, Any]
# For every axis that loses something: what it keeps, bool.
Keep = dict[int, Array]


class Losses:
    """What the tensors of a model keep without some classes of channels."""

    def __init__(self, channels: Channels, dead: Array) -> None:
        """Check that these classes may go.

        Args:
            channels: Channels of a model.
            dead: Whether a class goes, bool ``[channels.count]``.

        Raises:
            ValueError: A class may not be removed, or a tensor would have no channels left.
        """
        self.dead = np.asarray(dead)
        if self.dead.shape != (channels.count,) or self.dead.dtype != bool:
            raise ValueError(f"dead has to be a bool for each of {channels.count} classes")
        held = np.flatnonzero(self.dead & ~channels.free)
        if len(held):
            raise ValueError(f"channel class {held[0]} cannot be removed: {channels.why(held[0])}")
        for group in channels.groups:
            if self.dead[group.classes].all():
                raise ValueError(f"all channels of {group.name!r} would be removed; leave one")
        self._labels = channels.labels
        self._known: dict[ir.Value, Keep] = {}
        for value in channels.labels:
            for axis, kept in self.at(value).items():
                if not kept.any():
                    raise ValueError(f"{value.name!r} would have nothing left along axis {axis}")

    def of(self, factors: Iterable[Array]) -> Keep:
        """What a tensor with these factors keeps."""
        keep: Keep = {}
        for factor in factors:
            gone = self.dead[factor]
            if gone.any():
                axis = int(np.argmax(factor.shape))
                kept = ~gone.ravel()
                keep[axis] = keep[axis] & kept if axis in keep else kept
        return keep

    def at(self, value: ir.Value | None) -> Keep:
        """What a computed tensor keeps."""
        if value is None or value not in self._labels:
            return {}
        if value not in self._known:
            self._known[value] = self.of(self._labels[value])
        return self._known[value]

    def rank(self, value: ir.Value | None) -> int:
        """Rank of a tensor with channels, which shape inference may not know."""
        assert value is not None
        return self._labels[value][0].ndim

    def changed(self) -> Iterable[tuple[ir.Value, Keep]]:
        """The computed tensors that lose something."""
        return ((value, keep) for value in self._labels if (keep := self.at(value)))

    def touch(self, node: ir.Node) -> bool:
        """Whether an input or output of a node loses something."""
        return any(self.at(v) for v in (*node.inputs, *node.outputs))

"""Cutting the channels and layers out that units lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.pruning.cut import cut
from graphopt.pruning.layers_out import bypass, find_blocks, take_out
from graphopt.pruning.units import Unit
from graphopt.rewrite import Rewriter

__all__ = ["bypass_blocks", "dead_of", "shortened"]

Array = np.ndarray[Any, Any]


def dead_of(channels: Channels, units: Sequence[Unit], left: Sequence[int]) -> Array:
    """Which classes go, bool ``[count]``."""
    dead = np.zeros(channels.count, bool)
    for unit, n in zip(units, left, strict=True):
        dead[unit.dead(n)] = True
    return dead


def bypass_blocks(rw: Rewriter, units: Sequence[Unit], left: Sequence[int]) -> list[str]:
    """Bypass the blocks of units that have nothing left, where they are not yet; their names."""
    gone = [u.block.name for u, n in zip(units, left, strict=True) if not n and u.block is not None]
    for name in gone:
        block = next((b for b in find_blocks(rw.model) if b.name == name), None)
        if block is not None:
            bypass(rw, block)
    return gone


def shortened(
    model: ir.Model, channels: Channels, units: Sequence[Unit], left: Sequence[int]
) -> ir.Model:
    """A copy of a model whose units have so many channels left; what stays is as it was.

    Args:
        model: The analysed model, or a clone in which nodes have the same order; its blocks that go
            may be bypassed already.
        channels: Channels of the analysed model.
        units: Groups.
        left: Channels of each; 0 takes out its block.
    """
    copy = ir.clone(model)
    rw = Rewriter(copy)
    gone = bypass_blocks(rw, units, left)
    cut(rw, channels, dead_of(channels, units, left))
    take_out(rw, gone)
    ir.infer_shapes(copy)
    return copy

"""What pruning decides on: groups of channels, how few may be left, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels, End, Group
from graphopt.pruning.layers_out import Block
from graphopt.reconstruct import Layer

__all__ = ["Read", "Unit", "find_units"]

Array = np.ndarray[Any, Any]

# Numbers of channels that are tried of a group, evenly spaced.
_LEVELS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """Columns of a layer that read the channels of a group.

    Attributes:
        layer: Name of the layer.
        part: Group of the layer's convolution.
        columns: Columns of each channel, ``[channels, columns of a channel]``.
    """

    layer: str
    part: int
    columns: Array


@dataclasses.dataclass(eq=False)
class Unit:
    """A group of channels that may be pruned.

    Attributes:
        group: The group.
        reads: Layers that read it and can make up for losses.
        others: Whether anything else sums its channels.
        levels: Numbers of channels that may be left, the full number first, descending. 0 leaves
            out the whole layer beside a shortcut that it belongs to.
        block: That layer, or None.
        order: Places in ``group.classes``, the first to go first.
        noise: What each level adds to the outputs, in units of their energy.
        saved: Share of the latency that each level saves; empty where that was not measured.
    """

    group: Group
    reads: tuple[Read, ...]
    others: bool
    levels: tuple[int, ...]
    block: Block | None = None
    order: Array = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    noise: dict[int, float] = dataclasses.field(default_factory=dict)
    saved: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.group.classes)

    def dead(self, left: int) -> Array:
        """Classes that go where so many channels are left; level 0 leaves that to its block."""
        return (
            self.group.classes[self.order[: self.size - left]] if left else self.group.classes[:0]
        )


def find_units(
    channels: Channels,
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    *,
    kind: Literal["channels", "heads"],
    least: float,
    multiple: int | None,
    skip: Sequence[str],
) -> tuple[list[Unit], dict[str, str]]:
    """The groups of a kind that may be pruned, and why others may not.

    Args:
        channels: Channels of the model.
        layers: Its layers.
        blocks: Layers beside shortcuts that may go whole.
        kind: Of the groups.
        least: Least share of a group that has to stay.
        multiple: What numbers of channels are multiples of; None chooses by the size of the group.
        skip: Patterns of names of tensors whose channels stay.
    """
    known = {layer.node: layer for layer in layers}
    ends: dict[int, list[End]] = {}
    for end in channels.ends:
        for k in np.unique(end.factor):
            ends.setdefault(int(k), []).append(end)
    carriers = _carriers(channels, skip)
    owner = _owners(channels, blocks)
    units: list[Unit] = []
    reasons: dict[str, str] = {}
    for group in channels.groups:
        if group.kind != kind:
            continue
        reason = group.reason
        if any(k in carriers for k in group.classes[:1].tolist()):
            reason = "it is to be skipped"
        several = 1 if kind == "heads" and multiple is None else multiple
        levels = _levels(len(group.classes), least, several)
        if reason is None and len(levels) < 2:
            reason = "it has too few channels for another number (least, round-to)"
        if reason is not None:
            reasons.setdefault(group.name, reason)
            continue
        own = ends.get(int(group.classes[0]), [])
        reads = [r for end in own if end.node in known for r in _reads(end, known[end.node], group)]
        covered = {r.layer for r in reads}
        others = any(e.node not in known or known[e.node].name not in covered for e in own)
        unit = Unit(group, tuple(reads), others, levels)
        block = owner.get(int(group.classes[0]))
        if block is not None:
            unit.block = block
            unit.levels = (*levels, 0)
        units.append(unit)
    _alone(units)
    return units, reasons


def _levels(size: int, least: float, multiple: int | None) -> tuple[int, ...]:
    if multiple is None:
        multiple = 4 if size >= 16 else 2 if size >= 8 else 1
    step = multiple * max(1, size // (_LEVELS * multiple))
    floor = max(1, int(np.ceil(size * least - 1e-9)))
    inner = range(-(-size // step) * step - step, 0, -step)
    return (size, *(n for n in inner if n >= floor))


def _reads(end: End, layer: Layer, group: Group) -> list[Read]:
    """Columns of a layer by channel of a group, one entry per group of its convolution."""
    if end.index != 0:
        return []
    ids = end.factor.reshape(-1)
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], group.classes)
    stops = np.searchsorted(ids[order], group.classes, side="right")
    counts = stops - starts
    if not len(counts):
        return []
    places = order[starts[:, None] + np.arange(counts[0])]
    per = len(ids) // layer.groups
    parts = places // per
    columns = (places % per)[:, :, None] * layer.kernel + np.arange(layer.kernel)
    found = []
    for part in np.unique(parts):
        here = parts == part
        each = here.sum(axis=1)
        if (each != each[0]).any():
            return []
        found.append(Read(layer.name, int(part), columns[here].reshape(len(places), -1)))
    return found


def _carriers(channels: Channels, skip: Sequence[str]) -> set[int]:
    """Classes in what nodes compute that match a pattern."""
    found: set[int] = set()
    if not skip:
        return found
    for value, factors in channels.labels.items():
        node = value.producer()
        if node is not None and ir.matches(node, skip):
            for factor in factors:
                found.update(np.unique(factor).tolist())
    return found


def _owners(channels: Channels, blocks: Sequence[Block]) -> Mapping[int, Block]:
    """The block that all tensors with a class are inside of, by class."""
    where: dict[int, int] = {}
    inside = {
        node: i
        for i, block in enumerate(blocks)
        # Graphs inside of nodes have no stand-ins.
        if not block.reason and not any(list(ir.subgraphs(node)) for node in block.branch)
        for node in block.branch
    }
    for value, factors in channels.labels.items():
        node = value.producer()
        place = -1 if node is None else inside.get(node, -1)
        for factor in factors:
            for k in np.unique(factor).tolist():
                where[k] = place if where.get(k, place) == place else -1
    return {k: blocks[i] for k, i in where.items() if i >= 0}


def _alone(units: Sequence[Unit]) -> None:
    """A block may go with a unit only if no other unit decides on it, too."""
    owners: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.block is not None:
            owners.setdefault(unit.block.name, []).append(unit)
    for sharing in owners.values():
        if len(sharing) > 1:
            for unit in sharing:
                unit.block = None
                unit.levels = unit.levels[:-1]

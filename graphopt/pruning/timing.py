"""What losing channels saves of the time on the target, measured inside of the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.measure import LatencyTable, race
from graphopt.pruning.shorten import shortened
from graphopt.pruning.units import Unit
from graphopt.runtime import Feeds
from graphopt.targets import Target

__all__ = ["measure_savings"]

Array = np.ndarray[Any, Any]

# Forms that are loaded at a time.
_AT_ONCE = 8


def measure_savings(
    channels: Channels,
    units: Sequence[Unit],
    feeds: Feeds,
    *,
    target: Target,
    threads: int,
    table: LatencyTable,
    seconds: float = 0.15,
) -> None:
    """Set the share of the latency that each level of each unit saves.

    Units whose operators have equal shapes take equal time, so one form of the model has all of
    them at a level, and each saves its part of the difference to the original.

    Args:
        channels: Channels of the model.
        units: Groups; ``saved`` is set.
        feeds: Inputs.
        target: Where to measure.
        threads: Threads within an operator.
        table: Shares that are known already; new ones are added.
        seconds: Roughly how long to measure each form.
    """
    model = channels.model
    alike: dict[str, list[int]] = {}
    for i, sign in enumerate(_signs(channels, units)):
        alike.setdefault(sign, []).append(i)
    whole = _whole(model, feeds)
    due: list[tuple[str, list[int], int]] = []
    for sign, members in alike.items():
        for place in range(1, len(units[members[0]].levels)):
            key = f"{whole} {sign} {units[members[0]].levels[place]}"
            if key not in table.entries:
                due.append((key, members, place))
    for start in range(0, len(due), _AT_ONCE):
        some = due[start : start + _AT_ONCE]
        forms = []
        for _, members, place in some:
            left = [u.levels[place] if i in members else u.size for i, u in enumerate(units)]
            forms.append(shortened(model, channels, units, left))
        ratios = race(model, forms, [feeds], target=target, threads=threads, seconds=seconds)
        for (key, members, _), (ratio,) in zip(some, ratios, strict=True):
            table.entries[key] = max(0.0, (1.0 - ratio) / len(members))
    for sign, members in alike.items():
        for i in members:
            unit = units[i]
            unit.saved = {unit.size: 0.0}
            for n in unit.levels[1:]:
                unit.saved[n] = table.entries[f"{whole} {sign} {n}"]


def _signs(channels: Channels, units: Sequence[Unit]) -> list[str]:
    """What tells the operators that compute with a unit's channels, and their shapes."""
    owner = np.full(channels.count, -1)
    for i, unit in enumerate(units):
        owner[unit.group.classes] = i
    found: list[set[str]] = [set() for _ in units]

    def note(node: ir.Node | None, factor: Array) -> None:
        text = "" if node is None else _sign(node)
        for i in np.unique(owner[factor]).tolist():
            if i >= 0:
                found[i].add(text)

    for value, factors in channels.labels.items():
        for factor in factors:
            note(value.producer(), factor)
    for end in channels.ends:
        note(end.node, end.factor)
    return [
        f"{'+'.join(sorted(texts))} {unit.levels} {'' if unit.block is None else unit.block.kind}"
        for texts, unit in zip(found, units, strict=True)
    ]


def _sign(node: ir.Node) -> str:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    sizes = ir.dims(weight) if ir.const(weight) is not None else ""
    return f"{node.op_type}{sizes}{ir.dims(node.outputs[0])}".replace(" ", "")


def _whole(model: ir.Model, feeds: Feeds) -> str:
    """What tells the model, as far as time goes, and its inputs."""
    signs = "\n".join(sorted(map(_sign, model.graph)))
    sizes = [list(np.shape(v)) for v in feeds.values()]
    return f"prune {hashlib.sha256(signs.encode()).hexdigest()[:16]} {sizes}"

"""What forms of layers save of the time on the target, measured inside of the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from graphopt import ir
from graphopt.decompose.emit import emit, made_up
from graphopt.decompose.parts import Part
from graphopt.measure import LatencyTable, race
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds
from graphopt.targets import Target

__all__ = ["changed", "measure_savings"]

# Forms that are loaded at a time.
_AT_ONCE = 8


def measure_savings(
    model: ir.Model,
    parts: Sequence[Part],
    feeds: Feeds,
    *,
    target: Target,
    threads: int,
    table: LatencyTable,
    seconds: float = 0.15,
) -> None:
    """Set the share of the latency that each form of each part saves.

    Layers of equal shapes take equal time, so one form of the model has all of them changed, and
    each saves its part of the difference to the original.

    Args:
        model: The model.
        parts: The layers; ``faster`` is set.
        feeds: Inputs.
        target: Where to measure.
        threads: Threads within an operator.
        table: Shares that are known already; new ones are added.
        seconds: Roughly how long to measure each form.
    """
    alike: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(part.sign, []).append(i)
    whole = _whole(model, feeds)
    due: list[tuple[str, list[int], int]] = []
    for sign, members in alike.items():
        for place in range(1, len(parts[members[0]].forms)):
            key = f"{whole} {sign} {parts[members[0]].forms[place]}"
            if key not in table.entries:
                due.append((key, members, place))
    for start in range(0, len(due), _AT_ONCE):
        some = due[start : start + _AT_ONCE]
        made = []
        for _, members, place in some:
            places = [place if i in members else 0 for i in range(len(parts))]
            made.append(changed(model, parts, places))
        ratios = race(model, made, [feeds], target=target, threads=threads, seconds=seconds)
        for (key, members, _), (ratio,) in zip(some, ratios, strict=True):
            table.entries[key] = (1.0 - ratio) / len(members)
    for sign, members in alike.items():
        for i in members:
            keys = [f"{whole} {sign} {form}" for form in parts[i].forms[1:]]
            parts[i].faster = np.array([0.0, *(table.entries[key] for key in keys)])


def changed(model: ir.Model, parts: Sequence[Part], places: Sequence[int]) -> ir.Model:
    """A model whose layers have forms, with made-up weights."""
    chosen = {
        part.name: form
        for part, place in zip(parts, places, strict=True)
        if (form := part.forms[place]) is not None
    }
    copy, rng = ir.clone(model), np.random.default_rng(0)
    rw = Rewriter(copy)
    for layer in list(layers(copy)):
        form = chosen.get(layer.name)
        if form is not None:
            emit(rw, layer, form, made_up(form, layer, rng))
    rw.remove_initializers()
    ir.infer_shapes(copy)
    return copy


def _whole(model: ir.Model, feeds: Feeds) -> str:
    """What tells the model, as far as time goes, and its inputs."""
    signs = "\n".join(sorted(f"{n.op_type}{ir.dims(n.outputs[0])}" for n in model.graph))
    sizes = [list(np.shape(v)) for v in feeds.values()]
    return f"decompose {hashlib.sha256(signs.encode()).hexdigest()[:16]} {sizes}"

"""What forms of layers save of the time on the target, measured inside of the whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.decompose.emit import stand_in
from graphopt.decompose.forms import Form
from graphopt.decompose.parts import Part
from graphopt.measure import LatencyTable, race, seconds_of, shaped
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds
from graphopt.targets import Target

__all__ = ["changed", "measure_savings"]

# Forms that are loaded at a time.
_AT_ONCE = 8
# Layers of equal shapes that take less of the time, by estimate, are measured by themselves: inside
# of the model the difference would be one of scatter. Depthwise convolutions look a little better
# there than they are.
_LEAST = 0.04
# Roughly how long to measure a form of the model, and one of a layer, in seconds.
_WHOLE, _ALONE = 0.15, 0.02


def measure_savings(
    model: ir.Model,
    parts: Sequence[Part],
    feeds: Feeds,
    *,
    target: Target,
    threads: int,
    table: LatencyTable,
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
        table: Shares that single forms leave, as far as known; new ones are added.
    """
    alike: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(part.sign, []).append(i)
    whole = _whole(model, feeds)
    together: list[tuple[str, list[int], Form | None]] = []
    alone: dict[int, list[tuple[str, Form | None]]] = {}
    large = _large(model, parts, alike)
    for sign, members in alike.items():
        for i in members:
            for form in parts[i].forms[1:]:
                key = f"{whole} {sign} {form}"
                if key in table.entries:
                    continue
                table.entries[key] = 1.0  # due, once for all that are alike
                if sign in large:
                    together.append((key, members, form))
                else:
                    alone.setdefault(i, []).append((key, form))
    for start in range(0, len(together), _AT_ONCE):
        some = together[start : start + _AT_ONCE]
        made = [changed(model, {parts[i].name: form for i in members}) for _, members, form in some]
        ratios = race(model, made, [feeds], target=target, threads=threads, seconds=_WHOLE)
        for (key, members, _), (ratio,) in zip(some, ratios, strict=True):
            table.entries[key] = 1.0 - (1.0 - ratio) / len(members)
    if alone:
        sized = shaped(model, feeds)
        for i, due in alone.items():
            forms = [form for _, form in due]
            found = _alone(model, sized, feeds, parts[i], forms, target, threads)
            table.entries.update(zip((key for key, _ in due), found, strict=True))
    for part in parts:
        keys = [f"{whole} {part.sign} {form}" for form in part.forms[1:]]
        part.faster = 1.0 - np.array([1.0, *(table.entries[key] for key in keys)])


def _large(model: ir.Model, parts: Sequence[Part], alike: dict[str, list[int]]) -> frozenset[str]:
    """Signs of layers that take much of the time together."""
    cost = Cost(model)
    named = {layer.name: cost.nodes[layer.node].seconds for layer in layers(model)}
    return frozenset(
        sign
        for sign, members in alike.items()
        if sum(named[parts[i].name] for i in members) >= _LEAST * cost.seconds
    )


def _alone(
    model: ir.Model,
    sized: ir.Model,
    feeds: Feeds,
    part: Part,
    forms: Sequence[Form | None],
    target: Target,
    threads: int,
) -> list[float]:
    """What forms of a layer leave of the time of the model, the layer run by itself."""
    (layer,) = (each for each in layers(sized) if each.name == part.name)
    own = ir.segment(sized, [layer.input], [layer.output])
    rng = np.random.default_rng(0)
    sizes = tuple(d if isinstance(d, int) else 1 for d in ir.dims(layer.input) or ())
    read: Feeds = {layer.input.name or "": rng.normal(size=sizes).astype(np.float32)}
    made = [changed(own, {part.name: form}) for form in forms]
    runs = [(model, feeds), *((each, read) for each in (own, *made))]
    whole, before, *after = seconds_of(
        runs, target=target, threads=threads, seconds=_ALONE * len(runs)
    )
    return [1.0 - (before - each) / whole for each in after]


def changed(model: ir.Model, forms: Mapping[str, Form | None]) -> ir.Model:
    """A model whose layers have forms, by name, with made-up weights."""
    copy, rng = ir.clone(model), np.random.default_rng(0)
    rw = Rewriter(copy)
    for layer in list(layers(copy)):
        form = forms.get(layer.name)
        if form is not None:
            stand_in(rw, layer, form, rng)
    rw.remove_initializers()
    ir.infer_shapes(copy)
    return copy


def _sign(node: ir.Node) -> str:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return f"{node.op_type}{'' if weight is None else ir.dims(weight)}{ir.dims(node.outputs[0])}"


def _whole(model: ir.Model, feeds: Feeds) -> str:
    """What tells the model, as far as time goes, and its inputs."""
    signs = "\n".join(sorted(map(_sign, model.graph)))
    sizes = [list(np.shape(v)) for v in feeds.values()]
    return f"decompose {hashlib.sha256(signs.encode()).hexdigest()[:16]} {sizes}"

"""Layers beside shortcuts that may go whole, and what that saves and costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from graphopt import ir
from graphopt.decompose.items import Removal
from graphopt.decompose.parts import Part
from graphopt.measure import Trial, race
from graphopt.pruning.layers_out import Block, bypass, find_blocks, matches, take_out
from graphopt.pruning.noise import without
from graphopt.pruning.sizes import MEASURES, totals
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["bypassed", "closed", "find_removals"]

# Roughly how long to measure a form of the model, in seconds.
_SECONDS = 0.15


def find_removals(
    model: ir.Model,
    parts: Sequence[Part],
    trial: Trial,
    skip: Sequence[str],
    timed: dict[str, Any] | None,
    inputs: Sequence[Feeds],
) -> list[Removal]:
    """The innermost blocks around parts; each part is in one at most.

    Args:
        model: The model.
        parts: Layers that have forms.
        trial: Outputs of the model on samples, on which layers behind a block are fitted, too.
        skip: Patterns of names that stay.
        timed: How :func:`~graphopt.measure.race` measures; None where time is of no interest.
        inputs: What to measure on.
    """
    chosen = _innermost(model, parts, skip)
    if not chosen:
        return []
    noises = trial.noises(lambda each: without(model, each[0].name, trial.batches), chosen)
    signs = {part.name: part.sign for part in parts}
    alike: dict[str, list[Block]] = {}
    for block, members in chosen:
        alike.setdefault(" ".join(signs[name] for name in members), []).append(block)
    faster: dict[str, float] = {}
    if timed is not None:
        groups = list(alike.values())
        made = [closed(bypassed(model, names), names) for names in map(_names, groups)]
        ratios = race(model, made, inputs, seconds=_SECONDS, **timed)
        for group, (ratio, *_) in zip(groups, ratios, strict=True):
            faster |= {block.name: (1.0 - ratio) / len(group) for block in group}
    before = totals(model)
    found = []
    for (block, members), noise in zip(chosen, noises, strict=True):
        after = totals(closed(bypassed(model, [block.name]), [block.name]))
        saved = {what: before[what] - after[what] for what in MEASURES}
        found.append(Removal(block.name, members, noise, saved, faster.get(block.name, 0.0)))
    return found


def _innermost(
    model: ir.Model, parts: Sequence[Part], skip: Sequence[str]
) -> list[tuple[Block, tuple[str, ...]]]:
    """Blocks that may go, with the parts inside of them."""
    named = {layer.node: layer.name for layer in layers(model)}
    known = {part.name for part in parts}
    taken: set[ir.Node] = set()
    found = []
    blocks = [b for b in find_blocks(model) if b.reason is None and not matches(b, skip)]
    for block in sorted(blocks, key=lambda b: len(b.branch)):
        members = tuple(named[n] for n in block.branch if named.get(n) in known)
        if members and taken.isdisjoint(block.branch):
            taken.update(block.branch)
            found.append((block, members))
    order = {node: i for i, node in enumerate(model.graph)}
    return sorted(found, key=lambda each: order[each[0].add])


def _names(blocks: Sequence[Block]) -> list[str]:
    return [block.name for block in blocks]


def bypassed(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of a model with bypasses for some blocks; its nodes stay in number and order."""
    copy = ir.clone(model)
    for name in names:
        bypass(Rewriter(copy), next(b for b in find_blocks(copy) if b.name == name))
    return copy


def closed(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A model whose bypassed blocks are taken out; it is changed."""
    take_out(Rewriter(model), names)
    ir.infer_shapes(model)
    return model

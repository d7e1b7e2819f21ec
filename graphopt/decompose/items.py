"""What is chosen as one: layers, or those of a block that may also go whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.decompose.forms import Form
from graphopt.decompose.parts import Part
from graphopt.pruning.sizes import MEASURES, Measure

__all__ = ["Item", "Removal", "items"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """A layer beside a shortcut that may go whole.

    Attributes:
        name: Name of the sum that it belongs to.
        members: Names of the parts inside.
        noise: What its loss adds to the outputs, as a share of their energy.
        saved: What it saves of the sizes of the model.
        faster: What it saves of the latency, as a share.
    """

    name: str
    members: tuple[str, ...]
    noise: float
    saved: dict[Measure, float]
    faster: float


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """Something with options, the first of which changes nothing.

    Attributes:
        forms: What layers become in each option, by name.
        removed: The block that goes in each option, or None.
        noise: What each adds to the outputs, ``[options]``.
        saved: What each saves of the sizes of the model, ``[options]``.
        faster: What each saves of the latency, ``[options]``.
    """

    forms: tuple[Mapping[str, Form], ...]
    removed: tuple[str | None, ...]
    noise: Array
    saved: Mapping[Measure, Array]
    faster: Array

    def __len__(self) -> int:
        return len(self.forms)

    def kept(self, places: Sequence[int]) -> Item:
        """Some of the options."""
        at = list(places)
        return Item(
            tuple(self.forms[i] for i in at),
            tuple(self.removed[i] for i in at),
            self.noise[at],
            {what: saved[at] for what, saved in self.saved.items()},
            self.faster[at],
        )


def items(parts: Sequence[Part], removals: Sequence[Removal]) -> list[Item]:
    """Everything that is chosen by itself.

    Args:
        parts: The layers.
        removals: Blocks of them that may go, each part in one at most.
    """
    named = {part.name: part for part in parts}
    inside = {name for removal in removals for name in removal.members}
    found = [_single(part) for part in parts if part.name not in inside]
    for removal in removals:
        whole = _single(named[removal.members[0]])
        for name in removal.members[1:]:
            whole = _undominated(_product(whole, _single(named[name])))
        found.append(_with(whole, removal))
    return found


def _single(part: Part) -> Item:
    return Item(
        tuple({} if form is None else {part.name: form} for form in part.forms),
        (None,) * len(part.forms),
        part.noise,
        part.saved,
        part.faster,
    )


def _product(one: Item, other: Item) -> Item:
    """Every option of one with every option of the other."""

    def sums(a: Array, b: Array) -> Array:
        return np.asarray(np.add.outer(a, b)).reshape(-1)

    return Item(
        tuple({**a, **b} for a in one.forms for b in other.forms),
        (None,) * (len(one) * len(other)),
        sums(one.noise, other.noise),
        {what: sums(one.saved[what], other.saved[what]) for what in MEASURES},
        sums(one.faster, other.faster),
    )


def _undominated(item: Item) -> Item:
    """Without options that another one is no worse than in anything, and better in something."""
    gains = np.stack([-item.noise, item.faster, *(item.saved[what] for what in MEASURES)])
    kept = [
        i
        for i in range(len(item))
        if i == 0
        or not (
            (gains >= gains[:, i : i + 1]).all(axis=0) & (gains > gains[:, i : i + 1]).any(axis=0)
        ).any()
    ]
    return item.kept(kept)


def _with(item: Item, removal: Removal) -> Item:
    return Item(
        (*item.forms, {}),
        (*item.removed, removal.name),
        np.append(item.noise, removal.noise),
        {what: np.append(item.saved[what], removal.saved[what]) for what in MEASURES},
        np.append(item.faster, removal.faster),
    )

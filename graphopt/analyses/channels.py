"""Coupled channels: which elements of which tensors live and die together.

A channel that a convolution makes can be left out if everything that computes with it leaves it
out: normalisations, additions, concatenations, down to the weights that sum over it. What has to go
together is a class. The labels of a tensor say which of its elements belong to which class, as
arrays of class numbers that are moved as the data is: an index map for every operator, so that
slices, pads, concatenations, shuffles and heads come out exactly. In the spirit of DepGraph (Fang
et al., CVPR 2023), on elements instead of layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt import ir
from graphopt.analyses.channel_bodies import BODIES
from graphopt.analyses.channel_classes import Ids, connected, rectangular, varying
from graphopt.analyses.channel_elements import ELEMENTS
from graphopt.analyses.channel_flow import End, Factors, Flow, Maker
from graphopt.analyses.channel_layout import LAYOUT
from graphopt.analyses.channel_products import PRODUCTS, SOURCES
from graphopt.analyses.channel_ties import ties

if TYPE_CHECKING:
    from graphopt.manager.context import Context

__all__ = ["Channels", "End", "Group", "Maker", "connected"]

_HANDLERS = {**ELEMENTS, **LAYOUT, **PRODUCTS, **BODIES}
_SOURCES = SOURCES | frozenset(BODIES) | {"Gather"}


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Classes that the same makers, ends, constants and tensors have, equally often.

    They are interchangeable channels.

    Attributes:
        name: Name of the first tensor that has them; several groups may start at one.
        classes: Their numbers, ``[channels]``, in the order of this tensor.
        reason: Why none of them may be removed; None if they may, down to one that has to stay.
        kind: ``heads`` where they are heads of attention, ``channels`` elsewhere.
    """

    name: str
    classes: Ids
    reason: str | None
    kind: Literal["channels", "heads"]


class Channels:
    """Classes of channels of a model.

    Factors are arrays of class numbers of the rank of a tensor, full along one axis and of size 1
    along all others. A tensor may have several; its element is removed if any of its factors has a
    removed class there.

    Attributes:
        model: The model.
        count: Number of classes.
        labels: Factors of the computed tensors that have any, in graph order, those of the graphs
            inside of If, Loop and Scan among them. What is not understood has none.
        constants: Factors of constants that lose elements, per use: node and index of its input.
            The constant may stand behind DequantizeLinear, whose parameters follow.
        ends: Where channels are summed away.
        makers: Constants whose rows make channels.
        groups: All groups, in graph order.
        free: Whether a class may be removed, ``[count]``.
    """

    def __init__(self, model: ir.Model, ctx: Context | None = None) -> None:
        """Follow the channels.

        Args:
            model: A model in normal form with shapes inferred. What computes shapes at run time
                should be folded before (pipeline ``O2``), since sizes that are read freeze.
            ctx: Not used.
        """
        self.model = model
        flow = Flow(_HANDLERS, _SOURCES)
        flow.visit(model.graph)
        for value in model.graph.outputs:
            flow.freeze(flow.labels.get(value, ()), value, "is an output of the model")
        self._resolve(flow)
        self._reduce(flow)
        self._tie(flow)
        self._freeze(flow)
        self.groups = self._grouped(flow)

    def why(self, number: int) -> str | None:
        """Why a class may not be removed, None if it may."""
        return self._reasons.get(int(number))

    def _resolve(self, flow: Flow) -> None:
        factors = {id(f): f for f in _arrays(flow)}
        roots = rectangular(flow.count, flow.pairs, factors.values())
        self._ids, self._classes = np.unique(roots, return_inverse=True)
        self.count = len(self._ids)

    def _tie(self, flow: Flow) -> None:
        """Let what the readers of a weight lose be equal."""
        while True:
            pairs, whole = ties(self.constants)
            new = [(self._ids[a], self._ids[b]) for a, b in pairs if not np.array_equal(a, b)]
            if not new:
                break
            flow.pairs += new
            self._resolve(flow)
            self._reduce(flow)
        flow.frozen += [(self._ids[ids], reason) for ids, reason in whole]

    def _freeze(self, flow: Flow) -> None:
        self.free = np.ones(self.count, bool)
        self._reasons: dict[int, str] = {}
        frozen = [(self._classes[ids], reason) for ids, reason in flow.frozen]
        for value, factors in flow.labels.items():
            for factor in factors:
                ids = self._classes[factor]
                if ids.size and ids.min() == ids.max():
                    name = value.name
                    frozen.append((ids.ravel()[:1], f"{name!r} would have no channels without it"))
        for ids, reason in frozen:
            each = np.unique(ids)
            new = each[self.free[each]]
            self._reasons |= dict.fromkeys(new.tolist(), reason)
            self.free[new] = False

    def _reduce(self, flow: Flow) -> None:
        """Let every factor vary along one axis only."""
        known: dict[int, Ids] = {}

        def reduced(factor: Ids) -> Ids:
            found = known.get(id(factor))
            if found is None:
                ids = self._classes[factor]
                axes = varying(ids) or [int(np.argmax(ids.shape))] if ids.ndim else []
                for axis in range(ids.ndim):
                    if axis not in axes:
                        ids = ids.take([0], axis)
                found = known[id(factor)] = ids
            return found

        self.labels = {v: tuple(reduced(f) for f in fs) for v, fs in flow.labels.items()}
        self.ends = [End(e.node, e.index, reduced(e.factor)) for e in flow.ends]
        self.makers = [Maker(m.node, m.index, reduced(m.factor)) for m in flow.makers]
        self.constants: dict[tuple[ir.Node, int], Factors] = {}
        for use in flow.adopted:
            node, index, axes = use.node, use.index, use.axes
            ids = reduced(use.factor)
            found = flow.constant(node.inputs[index])
            shape = () if found is None else found.dims
            axis = int(np.argmax(ids.shape)) if ids.ndim else -1
            if axis not in axes or shape[axes.index(axis)] != ids.size:
                continue  # it does not vary along the axis that loses something
            own = ids.reshape([ids.size if a == axis else 1 for a in axes])
            before = self.constants.get((node, index), ())
            if not any(f is own or np.array_equal(f, own) for f in before):
                self.constants[node, index] = (*before, own)

    def _grouped(self, flow: Flow) -> tuple[Group, ...]:
        values = [(v.name or "", f) for v, factors in self.labels.items() for f in factors]
        slots = [f for _, f in values]
        slots += [x.factor for x in self.ends]
        slots += [x.factor for x in self.makers]
        slots += [f for factors in self.constants.values() for f in factors]
        unique = list({id(f): f for f in slots}.values())
        marks = np.random.default_rng(0).integers(0, 2**63, (len(unique), 2), np.uint64)
        # A class is told by the sum of random numbers of the slots that have it, as often as they
        # do: 128 bits.
        signs = np.zeros((self.count, 2), np.uint64)
        for mark, factor in zip(marks, unique, strict=True):
            each, often = np.unique(factor, return_counts=True)
            signs[each] += mark * often[:, None].astype(np.uint64)
        first = np.full(self.count, -1)
        order: list[int] = []
        names: dict[int, str] = {}
        for name, factor in values:
            new = [k for k in dict.fromkeys(factor.ravel().tolist()) if first[k] < 0]
            first[new] = np.arange(len(order), len(order) + len(new))
            names |= dict.fromkeys(new, name)
            order += new
        heads = np.zeros(self.count, bool)
        for ids in flow.heads:
            heads[self._classes[ids]] = True
        members: dict[tuple[Any, ...], list[int]] = {}
        for k in order:
            members.setdefault((*signs[k].tolist(), bool(self.free[k])), []).append(k)
        groups = []
        for classes in members.values():
            kind: Literal["channels", "heads"] = "heads" if heads[classes[0]] else "channels"
            name, reason = names[classes[0]], self.why(classes[0])
            groups.append(Group(name, np.array(classes), reason, kind))
        return tuple(groups)


def _arrays(flow: Flow) -> Iterable[Ids]:
    for factors in flow.labels.values():
        yield from factors
    yield from (x.factor for x in flow.ends)
    yield from (x.factor for x in flow.makers)
    yield from (x.factor for x in flow.adopted)

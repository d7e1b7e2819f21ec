"""Running a model over samples piece by piece, holding no more than what later nodes read.

Layers are fitted one after the other, each on what the changed layers before it compute. To run the
model from its beginning for each would take time that is quadratic in its depth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.runtime import Feeds, open_session

__all__ = ["Walk"]

Array = np.ndarray[Any, Any]


class Walk:
    """A model that is run up to a node, and later on from there.

    Attributes:
        position: Nodes of the main graph before this one have run.
    """

    def __init__(self, model: ir.Model, batches: Iterable[Feeds], *, threads: int = 2) -> None:
        """Start before the first node.

        Args:
            model: The model. Weights of nodes that have not run yet may change on the way.
            batches: Its inputs.
            threads: Threads within an operator.
        """
        self.model = model
        self.position = 0
        self._threads = threads
        self._nodes = list(model.graph)
        self._last: dict[str, int] = {}
        for i, node in enumerate(self._nodes):
            for value in _reads(node):
                self._last[value.name or ""] = i
        self._held: dict[str, list[Any]] = {}
        count = 0
        for count, feeds in enumerate(batches, 1):
            for name, array in feeds.items():
                self._held.setdefault(name, []).append(array)
        self.batches = count
        self._values = {v.name or "": v for v in model.graph.inputs}

    def holds(self, name: str) -> bool:
        """Whether a value is held."""
        return name in self._held

    def values(self, name: str) -> list[Array]:
        """A value that is held, batch by batch."""
        return self._held[name]

    def to(self, position: int, keep: Collection[str] = ()) -> None:
        """Run the nodes before a position.

        Args:
            position: Index of a node of the main graph, or their number.
            keep: Names of values that are held although no later node reads them.
        """
        if position > self.position:
            self._run(position, keep)
            self.position = position
        for name in list(self._held):
            if name not in keep and self._last.get(name, -1) < self.position:
                del self._held[name]
                self._values.pop(name, None)

    def _run(self, position: int, keep: Collection[str]) -> None:
        nodes = self._nodes[self.position : position]
        made = [v for node in nodes for v in node.outputs if v.name]
        wanted = [v for v in made if self._last.get(v.name or "", -1) >= position or v.name in keep]
        if not wanted:
            return
        needed = _needed(nodes, wanted)
        given = [v for name, v in self._values.items() if name in needed]
        part = ir.segment(self.model, given, wanted)
        names = [v.name or "" for v in wanted]
        with open_session(part, optimize=True, threads=self._threads) as session:
            for i in range(self.batches):
                feeds = {v.name or "": self._held[v.name or ""][i] for v in given}
                found = session.run(feeds)
                for name in names:
                    self._held.setdefault(name, []).append(found[name])
        self._values |= zip(names, wanted, strict=True)


def _reads(node: ir.Node) -> Iterable[ir.Value]:
    """Values that a node reads, those that its subgraphs read included."""
    yield from (v for v in node.inputs if v is not None)
    for graph in ir.subgraphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from _reads(inner)


def _needed(nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> set[str]:
    """Names of the values that the nodes read to compute others."""
    needed = {v.name or "" for v in wanted}
    for node in reversed(nodes):
        if any(v.name in needed for v in node.outputs):
            needed.update(v.name or "" for v in _reads(node))
    return needed

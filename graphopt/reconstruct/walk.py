"""Running a model over samples piece by piece, holding no more than what later nodes read.

Layers are fitted one after the other, each on what the changed layers before it compute. To run the
model from its beginning for each would take time that is quadratic in its depth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.reconstruct.held import Held
from graphopt.runtime import Feeds, Session, open_session

__all__ = ["Walk", "behind", "reads"]

Array = np.ndarray[Any, Any]


class Walk:
    """A model that is run up to a node, and later on from there.

    What is held of many samples goes to files where it would take too much memory; close the walk,
    or use it in a with statement.

    Attributes:
        position: Nodes of the main graph before this one have run.
    """

    def __init__(self, model: ir.Model, batches: Iterable[Feeds], *, threads: int = 2) -> None:
        """Start before the first node.

        Args:
            model: The model. Weights of nodes that have not run yet may change on the way.
            batches: Its inputs. Those without an element are left out: few models run on them.
            threads: Threads within an operator.

        Raises:
            CalibrationError: There are no batches, or one lacks an input.
        """
        self.model = model
        self.position = 0
        self._threads = threads
        self._nodes = list(model.graph)
        self._last: dict[str, int] = {}
        for i, node in enumerate(self._nodes):
            for value in reads(node):
                self._last[value.name or ""] = i
        given = [dict(feeds) for feeds in batches if not _empty(feeds)]
        needed = {v.name or "" for v in ir.inputs(model)} & self._last.keys()
        self._held = Held()
        for name, values in _columns(given, needed).items():
            self._held.lend(name, values)
        self.batches = len(given)
        self._values = {v.name or "": v for v in model.graph.inputs if (v.name or "") in self._held}

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the memory and files of what is held."""
        self._held.close()

    def holds(self, name: str) -> bool:
        """Whether a value is held."""
        return name in self._held

    def values(self, name: str) -> Sequence[Array]:
        """A value that is held, batch by batch, as long as it is held."""
        return self._held.all(name)

    def to(self, position: int, keep: Collection[str] = ()) -> None:
        """Run the nodes before a position.

        Args:
            position: Index of a node of the main graph, or their number.
            keep: Names of values that are held although no later node reads them.
        """
        if position > self.position:
            self._run(position, keep)
            self.position = position
        for name in self._held:
            if name not in keep and self._last.get(name, -1) < self.position:
                self._held.drop(name)
                self._values.pop(name, None)

    def ahead(self, value: ir.Value) -> Iterator[Array]:
        """A value that later nodes compute, batch by batch, with the weights they have now."""
        given = self._given(self._nodes[self.position :], [value])
        name = value.name or ""
        with self._open(given, [value]) as session:
            for i in range(self.batches):
                yield session.run({v.name or "": self._held.get(v.name or "", i) for v in given})[
                    name
                ]

    def _given(self, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> list[ir.Value]:
        """What is held of the values that nodes read to compute others."""
        needed = _needed(nodes, wanted)
        return [v for name, v in self._values.items() if name in needed]

    def _open(self, given: Sequence[ir.Value], wanted: Sequence[ir.Value]) -> Session:
        part = ir.segment(self.model, given, wanted)
        return open_session(part, optimize=True, threads=self._threads)

    def _run(self, position: int, keep: Collection[str]) -> None:
        nodes = self._nodes[self.position : position]
        made = [v for node in nodes for v in node.outputs if v.name]
        wanted = [v for v in made if self._last.get(v.name or "", -1) >= position or v.name in keep]
        if not wanted:
            return
        given = self._given(nodes, wanted)
        names = [v.name or "" for v in wanted]
        read = [v.name or "" for v in given]
        gone = [n for n in read if n not in keep and self._last.get(n, -1) < position]
        with self._open(given, wanted) as session:
            for i in range(self.batches):
                found = session.run({name: self._held.get(name, i) for name in read})
                for name in gone:  # not before all batches have run: it is as large as the result
                    self._held.drop(name, i)
                for name in names:
                    self._held.add(name, found[name])
        self._values |= zip(names, wanted, strict=True)


def reads(node: ir.Node) -> Iterable[ir.Value]:
    """Values that a node reads, those that its subgraphs read included."""
    yield from (v for v in node.inputs if v is not None)
    for graph in ir.subgraphs(node):
        for inner in graph:
            yield from reads(inner)


def behind(model: ir.Model, names: Collection[str]) -> set[str]:
    """Names of values, and of all that the main graph computes from them."""
    found = set(names)
    for node in model.graph:
        if any(v.name in found for v in reads(node)):
            found |= {v.name or "" for v in node.outputs}
    return found


def _empty(feeds: Feeds) -> bool:
    return bool(feeds) and all(getattr(array, "size", 1) == 0 for array in feeds.values())


def _columns(batches: Sequence[Feeds], needed: Collection[str]) -> dict[str, list[Any]]:
    """What batches hold, by name of the input."""
    if not batches:
        raise CalibrationError("there are no samples to run the model on")
    names = set(needed).union(*batches)
    for feeds in batches:
        lacking = sorted(names.difference(feeds))
        if lacking:
            raise CalibrationError(f"a batch of samples lacks the input {lacking[0]!r}")
    return {name: [feeds[name] for feeds in batches] for name in sorted(names)}


def _needed(nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> set[str]:
    """Names of the values that the nodes read to compute others."""
    needed = {v.name or "" for v in wanted}
    for node in reversed(nodes):
        if any(v.name in needed for v in node.outputs):
            needed.update(v.name or "" for v in reads(node))
    return needed

"""What a model costs without some of its channels, before any is cut out.

The work of a linear operator and the size of a constant are products of the lengths of their axes,
and removing channels shortens axes. So each is a *term*: what it costs in full, times the share of
channels that is left along each labelled axis. Greedy allocation takes away thousands of channels
one at a time; with terms a step takes microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from graphopt import ir
from graphopt.analyses import Channels, Cost
from graphopt.analyses.channel_constants import sources

__all__ = ["MEASURES", "Measure", "Sizes", "totals"]

Array = np.ndarray[Any, Any]
Factors = tuple[Array, ...]
Measure = Literal["macs", "params", "bytes"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


def totals(model: ir.Model) -> dict[Measure, float]:
    """The sizes of a model as it is, every constant counted once."""
    cost = Cost(model)
    tensors = (v.const_value for g in ir.all_graphs(model) for v in g.initializers.values())
    nbytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return {"macs": float(cost.macs), "params": float(cost.parameters), "bytes": float(nbytes)}


class Sizes:
    """Multiply-accumulates, parameters and bytes as functions of which channels are left.

    The bodies of loops count as they are. Dimensions that are not known count as 1, and of the
    branches of an If the dearest counts, as in :class:`~graphopt.analyses.Cost`.

    Attributes:
        channels: The analysis.
        full: Number of channels of each of ``channels.groups``, float64 ``[groups]``.
        before: The sizes of the original.
    """

    def __init__(
        self, model: ir.Model, channels: Channels, original: ir.Model | None = None
    ) -> None:
        """Find the terms.

        Args:
            model: The model.
            channels: Its channels.
            original: What the shares of a goal are of; the model itself by default.
        """
        self.channels = channels
        self.before = totals(original or model)
        self.full = np.array([len(g.classes) for g in channels.groups], np.float64)
        self._axes: list[Array] = []
        self._known: dict[bytes, int] = {}
        cost = Cost(model)
        found: dict[Measure, list[tuple[float, Factors]]] = {
            "macs": self._work(model.graph, cost), "params": [], "bytes": [],
        }  # fmt: skip
        for size, nbytes, factors in self._constants(model):
            found["params"].append((size, factors))
            found["bytes"].append((nbytes, factors))
        self._terms = {what: self._compiled(terms) for what, terms in found.items()}
        self._rest = {
            "macs": cost.macs - math.fsum(c for c, _ in found["macs"]),
            "params": 0.0,
            "bytes": 0.0,
        }
        self._members = self._shares()

    def macs(self, dead: Array) -> float:
        """Multiply-accumulates per inference without classes; ``dead`` is bool ``[count]``."""
        return self._total("macs", self._left(dead))

    def parameters(self, dead: Array) -> float:
        """Elements of all constants without classes; ``dead`` is bool ``[count]``."""
        return self._total("params", self._left(dead))

    def bytes(self, dead: Array) -> float:
        """Bytes of all constants without classes; ``dead`` is bool ``[count]``."""
        return self._total("bytes", self._left(dead))

    def at(self, what: Measure, alive: Array) -> float:
        """A size as a function of how many channels of each group are left.

        Args:
            what: Which size.
            alive: Numbers of channels, ``[groups]``; they need not be whole.
        """
        return self._total(what, self._fixed + self._members @ alive)

    def marginal(self, what: Measure, alive: Array) -> Array:
        """What one channel of each group is worth: the derivative of :meth:`at`.

        Where no operator reads and writes channels of one group, this is exactly what removing one
        more saves.

        Args:
            what: Which size.
            alive: Numbers of channels that are left, ``[groups]``.

        Returns:
            float64 ``[groups]``.
        """
        left = self._fixed + self._members @ alive
        base, index = self._terms[what]
        values = np.append(left, 1.0)[index]
        slopes = np.zeros(len(left) + 1)
        for k in range(index.shape[1]):
            others = np.delete(values, k, axis=1).prod(axis=1)
            np.add.at(slopes, index[:, k], base * others)
        return np.asarray(slopes[:-1] @ self._members)

    def _total(self, what: Measure, left: Array) -> float:
        base, index = self._terms[what]
        return float(self._rest[what] + base @ np.append(left, 1.0)[index].prod(axis=1))

    def _left(self, dead: Array) -> Array:
        """Share of each axis that is left."""
        if dead.shape != (self.channels.count,):
            raise ValueError(f"dead says of {self.channels.count} classes whether they are gone")
        alive = ~np.asarray(dead, bool)
        return np.array([alive[axis].mean() for axis in self._axes])

    def _shares(self) -> Array:
        """How much of each axis a channel of each group is, ``[axes, groups]``."""
        group_of = np.full(self.channels.count, -1)
        for i, group in enumerate(self.channels.groups):
            group_of[group.classes] = i
        shares = np.zeros((len(self._axes), len(self.full)))
        self._fixed = np.zeros(len(self._axes))
        for i, axis in enumerate(self._axes):
            owners = group_of[axis]
            counts = np.bincount(owners + 1, minlength=len(self.full) + 1) / len(axis)
            self._fixed[i], shares[i] = counts[0], counts[1:] / self.full
        return shares

    def _compiled(self, terms: Sequence[tuple[float, Factors]]) -> tuple[Array, Array]:
        """Terms as arrays: what they cost in full, and which axes they go with (-1 for none)."""
        rows = [[self._axis(f) for f in factors] for _, factors in terms]
        width = max(map(len, rows), default=0)
        index = np.full((len(rows), max(width, 1)), -1)
        for i, row in enumerate(rows):
            index[i, : len(row)] = row
        return np.array([c for c, _ in terms], np.float64), index

    def _axis(self, factor: Array) -> int:
        ids = np.ascontiguousarray(factor.reshape(-1), np.int64)
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = len(self._axes)
            self._axes.append(ids)
        return self._known[key]

    def _constants(self, model: ir.Model) -> list[tuple[int, int, Factors]]:
        """Elements, bytes and labels of every constant; used with unlike labels it is several."""
        labels: dict[ir.Value, dict[bytes, Factors]] = {}
        for (node, index), factors in self.channels.constants.items():
            for value, found in sources(node.inputs[index], factors):
                key = b"|".join(str(f.shape).encode() + f.tobytes() for f in found)
                labels.setdefault(value, {})[key] = found
        return [
            (tensor.size, tensor.nbytes, factors)
            for graph in ir.all_graphs(model)
            for value in graph.initializers.values()
            if (tensor := value.const_value) is not None
            for factors in labels.get(value, {b"": ()}).values()
        ]

    def _work(self, graph: ir.Graph, cost: Cost) -> list[tuple[float, Factors]]:
        terms: list[tuple[float, Factors]] = []
        for node in graph:
            macs = cost.nodes[node].macs
            if macs:
                terms += self._node(node, macs)
            elif node.op_type == "If":
                branches = [self._work(inner, cost) for inner in ir.subgraphs(node)]
                terms += max(branches, key=lambda found: sum(macs for macs, _ in found))
        return terms

    def _node(self, node: ir.Node, macs: int) -> list[tuple[float, Factors]]:
        """The work of a node: its multiply-accumulates, by what they are proportional to."""
        if node.op_type in ("LSTM", "GRU", "RNN"):
            parts = [(math.prod(ir.static_shape(node.inputs[i]) or ()), i) for i in (1, 2)]
            both = sum(size for size, _ in parts)
            return [(macs * size / both, self._of(node, i)) for size, i in parts]
        # What is left of the output (of the input, where that is spread) times what is summed over.
        spread = node.op_type == "ConvTranspose"
        outer = self._of(node, 0) if spread else self.channels.labels.get(node.outputs[0], ())
        return [(macs, (*outer, *self._summed(node)))]

    def _summed(self, node: ir.Node) -> Factors:
        """Labels along the axes that a linear operator sums over."""
        op = node.op_type
        if op in ("Conv", "ConvTranspose"):
            return tuple(f for f in self._of(node, 1) if f.shape[0] == 1)
        rank = ir.rank(node.inputs[0]) or 0
        if op == "Gemm":
            axis = 0 if ir.attr(node, "transA", 0) else 1
        elif op in ("MatMul", "FusedMatMul"):
            axis = rank - 1
        else:
            return ()
        return tuple(f for f in self._of(node, 0) if f.ndim == rank and f.shape[axis] > 1)

    def _of(self, node: ir.Node, index: int) -> Factors:
        """Labels of an input of a node."""
        value = node.inputs[index]
        if value is None:
            return ()
        return self.channels.constants.get((node, index)) or self.channels.labels.get(value, ())

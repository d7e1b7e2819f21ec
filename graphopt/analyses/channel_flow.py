"""What is known of channels while they are followed through a graph, node by node."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from graphopt import ir
from graphopt.analyses.channel_classes import Ids
from graphopt.analyses.channel_constants import Constant, constant
from graphopt.analyses.channel_moves import lift, picked

__all__ = [
    "Adopted",
    "End",
    "Factors",
    "Flow",
    "Handler",
    "Maker",
    "Operand",
    "Stop",
    "at",
    "of_data",
]

Factors = tuple[Ids, ...]
Dims = tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class End:
    """Where channels are summed away, so that zeros there are as good as no channels.

    Attributes:
        node: The node that sums.
        index: Which of its inputs has the channels; the recurrent weight, for hidden units.
        factor: Classes, of the rank of this input, full along one axis and 1 along others.
    """

    node: ir.Node
    index: int
    factor: Ids


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """A constant whose rows make channels: the weight of a Conv, Gemm, MatMul, an embedding, ...

    Attributes:
        node: The node that reads it.
        index: As which input.
        factor: Classes, of the rank of the constant, full along one axis and 1 along others.
    """

    node: ir.Node
    index: int
    factor: Ids


@dataclasses.dataclass(frozen=True, eq=False)
class Adopted:
    """Channels of a constant, which are those of what it is computed with.

    Attributes:
        node: The node that reads the constant.
        index: As which input.
        factor: Ids in the axes of the node.
        axes: For every axis of the constant the axis of the node.
    """

    node: ir.Node
    index: int
    factor: Ids
    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """An input of an operator that goes through elements of all its inputs together.

    Attributes:
        index: Which input; -1 for what the node computed itself.
        factors: Its ids, in the axes of the node.
        dims: Its sizes, in the axes of the node, 1 for axes it does not have.
        axes: For every axis of the input the axis of the node.
        losable: Axes of the node along which it can lose elements, being made of constants.
    """

    index: int
    factors: Factors
    dims: Dims
    axes: tuple[int, ...]
    losable: frozenset[int]


class Stop(Exception):  # noqa: N818 - not an error: the reason why channels are not followed
    """Why what a node reads may not lose channels, to be read after the name of the node."""


Handler = Callable[["Flow", ir.Node], None]


class Flow:
    """Channels of the tensors of a graph, as far as they are known.

    Attributes:
        labels: Factors of the tensors that have any.
        count: Number of ids.
        pairs: Ids that are equal, element by element.
        frozen: Ids that have to stay, and why.
        adopted: Constants that lose elements, per use.
        ends: Where channels end.
        makers: Constants that make channels.
        heads: Ids of batch axes of products of two activations.
    """

    def __init__(self, handlers: Mapping[str, Handler], sources: frozenset[str]) -> None:
        """Take the operators that are understood.

        Args:
            handlers: What to do, by operator.
            sources: Operators whose results may have channels where none of their inputs has.
        """
        self._handlers, self._sources = handlers, sources
        self.labels: dict[ir.Value, Factors] = {}
        self.count = 0
        self.pairs: list[tuple[Ids, Ids]] = []
        self.frozen: list[tuple[Ids, str]] = []
        self.adopted: list[Adopted] = []
        self.ends: list[End] = []
        self.makers: list[Maker] = []
        self.heads: list[Ids] = []
        self._constants: dict[ir.Value, Constant | None] = {}

    # Nodes

    def visit(self, graph: ir.Graph) -> None:
        """Follow the channels through all nodes of a graph."""
        for node in graph:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        known = any(v in self.labels for v in (*node.inputs, *_inside(node)))
        if not known and (node.domain or node.op_type not in self._sources):
            return
        handler = None if node.domain else self._handlers.get(node.op_type)
        try:
            if handler is None:
                raise Stop("is not understood")
            handler(self, node)
        except Stop as e:
            for value in node.outputs:
                self.labels.pop(value, None)
            for each in (*node.inputs, *_inside(node)):
                if each is not None:
                    self.freeze(self.labels.get(each, ()), node, str(e))

    # Verbs of handlers

    def fresh(self, count: int) -> Ids:
        """New ids, ``[count]``."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def pair(self, one: Ids, other: Ids) -> None:
        """Let ids be equal, with broadcasting."""
        if one is not other:
            a, b = np.broadcast_arrays(one, other)
            self.pairs.append((a.ravel(), b.ravel()))

    def freeze(self, factors: Iterable[Ids], where: ir.Node | ir.Value, why: str) -> None:
        """Let channels stay, because of a node or a value."""
        if isinstance(where, ir.Node):
            domain = f"{where.domain}." if where.domain else ""
            name = next((v.name for v in where.outputs if v.name), "")
            why = f"{domain}{where.op_type} {name!r} {why}"
        else:
            why = f"{where.name!r} {why}"
        self.frozen += [(f.ravel(), why) for f in factors]

    def of(self, node: ir.Node, index: int = 0) -> Factors:
        """Factors of an input, none where nothing is known of it."""
        value = at(node, index)
        return () if value is None else self.labels.get(value, ())

    def only(self, node: ir.Node, *indices: int) -> None:
        """Freeze what other inputs than these have."""
        for i in range(len(node.inputs)):
            if i not in indices:
                self.freeze(self.of(node, i), node, "reads it as a parameter")

    def make(self, node: ir.Node, factors: Iterable[Ids], index: int = 0) -> None:
        """Let an output have factors; those of size 1 tell nothing but that a channel stays."""
        found = tuple(factors)
        if index < len(node.outputs) and node.outputs[index].name and found:
            self.labels[node.outputs[index]] = found

    def merged(self, factor: Ids, axes: Iterable[int]) -> Ids:
        """A factor with what lies along axes merged, so that it does not vary along them."""
        first = factor
        for axis in axes:
            first = picked(first, axis, slice(0, 1))
        if first.shape != factor.shape:
            self.pair(first, factor)
        return first

    def apart(self, factors: Factors, axes: Iterable[int], node: ir.Node, why: str) -> Factors:
        """Factors where a node mixes what lies along axes.

        What varies along others as well is merged over these axes; what does not is frozen.
        """
        gone = set(axes)
        left = []
        for factor in factors:
            vary = {a for a, n in enumerate(factor.shape) if n != 1}
            if vary and vary <= gone:
                self.freeze([factor], node, why)
            else:
                left.append(self.merged(factor, gone & vary))
        return tuple(left)

    def end(self, node: ir.Node, index: int, factor: Ids) -> None:
        """Channels end at an input."""
        self.ends.append(End(node, index, factor))

    def maker(self, node: ir.Node, index: int, factor: Ids) -> None:
        """The rows of a constant make channels, and it loses them."""
        self.makers.append(Maker(node, index, factor))
        self.adopt(node, index, factor)

    def adopt(
        self, node: ir.Node, index: int, factor: Ids, axes: Sequence[int] | None = None
    ) -> None:
        """A constant loses what a factor loses.

        Args:
            node: The node that reads it.
            index: As which input.
            factor: Ids.
            axes: For every axis of the constant that of the ids; all, in order, by default.
        """
        found = tuple(range(factor.ndim)) if axes is None else tuple(axes)
        self.adopted.append(Adopted(node, index, factor, found))

    # Constants

    def constant(self, value: ir.Value | None) -> Constant | None:
        """What is known of a value that is made of constants, None for others.

        Rows of a table that computed indices choose have channels of their own.
        """
        if value is None or value in self.labels:
            return None
        if value not in self._constants:
            self._constants[value] = constant(value, self.constant)
        return self._constants[value]

    def fixed(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Shape of a constant, also behind DequantizeLinear; None for what is computed."""
        found = self.constant(value)
        if found is None or not found.plain:
            return None
        return tuple(n for n in found.dims if isinstance(n, int))

    def weight(self, node: ir.Node, index: int) -> tuple[int, ...]:
        """Shape of a constant input.

        Raises:
            Stop: It is computed.
        """
        shape = self.fixed(at(node, index))
        if shape is None:
            raise Stop(f"has an input {index} that is computed")
        return shape

    # Elements of several tensors together

    def operand(
        self, node: ir.Node, index: int, rank: int, axes: Sequence[int] | None = None
    ) -> Operand:
        """An input in the axes of its node, aligned at the last one by default.

        Raises:
            Stop: Its rank is not known.
        """
        value = node.inputs[index]
        dims = self.dims(value)
        if dims is None:
            raise Stop("reads something of unknown rank")
        if axes is None:
            axes = range(rank - len(dims), rank)
        sizes: list[int | str | None] = [1] * rank
        for axis, size in zip(axes, dims, strict=True):
            sizes[axis] = size
        factors = tuple(lift(f, axes, rank) for f in self.of(node, index))
        found = self.constant(value)
        losable = frozenset() if found is None else frozenset(axes[a] for a in found.axes)
        return Operand(index, factors, tuple(sizes), tuple(axes), losable)

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Sizes of a value as far as they are known, None for unknown rank."""
        found = self.constant(value)
        if found is not None:
            return found.dims
        dims = ir.dims(value)
        factors = () if value is None else self.labels.get(value, ())
        if dims is None and not factors:
            return None
        sizes = list(dims) if dims is not None else [None] * factors[0].ndim
        for factor in factors:
            if factor.ndim != len(sizes):
                raise Stop("reads something of contradictory rank")
            for axis, size in enumerate(factor.shape):
                if size != 1:
                    sizes[axis] = size
        return tuple(sizes)

    def join(self, node: ir.Node, operands: Sequence[Operand]) -> Factors:
        """Let what is computed with each other, element by element, have equal ids.

        Constants adopt them. What varies along axes of something that is not followed freezes, and
        is left out, or is merged over these axes if it varies along others as well.

        Returns:
            The ids of the result, in the axes of the node.

        Raises:
            Stop: Sizes contradict each other.
        """
        found: list[tuple[set[int], list[tuple[Operand, Ids]]]] = []
        for operand in operands:
            for factor in operand.factors:
                axes = {a for a, n in enumerate(factor.shape) if n != 1}
                members = [(operand, factor)]
                others = []
                for theirs, more in found:
                    if axes & theirs or not axes | theirs:
                        axes, members = axes | theirs, [*more, *members]
                    else:
                        others.append((theirs, more))
                found = [*others, (axes, members)]
        joints = [
            self._joint(node, operands, each) for _, members in found for each in _matched(members)
        ]
        return tuple(j for j in joints if j is not None)

    def _joint(
        self,
        node: ir.Node,
        operands: Sequence[Operand],
        members: list[tuple[Operand, Ids]],
    ) -> Ids | None:
        try:
            shape = np.broadcast_shapes(*(f.shape for _, f in members))
        except ValueError:
            raise Stop("joins channels of different numbers") from None
        axes = {a for a, n in enumerate(shape) if n != 1}
        joint = next((f for _, f in members if f.shape == shape), None)
        if joint is None:
            joint = np.broadcast_to(members[0][1], shape)
        for _, factor in members:
            self.pair(joint, factor)
        inside = {operand.index for operand, _ in members}
        for operand in operands:
            own = {a for a in axes if operand.dims[a] != 1}
            if operand.index in inside or not own:
                continue
            if not own <= operand.losable:
                value = None if operand.index < 0 else node.inputs[operand.index]
                name = "something" if value is None else repr(value.name)
                why = f"joins it with {name}, which has to stay as it is"
                joint = next(iter(self.apart((joint,), own - operand.losable, node, why)), None)
                if joint is None:
                    return None
            if own & operand.losable:
                self.adopt(node, operand.index, joint, operand.axes)
        return joint


def _matched(members: list[tuple[Operand, Ids]]) -> list[list[tuple[Operand, Ids]]]:
    """Factors of several operands along the same axes, those together that become equal.

    A tensor may have several along one axis, such as heads and channels of each head: they stay
    apart if each operand has as many.
    """
    rows: dict[int, list[tuple[Operand, Ids]]] = {}
    for operand, factor in members:
        rows.setdefault(operand.index, []).append((operand, factor))
    if len({len(row) for row in rows.values()}) > 1:
        return [members]
    return [list(column) for column in zip(*rows.values(), strict=True)]


def _inside(node: ir.Node) -> Iterator[ir.Value | None]:
    """What the graphs inside of a node read, make and return."""
    for graph in ir.subgraphs(node):
        for inner in graph:
            yield from inner.inputs
            yield from inner.outputs
            yield from _inside(inner)
        yield from graph.outputs


def at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def of_data(handler: Callable[[Flow, ir.Node, Factors], None]) -> Handler:
    """A handler of an operator whose first input alone may have channels; others are parameters."""

    @functools.wraps(handler)
    def handle(flow: Flow, node: ir.Node) -> None:
        flow.only(node, 0)
        factors = flow.of(node)
        if factors:
            handler(flow, node, factors)

    return handle

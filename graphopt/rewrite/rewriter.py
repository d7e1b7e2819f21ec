"""The Rewriter: the one channel through which a pass changes a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from graphopt import ir
from graphopt.errors import StructureError
from graphopt.ir.schema import check_call, first_opset
from graphopt.rewrite.subgraphs import SubgraphVerbs, fresh_type
from graphopt.rewrite.whole import ModelVerbs

__all__ = ["AttrValue", "Rewriter", "is_dead"]

AttrValue = (
    int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str]
    | ir.TensorProtocol | ir.Graph | ir.Attr | None
)  # fmt: skip


class Rewriter(SubgraphVerbs, ModelVerbs):
    """Changes a model and keeps its invariants.

    Names stay unique over all scopes, graph outputs keep theirs, type objects are never shared,
    no replacement makes a cycle, calls of standard operators are checked against their schema, and
    removed nodes leave no uses behind.

    Attributes:
        model: The model that is changed.
        changed: Whether anything was.
    """

    def __init__(self, model: ir.Model, *, allow: Callable[[str], bool] | None = None) -> None:
        self.model = model
        self.changed = False
        self.allow: Callable[[str], bool] = allow or (lambda _action: True)
        self._names: set[str] | None = None
        self._counter = 0
        self._graph: ir.Graph = model.graph
        self._before: ir.Node | None = None
        self._node_name: str = ""
        self.on_touch: Callable[[ir.Node], None] = lambda _node: None
        self.created: list[ir.Node] = []
        self._constants: list[tuple[ir.Graph, ir.Value]] = []

    # Where

    @contextlib.contextmanager
    def at(self, node: ir.Node) -> Iterator[None]:
        """Insert new nodes right before ``node``, into its graph."""
        saved = (self._graph, self._before, self._node_name)
        assert isinstance(node.graph, ir.Graph)
        self._graph, self._before, self._node_name = node.graph, node, node.name or ""
        try:
            yield
        finally:
            self._graph, self._before, self._node_name = saved

    @contextlib.contextmanager
    def at_end(self, graph: ir.Graph) -> Iterator[None]:
        """Append new nodes to ``graph``."""
        saved = (self._graph, self._before, self._node_name)
        self._graph, self._before, self._node_name = graph, None, ""
        try:
            yield
        finally:
            self._graph, self._before, self._node_name = saved

    # What

    def fresh(self, hint: str) -> str:
        """A value name that no scope uses yet, ``hint`` itself where it is free."""
        if self._names is None:
            self._names = {
                v.name
                for graph in ir.all_graphs(self.model)
                for v in (
                    *graph.inputs,
                    *graph.initializers.values(),
                    *(out for node in graph for out in node.outputs),
                )
                if v.name
            }
        name = hint or "value"
        while name in self._names:
            self._counter += 1
            name = f"{hint}.{self._counter}"
        self._names.add(name)
        return name

    def const(
        self, data: np.ndarray[Any, Any] | np.generic | ir.TensorProtocol, name: str = "const"
    ) -> ir.Value:
        """A new constant in the current graph.

        Args:
            data: Array, numpy scalar or tensor; its dtype is the constant's.
            name: Wish for a name.
        """
        fresh = self.fresh(name)
        if isinstance(data, (np.ndarray, np.generic)):
            array = np.asarray(data)
            # ascontiguousarray would turn a scalar into a vector.
            tensor: ir.TensorProtocol = ir.Tensor(
                array if array.flags.c_contiguous else array.copy(order="C"), name=fresh
            )
        else:
            tensor = data
        value = ir.Value(
            name=fresh,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tuple(tensor.shape.numpy())),
        )
        value.const_value = tensor
        self._graph.register_initializer(value)
        self._constants.append((self._graph, value))
        self.changed = True
        return value

    @overload
    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Node | None = ...,
        outputs: None = ...,
        domain: str = ...,
        **attrs: AttrValue,
    ) -> ir.Value: ...
    @overload
    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Node | None = ...,
        outputs: int,
        domain: str = ...,
        **attrs: AttrValue,
    ) -> tuple[ir.Value, ...]: ...
    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: ir.Node | None = None,
        outputs: int | None = None,
        domain: str = "",
        **attrs: AttrValue,
    ) -> ir.Value | tuple[ir.Value, ...]:
        """A new node at the insertion point.

        Args:
            op_type: Operator, at the opset of the model.
            *inputs: Inputs; None for absent ones, trailing ones are dropped.
            like: Copy the attributes and the name of this node.
            outputs: Number of outputs; None for the one that most operators have.
            domain: Operator domain.
            **attrs: Attributes; None removes one that ``like`` brought.

        Returns:
            The output, or a tuple of them where ``outputs`` is given.

        Raises:
            StructureError: A standard operator does not take these inputs or attributes.
        """
        merged = {} if like is None else dict(like.attributes)
        for key, value in attrs.items():
            merged.pop(key, None)
            if value is not None:
                merged[key] = ir.make_attr(key, value)
        args = list(inputs)
        while args and args[-1] is None:
            args.pop()
        if not domain and "" not in self._graph.opset_imports:
            self._import_default_domain()
        version = self._graph.opset_imports.get(domain, 1)
        problem = check_call(domain, op_type, version, len(args), frozenset(merged))
        if problem is not None:
            raise StructureError(problem)
        name = (like.name if like is not None else None) or self._node_name
        node = ir.Node(
            domain, op_type, args, list(merged.values()), num_outputs=outputs or 1, name=name or ""
        )
        for out in node.outputs:
            out.name = self.fresh(op_type.lower())
        if self._before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self._before, node)
        self.changed = True
        self.created.append(node)
        self.on_touch(node)
        return node.outputs[0] if outputs is None else tuple(node.outputs)

    def _import_default_domain(self) -> None:
        """A model of nothing but other domains need not import it."""
        version = first_opset(self.model.ir_version or 1)
        for graph in ir.all_graphs(self.model):
            graph.opset_imports.setdefault("", version)

    # How

    def can_replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Whether :meth:`replace` works without an Identity node of its own.

        A graph output needs a node of that graph to produce it under its name.
        """
        if not old.is_graph_output():
            return True
        producer = new.producer()
        return (
            producer is not None
            and not new.is_graph_output()
            and old.producer() is not None
            and producer.graph is old.producer().graph  # type: ignore[union-attr]
        )

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that uses ``old`` use ``new``, graph outputs too.

        The node that computes ``new`` from ``old``, if one does, keeps ``old``. A graph output
        keeps its name, and the values keep a type and a shape of their own.
        """
        if old is new:
            return
        producer = new.producer()
        if producer is not None:
            if new.type is None and isinstance(old.type, ir.TensorType):
                new.type = ir.TensorType(old.type.dtype)
            elif new.type is None:
                new.type = old.type
            if new.shape is None and old.shape is not None:
                new.shape = old.shape.copy()
        for use in tuple(old.uses()):
            if use.node is not producer:
                use.node.replace_input_with(use.idx, new)
                self.on_touch(use.node)
        if old.is_graph_output():
            self._replace_output(old, new)
        maker = old.producer()
        if maker is not None:
            self.on_touch(maker)
        self.changed = True

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        if not self.can_replace(old, new):
            maker = old.producer()
            if maker is not None:
                with self.at(maker):
                    copy = self.op("Identity", new)
            else:
                with self.at_end(self.model.graph):
                    copy = self.op("Identity", new)
            copy.type = None if new.type is None else fresh_type(new.type)
            copy.shape = None if new.shape is None else new.shape.copy()
            new = copy
        graph = new.producer().graph  # type: ignore[union-attr]
        assert isinstance(graph, ir.Graph)
        name = old.name
        old.name = self.fresh(f"{name}.old")
        for i, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[i] = new
        new.name = name

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Change one input of a node; ``index`` may be one past its present inputs."""
        previous = node.inputs[index] if index < len(node.inputs) else None
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        if previous is not None and previous.producer() is not None:
            self.on_touch(previous.producer())  # type: ignore[arg-type]
        self.on_touch(node)
        self.changed = True

    def set_attr(self, node: ir.Node, **attrs: AttrValue) -> None:
        """Set attributes of a node; None removes one."""
        for key, value in attrs.items():
            if value is None:
                node.attributes.pop(key, None)
            else:
                node.attributes[key] = ir.make_attr(key, value)
        self.on_touch(node)
        self.changed = True

    def insert_after(
        self,
        value: ir.Value,
        build: Callable[[ir.Value], ir.Value],
        uses: Sequence[tuple[ir.Node, int]] | None = None,
    ) -> ir.Value:
        """Let what uses ``value`` use ``build(value)`` instead, as for a Q/DQ pair.

        Args:
            value: The value.
            build: Makes the other; the nodes it makes come right behind what computes ``value``.
            uses: Nodes and indices of the inputs that are to use the other; all of them, and a
                graph output, by default.
        """
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        node = value.producer()
        users = [(use.node, use.idx) for use in value.uses()] if uses is None else list(uses)
        start = len(self.created)
        with self.at_end(graph):
            new = build(value)
        nodes = self.created[start:]
        first = next(iter(graph), None)
        if nodes and (node is not None or first not in nodes):
            graph.remove(nodes)
            if node is not None:
                graph.insert_after(node, nodes)
            else:
                assert first is not None
                graph.insert_before(first, nodes)
        for user, index in users:
            user.replace_input_with(index, new)
            self.on_touch(user)
        if uses is None and value.is_graph_output():
            self._replace_output(value, new)
        self.changed = True
        return new

    def erase(self, node: ir.Node) -> None:
        """Remove a node that nothing uses, and its subgraphs with it.

        Raises:
            StructureError: Something uses an output of the node.
        """
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise StructureError(f"{node.op_type} is in no graph")
        for out in node.outputs:
            if out.uses() or out.is_graph_output():
                raise StructureError(f"%{out.name} is still used, so its node cannot be removed")
        self._detach(node)
        graph.remove(node)
        self.changed = True

    def _detach(self, node: ir.Node) -> None:
        for inner in ir.subgraphs(node):
            for each in inner:
                self._detach(each)
        for i, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(i, None)
                producer = value.producer()
                if producer is not None and producer.graph is not None:
                    self.on_touch(producer)
                    if ir.use_count(value) == 1:
                        # Its last user may match now that nobody else stands in the way.
                        self.on_touch(next(iter(value.uses())).node)

    def move_before(self, nodes: Sequence[ir.Node], anchor: ir.Node) -> None:
        """Move nodes, in this order, right before ``anchor`` and into its graph."""
        target = anchor.graph
        assert isinstance(target, ir.Graph)
        for node in nodes:
            assert isinstance(node.graph, ir.Graph)
            node.graph.remove(node)
            target.insert_before(anchor, node)
            self.on_touch(node)
        self.changed = True

    def adopt(self, value: ir.Value, source: ir.Graph) -> None:
        """Move an initializer from a subgraph to the current graph."""
        name = value.name
        assert name is not None
        source.initializers.pop(name)
        self._graph.register_initializer(value)
        self.changed = True

    def drop_output(self, node: ir.Node, index: int) -> None:
        """Make an optional output of a node absent; the caller knows that the operator allows it.

        Raises:
            StructureError: Something uses the output.
        """
        out = node.outputs[index]
        if out.uses() or out.is_graph_output():
            raise StructureError(f"%{out.name} is still used, so it cannot be dropped")
        out.name = ""
        size = len(node.outputs)
        while size > 1 and not node.outputs[size - 1].name:
            size -= 1
        node.resize_outputs(size)
        self.on_touch(node)
        self.changed = True

    def _forget(self) -> None:
        """Forget everything about a graph that is no longer the model's."""
        self._graph, self._before, self._names = self.model.graph, None, None
        self.created, self._constants = [], []

    def mark(self) -> tuple[int, int]:
        """A point in time that :meth:`undo` can go back to."""
        return len(self.created), len(self._constants)

    def undo(self, mark: tuple[int, int]) -> None:
        """Remove nodes and constants made since ``mark`` that nothing uses."""
        nodes, constants = mark
        for node in reversed(self.created[nodes:]):
            if node.graph is not None and is_dead(node):
                self.erase(node)
        for graph, value in self._constants[constants:]:
            if not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)
        del self.created[nodes:], self._constants[constants:]

    def remove_initializers(self) -> int:
        """Remove every initializer that nothing uses; return how many."""
        removed = 0
        for graph in ir.all_graphs(self.model):
            dead = [
                name
                for name, v in graph.initializers.items()
                if not v.uses() and not v.is_graph_output() and not v.is_graph_input()
            ]
            for name in dead:
                del graph.initializers[name]
            removed += len(dead)
        self.changed |= bool(removed)
        return removed


def is_dead(node: ir.Node) -> bool:
    """Whether nothing uses a node and removing it has no effect."""
    return (
        all(not ir.use_count(v) and not v.is_graph_output() for v in node.outputs)
    ) and ir.is_pure(node)

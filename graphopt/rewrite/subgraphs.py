"""The Rewriter's verbs for subgraphs and for calls with variadic inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from graphopt import ir
from graphopt.errors import StructureError

__all__ = ["SubgraphVerbs", "fresh_type"]


class SubgraphVerbs:
    """What If, Loop and Scan need; a part of :class:`~graphopt.rewrite.Rewriter`."""

    model: ir.Model
    changed: bool
    on_touch: Callable[[ir.Node], None]

    if TYPE_CHECKING:

        def at(self, node: ir.Node) -> AbstractContextManager[None]: ...  # noqa: D102
        def adopt(self, value: ir.Value, source: ir.Graph) -> None: ...  # noqa: D102
        def move_before(self, nodes: Sequence[ir.Node], anchor: ir.Node) -> None: ...  # noqa: D102
        def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None: ...  # noqa: D102

    def splice(self, node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
        """Move what is in a subgraph of ``node`` to right before it, into its graph.

        Args:
            node: Owner of the subgraph. It keeps its outputs, for the caller to replace.
            graph: The subgraph. It is empty afterwards.

        Returns:
            What the subgraph's outputs were.

        Raises:
            StructureError: Something still uses an input of the subgraph.
        """
        used = [v for v in graph.inputs if v.uses() or v.is_graph_output() or v.is_initializer()]
        if used:
            raise StructureError(f"%{used[0].name} is an input of the subgraph and still used")
        results = list(graph.outputs)
        graph.outputs.clear()
        with self.at(node):
            for value in tuple(graph.initializers.values()):
                self.adopt(value, graph)
        self.move_before(tuple(graph), node)
        return results

    def set_interface(
        self,
        graph: ir.Graph,
        *,
        inputs: Sequence[ir.Value] | None = None,
        outputs: Sequence[ir.Value] | None = None,
    ) -> None:
        """Change the inputs or the outputs of a subgraph.

        Raises:
            StructureError: It is the main graph, or something uses an input that is to go.
        """
        if graph is self.model.graph:
            raise StructureError("the interface of a model does not change")
        if outputs is not None:
            producers = [v.producer() for v in graph.outputs]
            graph.outputs[:] = outputs
            for producer in producers:
                if producer is not None:
                    self.on_touch(producer)
        if inputs is not None:
            kept = set(inputs)
            for value in graph.inputs:
                if value not in kept and (value.uses() or value.is_graph_output()):
                    raise StructureError(f"%{value.name} is still used")
            graph.inputs[:] = inputs
        self.changed = True

    def set_inputs(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        """Change all inputs of a node."""
        for i, value in enumerate(inputs):
            self.set_input(node, i, value)
        for i in range(len(inputs), len(node.inputs)):
            self.set_input(node, i, None)
        node.resize_inputs(len(inputs))

    def keep_outputs(self, node: ir.Node, keep: Sequence[int]) -> None:
        """Remove all outputs of a node but some; those that follow a removed one move up.

        Args:
            node: A node with a variadic number of outputs.
            keep: Indices of the outputs that stay, ascending.

        Raises:
            StructureError: Something uses an output that is to go.
        """
        gone = set(range(len(node.outputs))) - set(keep)
        for i in gone:
            if node.outputs[i].uses() or node.outputs[i].is_graph_output():
                raise StructureError(f"%{node.outputs[i].name} is still used")
        for to, index in enumerate(keep):
            if to != index:
                old, new = node.outputs[index], node.outputs[to]
                new.type = None if old.type is None else fresh_type(old.type)
                new.shape = None if old.shape is None else old.shape.copy()
                old.name, new.name = new.name, old.name
                for use in tuple(old.uses()):
                    use.node.replace_input_with(use.idx, new)
                if old.is_graph_output():
                    graph = node.graph
                    assert isinstance(graph, ir.Graph)
                    graph.outputs[:] = [new if v is old else v for v in graph.outputs]
        node.resize_outputs(len(keep))
        self.changed = True


def fresh_type(kind: Any) -> Any:
    """A type object of its own: onnx_ir changes types in place, so values must not share them."""
    return ir.TensorType(kind.dtype) if isinstance(kind, ir.TensorType) else kind

"""The Rewriter's verbs for the model as a whole: its interface, its opsets, all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt import ir
from graphopt.errors import StructureError
from graphopt.ir.content import adopt_weights
from graphopt.ir.origin import origin, resize_inner, set_sizes

__all__ = ["ModelVerbs"]


class ModelVerbs:
    """What concerns the whole model; a part of :class:`~graphopt.rewrite.Rewriter`."""

    model: ir.Model
    changed: bool
    on_touch: Callable[[ir.Node], None]

    if TYPE_CHECKING:

        def _forget(self) -> None: ...

    def drop_inputs(self, *values: ir.Value) -> None:
        """Turn inputs that have a default value into constants, and forget that they were inputs.

        This and :meth:`declare` are the verbs that change the interface: callers can no longer feed
        these inputs.

        Raises:
            StructureError: A value is no input of the model, or has no default value.
        """
        graph = self.model.graph
        dropped = set(values)
        for value in values:
            if not value.is_graph_input() or value.graph is not graph:
                raise StructureError(f"%{value.name} is no input of the model")
            if not value.is_initializer():
                raise StructureError(f"input %{value.name} has no default value")
        # One by one each removal would search the list.
        kept = [v for v in graph.inputs if v not in dropped]
        if len(kept) == len(graph.inputs):
            return
        graph.inputs.clear()
        graph.inputs.extend(kept)
        declared = origin(self.model).inputs
        for value in values:
            declared.pop(value.name or "", None)
            for use in value.uses():
                self.on_touch(use.node)
        self.changed = True

    def declare(self, value: ir.Value, dims: Sequence[int | str | None]) -> None:
        """Give dimensions that an input or an output of the model leaves open the sizes they have.

        With it callers can no longer feed other sizes.

        Args:
            value: The input or output.
            dims: A size for each dimension; what is no size leaves the declaration as it is.

        Raises:
            StructureError: It is neither, is no tensor, or is declared with another size or rank.
        """
        graph = self.model.graph
        is_input = value.is_graph_input() and value.graph is graph
        if not is_input and not any(v is value for v in graph.outputs):
            raise StructureError(f"%{value.name} is no input or output of the model")
        if set_sizes(self.model, value, dims):
            for use in value.uses():
                self.on_touch(use.node)
            self.changed = True

    def redeclare(self, value: ir.Value, sizes: Mapping[int, int]) -> None:
        """Give an input or output of a graph inside of a node other sizes than were declared.

        Args:
            value: The input or output.
            sizes: New sizes by axis.

        Raises:
            StructureError: It belongs to the model, whose inputs and outputs keep their shapes.
        """
        if any(v is value for v in (*self.model.graph.inputs, *self.model.graph.outputs)):
            raise StructureError(f"%{value.name} is an input or output of the model")
        resize_inner(self.model, value, sizes)
        self.changed = True

    def drop_opset(self, domain: str) -> None:
        """Forget the version of a domain that no node uses.

        Raises:
            StructureError: It is the default domain, or a node uses it.
        """
        if not domain or any(n.domain == domain for n in ir.all_nodes(self.model)):
            raise StructureError(f"opset import {domain!r} is needed")
        for graph in ir.all_graphs(self.model):
            graph.opset_imports.pop(domain, None)
        self.changed = True

    def become(self, other: ir.Model) -> None:
        """Take over the contents of another model, as after a conversion by another program.

        Names and declared types of inputs and outputs stay those of this model. Weights of equal
        name and content are this model's; the files that other weights lie in are not needed any
        more.

        Args:
            other: Model in normal form with the same interface; it must not be used afterwards.

        Raises:
            StructureError: It has other inputs or outputs, or is opaque.
        """
        reason = ir.opaque(other) or ir.opaque(self.model)
        if reason is not None:
            raise StructureError(f"an opaque model has no contents to take over: {reason}")
        for kind in ("inputs", "outputs"):
            have = [v.name for v in getattr(self.model.graph, kind)]
            got = [v.name for v in getattr(other.graph, kind)]
            if have != got:
                raise StructureError(f"the graph {kind} are {got}, not {have}")
        adopt_weights(other, self.model)
        self.model.graph = other.graph
        self.model.ir_version = other.ir_version
        origin(self.model).inner = origin(other).inner
        self._forget()
        self.changed = True

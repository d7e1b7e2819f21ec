"""Turn shape arithmetic into constants."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from graphopt import Context, Exactness, Pass, Rewriter, apply_rules, ir
from graphopt.passes.fold._dims import Dim, Element
from graphopt.passes.fold._reads import is_used
from graphopt.passes.fold._shape_values import (
    INTEGERS,
    LIMIT,
    ShapeValues,
    sizes,
)
from graphopt.passes.fold._targets import matches, only_ones, reshape_target

__all__ = ["FoldShapes"]

_LAST = int(np.iinfo(np.int64).max)


class FoldShapes(Pass):
    """Compute shapes at compile time.

    What it does: Follows small integer tensors, with symbolic sizes, through Shape, Size, Gather,
        Slice, Concat, arithmetic, comparisons and whatever else exporters make of ``x.view(...)``.
        A tensor all of whose elements are numbers becomes a constant. The target of a Reshape
        becomes constant if each size in it is a number, the size that the data has at that place
        (0, "copy"), or the only other one (-1); that of an Expand and the ends of a Slice likewise.
        A Reshape or an Expand to the shape the data already has is removed, and a Reshape that only
        adds or removes ones becomes Unsqueeze or Squeeze. What computed the shapes is then unused,
        and is removed too.

    Exactness: bitwise. A -1 is written only where the other sizes cannot be 0, since no size can be
        inferred from an empty tensor: numbers, or sizes beside a -1 that is in the model already.

    Needs: inferred shapes; run infer-shapes before it where earlier passes have made sizes known.
        Declared static sizes of inputs are trusted, negative ones are unknown. Symbolic sizes of
        inputs are equal if they have the same name, except where one input uses a name twice.

    Options: ``nonempty``: assume that no dimension is ever 0, so that -1 may stand beside any
        copied size (default: no).

    Example: ``Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), [12], [-1]))`` ->
        ``Reshape(x, [0, 12, -1])``

    Declines when: two or more sizes of a target are neither numbers nor those of the data; a size
        depends on the values of an input; a tensor has more than 64 elements.

    References: https://onnx.ai/onnx/operators/onnx__Reshape.html
    """

    name: ClassVar[str] = "fold-shapes"
    exactness: ClassVar[Exactness] = Exactness.BITWISE
    min_opset: ClassVar[int] = 7
    nonempty: bool = False

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Follow all shapes, then rewrite what uses them."""
        values = ShapeValues(model)
        if not values.known:
            return False
        rw = ctx.rewriter()
        folder = _Folder(rw, ctx, values, self.nonempty)
        nodes = list(ir.all_nodes(model))
        # First what takes a shape, since it may need none any more.
        for visit in (folder.simplify, folder.store):
            for node in nodes:
                if node.domain == "" and node.graph is not None:
                    visit(node)
        if rw.changed:
            ctx.stats.add(apply_rules(rw, ()))
        return rw.changed


class _Folder:
    def __init__(self, rw: Rewriter, ctx: Context, values: ShapeValues, nonempty: bool) -> None:
        self.rw = rw
        self.ctx = ctx
        self.values = values
        self.nonempty = nonempty
        # Constants of the main graph by type, shape and content; they are visible everywhere.
        self.constants: dict[tuple[object, ...], ir.Value] = {}
        for value in rw.model.graph.initializers.values():
            tensor = ir.const(value)
            if tensor is not None and tensor.dtype in INTEGERS and tensor.size <= LIMIT:
                self.constants.setdefault(_key(tensor.numpy()), value)

    def allow(self, rule: str, node: ir.Node) -> bool:
        if not self.ctx.allow(f"{rule} at %{node.outputs[0].name}"):
            return False
        self.ctx.stats.applied[rule] += 1
        return True

    def simplify(self, node: ir.Node) -> None:
        """Give a node that takes a shape a constant one, or do without the node."""
        match node.op_type:
            case "Reshape":
                self.reshape(node)
            case "Expand":
                self.expand(node)
            case "Slice":
                self.slice(node)

    def store(self, node: ir.Node) -> None:
        """Store the results of a node that are fully known."""
        for value in node.outputs:
            self.constant(value)

    def constant(self, value: ir.Value) -> None:
        """Replace a value that is fully known, where something needs it."""
        node = value.producer()
        if node is None or not self.is_number(value) or ir.const(value) is not None:
            return
        if value.is_graph_output():
            if node.op_type in ("Identity", "Shape", "Size"):
                return  # a Constant node in its place would be no gain
        elif all(self.is_folded(use.node) for use in value.uses()):
            return
        assert value.dtype is not None
        data = self.values.known[value].astype(value.dtype.numpy())
        if not self.allow("fold-shape", node):
            return
        if value.is_graph_output():
            with self.rw.at(node):
                new = self.rw.op("Constant", value=ir.tensor(data, name=value.name))
        else:
            new = self.shared(data, value.name or "shape")
        self.rw.replace(value, new)

    def is_number(self, value: ir.Value) -> bool:
        array = self.values.known.get(value)
        return array is not None and all(isinstance(e, int) for e in array.flat)

    def is_folded(self, node: ir.Node) -> bool:
        """Whether a node goes, since all it computes is known."""
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            return False  # it gives a constant the name of an output
        return all(self.is_number(v) or not is_used(v) for v in node.outputs)

    def shared(self, data: np.ndarray[Any, Any], name: str) -> ir.Value:
        """A constant of the main graph, the same one for the same content."""
        key = _key(data)
        if key not in self.constants:
            with self.rw.at_end(self.rw.model.graph):
                self.constants[key] = self.rw.const(data, name)
        return self.constants[key]

    def retarget(self, node: ir.Node, index: int, target: list[int]) -> None:
        """Make an input of a node constant."""
        old = node.inputs[index]
        name = old.name if old is not None else None
        self.rw.set_input(node, index, self.shared(np.array(target, np.int64), name or "shape"))

    def scaffold(self, node: ir.Node, index: int) -> list[Element] | None:
        """The elements of an input that nodes compute, in part from sizes that are not numbers."""
        value = node.inputs[index] if len(node.inputs) > index else None
        array = self.values.known.get(value) if value is not None else None
        if value is None or array is None or array.ndim != 1 or self.is_number(value):
            return None
        return sizes(array)

    def reshape(self, node: ir.Node) -> None:
        data = node.inputs[0]
        have = self.values.dims(data)
        if ir.opset(node) < 5 or data is None or have is None or not is_used(node.outputs[0]):
            return
        if self.values.reshaped(node) == have and self.drop("drop-reshape", node, data):
            return
        given = self.scaffold(node, 1)
        if given is None:
            return
        allow_zero = bool(ir.attr(node, "allowzero", 0))

        def positive(size: Element) -> bool:
            return self.nonempty or self.values.is_positive(size)

        found = reshape_target(given, have, allow_zero, positive)
        if isinstance(found, str):
            # A 0 in the target copies another size; with a single one, that fails.
            moved = [s for i, s in enumerate(given) if i >= len(have) or s != have[i]]
            doubtful = sum(not positive(s) for s in given)
            if allow_zero or doubtful <= 1 or all(positive(s) for s in moved):
                ones = only_ones(given, have)
                if ones is not None:
                    self.squeeze(node, data, *ones)
                    return
            self.ctx.decline("fix-reshape", found)
        elif self.allow("fix-reshape", node):
            target, copies = found
            self.retarget(node, 1, target)
            if copies and allow_zero:
                self.rw.set_attr(node, allowzero=None)

    def squeeze(self, node: ir.Node, data: ir.Value, op: str, axes: list[int]) -> None:
        """Use Squeeze or Unsqueeze instead of a Reshape."""
        if not self.allow("squeeze-for-reshape", node):
            return
        with self.rw.at(node):
            if ir.opset(node) < 13:
                new = self.rw.op(op, data, axes=axes)
            else:
                new = self.rw.op(op, data, self.shared(np.array(axes, np.int64), "axes"))
        self.rw.replace(node.outputs[0], new)

    def expand(self, node: ir.Node) -> None:
        data, given = node.inputs[0], self.scaffold(node, 1)
        have = self.values.dims(data)
        if given is None or have is None or data is None or not is_used(node.outputs[0]):
            return
        if matches(given, have) and self.drop("drop-expand", node, data):
            return
        padded = (*[None] * (len(given) - len(have)), *have)[-len(given) :]
        target = [
            1 if isinstance(size, Dim) and size == own else size
            for size, own in zip(given, padded, strict=True)
        ]
        if any(not isinstance(size, int) for size in target):
            self.ctx.decline("fix-expand", "a size of the target is unknown")
        elif self.allow("fix-expand", node):
            self.retarget(node, 1, [size for size in target if isinstance(size, int)])

    def slice(self, node: ir.Node) -> None:
        if ir.opset(node) < 10 or not is_used(node.outputs[0]):
            return
        given, have = self.scaffold(node, 2), self.values.dims(node.inputs[0])
        ends = node.inputs[2]
        if given is None or have is None or ends is None or ends.dtype != ir.DataType.INT64:
            return
        axes = self.numbers(node, 3, list(range(len(given))))
        steps = self.numbers(node, 4, [1] * len(given))
        if axes is None or steps is None or not len(axes) == len(steps) == len(given):
            return
        target: list[int] = []
        for size, axis, step in zip(given, axes, steps, strict=True):
            if isinstance(size, int):
                target.append(size)
            elif size is not None and step > 0 and size == have[axis % len(have)]:
                target.append(_LAST)
            else:
                self.ctx.decline("fix-slice", "an end is unknown")
                return
        if self.allow("fix-slice", node):
            self.retarget(node, 2, target)

    def numbers(self, node: ir.Node, index: int, default: list[int]) -> list[int] | None:
        """The elements of an input if all are known; ``default`` where it is absent."""
        if len(node.inputs) <= index or node.inputs[index] is None:
            return default
        array = self.values.read(node.inputs[index])
        if array is None or not all(isinstance(e, int) for e in array.flat):
            return None
        return [int(e) for e in array.flat]

    def drop(self, rule: str, node: ir.Node, data: ir.Value) -> bool:
        """Let users of a node use its input, unless that takes another node."""
        out = node.outputs[0]
        if not self.rw.can_replace(out, data) or not self.allow(rule, node):
            return False
        self.rw.replace(out, data)
        return True


def _key(data: np.ndarray[Any, Any]) -> tuple[object, ...]:
    return data.dtype, data.shape, data.tobytes()

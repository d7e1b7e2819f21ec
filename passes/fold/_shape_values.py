"""What the elements of small integer tensors are, as numbers, symbolic sizes or unknowns.

One forward walk over the model. It also finds out more about dimensions than ONNX's own inference:
that makes up a new symbol wherever it loses track (``unk__7``), and where such a symbol appears,
:class:`ShapeValues` looks whether it must equal a size that is known.

Two dimensions count as equal if ONNX gives them the same name. The names that a model declares for
its inputs are believed, as ONNX Runtime does, which plans memory by them; but not a name that one
input uses for two of its own dimensions, since exporters write words such as ``None`` there.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.passes.fold import _shape_ops
from graphopt.passes.fold._dims import Dim, Element, compare, divide, multiply
from graphopt.passes.fold._reads import is_used

__all__ = ["INTEGERS", "LIMIT", "ShapeValues", "broadcast_dims", "product", "sizes"]

Array = np.ndarray[Any, Any]

# Elements of a tensor that is tracked: pads of a rank-8 tensor twice over.
LIMIT = 64

INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_BROADCAST = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or",
    "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
_RELATED = frozenset({"ConstantOfShape", "Expand", "Range", "Reshape", "Slice"})
_HUGE = 2**31 - 1  # exporters write this, and larger numbers, for "to the end"


def sizes(values: Array) -> list[Element]:
    """The elements of a vector."""
    return list(values.reshape(-1))


class ShapeValues:
    """Elements and dimensions of the values of a model.

    Args:
        model: Model with shapes inferred.

    Attributes:
        known: Elements, as an object array, of the tracked tensors that nodes compute.
        positive: Symbols that are not 0 in any run that succeeds.
    """

    def __init__(self, model: ir.Model) -> None:
        self.known: dict[ir.Value, Array] = {}
        self._constants: dict[ir.Value, Array | None] = {}
        self.positive: set[str] = set()
        self._same: dict[str, int | Dim] = {}
        # Sizes that are the smaller one of the other size and some number from 1 on.
        self._capped: dict[Element, Dim] = {}
        self._declared: set[str] = set()
        self._ambiguous: set[str] = set()
        for value in model.graph.inputs:
            names = Counter(d for d in ir.dims(value) or () if isinstance(d, str))
            self._declared.update(names)
            self._ambiguous.update(name for name, n in names.items() if n > 1)
        for graph in ir.all_graphs(model):
            for node in graph:
                self._visit(node)
                if graph is model.graph and node.op_type == "Reshape" and node.domain == "":
                    self._witness(node)

    def dims(self, value: ir.Value | None) -> tuple[int | Dim, ...] | None:
        """The dimensions of a tensor, each a number or a symbolic size; None for unknown rank."""
        found = ir.dims(value)
        if found is None or value is None or not _is_inferred(value):
            return None
        out: list[int | Dim] = []
        for axis, d in enumerate(found):
            if isinstance(d, int):
                out.append(d)
            elif d is None or d in self._ambiguous:
                out.append(Dim(1, (f"%{value.name}[{axis}]",)))
            else:
                same = self._same.get(d)
                out.append(Dim(1, (d,)) if same is None else same)
        return tuple(out)

    def read(self, value: ir.Value | None) -> Array | None:
        """The elements of an integer tensor, unknown ones as None; None if it is not tracked."""
        if value is None:
            return None
        found = self.known.get(value)
        if found is not None:
            return found
        if value not in self._constants:
            self._constants[value] = self._load(value)
        return self._constants[value]

    def _load(self, value: ir.Value) -> Array | None:
        tensor = ir.const(value)
        if tensor is not None:
            if tensor.dtype not in INTEGERS or tensor.size > LIMIT:
                return None
            return np.asarray(tensor.numpy()).astype(object)
        shape = ir.static_shape(value)
        if value.dtype not in INTEGERS or shape is None or int(np.prod(shape)) > LIMIT:
            return None
        return np.full(shape, None, object)

    def _visit(self, node: ir.Node) -> None:
        if node.domain != "":
            return
        op = node.op_type
        evaluate = _shape_ops.TABLE.get(op)
        if evaluate is not None and all(v.dtype in INTEGERS for v in node.outputs if v.name):
            try:
                results = evaluate(self, node)
            except (IndexError, ValueError):
                # Shapes that do not fit. It would fail at run time as well, if it ever ran.
                results = ()
            for value, array in zip(node.outputs, results, strict=False):
                if array is not None:
                    self._learn(value, np.asarray(array, object))
        if op in _RELATED or op in _BROADCAST:
            self._relate(node)

    def _learn(self, value: ir.Value, array: Array) -> None:
        if array.size > LIMIT:
            return
        if value.dtype is not None and value.dtype != ir.DataType.BOOL:
            info = np.iinfo(value.dtype.numpy())
            if not all(_fits(e, info) for e in array.flat):
                array = np.frompyfunc(lambda e: e if _fits(e, info) else None, 1, 1)(array)
                array = np.asarray(array, object)
        if not array.size or any(e is not None for e in array.flat):
            self.known[value] = array

    def _witness(self, node: ir.Node) -> None:
        """Note that a Reshape that always runs infers a size: there is none if another one is 0."""
        target, data = self.read(node.inputs[1]), self.dims(node.inputs[0])
        if target is None or -1 not in (given := sizes(target)) or not is_used(node.outputs[0]):
            return
        if ir.attr(node, "allowzero", 0):
            return  # onnxruntime infers something even so
        for i, size in enumerate(given):
            copied = data[i] if data is not None and i < len(data) else None
            if size == 0:
                size = copied
            # Elsewhere a 0 would copy another size, which need not be 0.
            if isinstance(size, Dim) and size == copied:
                self.positive.update(size.symbols)

    def is_positive(self, size: Element) -> bool:
        """Whether a size is not 0 in any run that succeeds."""
        if isinstance(size, Dim):
            return size.coefficient > 0 and self.positive.issuperset(size.symbols)
        return size is not None and size > 0

    def _relate(self, node: ir.Node) -> None:
        """Find out what the new symbols in the dimensions of the result stand for."""
        out = node.outputs[0]
        known = ir.dims(out) or ()
        new = [
            isinstance(d, str) and d not in self._declared and d not in self._same for d in known
        ]
        if not any(new):
            return
        found: Sequence[Element] | None = None
        match node.op_type:
            case "Range":
                start, limit, delta = (self._scalar(v) for v in node.inputs)
                if start == 0 and delta == 1:
                    found = (limit,) if compare(operator.ge, limit, 0) else None
            case "Reshape":
                found = self.reshaped(node)
            case "Expand":
                found = self.expanded(node)
            case "ConstantOfShape":
                shape = self.read(node.inputs[0])
                found = None if shape is None else sizes(shape)
            case "Slice":
                found = self._sliced(node)
            case _:
                found = self._broadcast(node)
        if found is None or len(found) != len(known):
            return
        for name, size, fresh in zip(known, found, new, strict=True):
            if not fresh or not isinstance(name, str) or size is None:
                continue
            if not (isinstance(size, Dim) and name in size.symbols):
                self._same.setdefault(name, size)

    def _sliced(self, node: ir.Node) -> list[Element] | None:
        """Dimensions of the result of a Slice; None each for those that cannot be told."""
        data, names = self.dims(node.inputs[0]), ir.dims(node.outputs[0])
        if data is None or names is None or ir.opset(node) < 10:
            return None
        given = [self.read(v) for v in (*node.inputs[1:], None, None)[:4]]
        if given[0] is None or given[1] is None:
            return None
        starts, ends = sizes(given[0]), sizes(given[1])
        present = [len(node.inputs) > i and node.inputs[i] is not None for i in (3, 4)]
        axes = sizes(given[2]) if given[2] is not None else list(range(len(starts)))
        steps = sizes(given[3]) if given[3] is not None else [1] * len(starts)
        if present != [given[2] is not None, given[3] is not None] or 0 in steps:
            return None
        if not all(isinstance(axis, int) and -len(data) <= axis < len(data) for axis in axes):
            return None
        out: list[Element] = list(data)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            assert isinstance(axis, int)
            size = data[axis]
            if not isinstance(step, int) or step < 0:
                out[axis] = None  # ONNX does not count backwards as Python does
            elif isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
                out[axis] = len(range(*slice(start, end, step).indices(size)))
            elif start != 0 or step != 1:
                out[axis] = None
            elif end == size or (isinstance(end, int) and end >= _HUGE):
                out[axis] = size
            else:
                out[axis] = None
                name = names[axis]
                positive = isinstance(size, int) and size > 0
                if isinstance(end, Dim) and end.coefficient > 0 and positive and name:
                    self._capped[Dim(1, (str(name),))] = end
        return out

    def _scalar(self, value: ir.Value | None) -> Element:
        array = self.read(value)
        return None if array is None or array.size != 1 else array.reshape(-1)[0]

    def _broadcast(self, node: ir.Node) -> tuple[Element, ...] | None:
        shapes = [self.dims(v) for v in node.inputs]
        if node.op_type != "MatMul":
            return broadcast_dims(shapes, self._capped)
        if any(s is None or len(s) < 2 for s in shapes):
            return None
        found = broadcast_dims([s[:-2] for s in shapes if s is not None], self._capped)
        return None if found is None else (*found, None, None)

    def reshaped(self, node: ir.Node) -> tuple[Element, ...] | None:
        """Dimensions of the result of a Reshape; None where its target is not tracked."""
        target = self.read(node.inputs[1]) if len(node.inputs) > 1 else None
        data = self.dims(node.inputs[0])
        if target is None or target.ndim != 1:
            return None
        keep_zero = bool(ir.attr(node, "allowzero", 0))
        given = sizes(target)
        out: list[Element] = []
        for i, size in enumerate(given):
            if size == 0 and not keep_zero:
                out.append(data[i] if data is not None and i < len(data) else None)
            else:
                out.append(None if isinstance(size, int) and size < 0 else size)
        if not keep_zero:
            out = self._without_copies(given, out, data)
        unknown = [i for i, size in enumerate(out) if size is None]
        if len(unknown) == 1 and data is not None:
            total = product(data)
            rest = product(size for size in out if size is not None)
            # Only a -1 guarantees that the rest is not 0: with it, there would be no result.
            if given[unknown[0]] == -1 or isinstance(rest, int):
                out[unknown[0]] = divide(total, rest)
        return tuple(out)

    def _without_copies(
        self, given: list[Element], out: list[Element], data: Sequence[Element] | None
    ) -> list[Element]:
        """Forget sizes that may be 0 and would then copy another size without an error.

        That takes an empty tensor, so a -1, or a second size that may be 0.
        """

        def moved(i: int, size: Element) -> bool:
            if not isinstance(size, Dim) or self.is_positive(size):
                return False
            return data is None or (i < len(data) and size != data[i])

        doubtful = sum(size != -1 and not self.is_positive(size) for size in given)
        if doubtful <= 1 and -1 not in given:
            return out
        return [None if moved(i, size) else size for i, size in enumerate(out)]

    def expanded(self, node: ir.Node) -> tuple[Element, ...] | None:
        """Dimensions of the result of an Expand; None where its target is not tracked."""
        target = self.read(node.inputs[1])
        if target is None:
            return None
        return broadcast_dims([self.dims(node.inputs[0]), tuple(sizes(target))])


def product(factors: Iterable[Element]) -> Element:
    """The product of sizes."""
    total: Element = 1
    for size in factors:
        total = multiply(total, size)
    return total


def _fits(element: Element, info: np.iinfo[Any]) -> bool:
    """Whether an element cannot overflow; a single dimension is taken to fit into 32 bits."""
    if isinstance(element, int):
        return bool(info.min <= element <= info.max)
    if element is None or info.bits == 64:
        return True
    return element.coefficient == 1 and len(element.symbols) == 1


def _is_inferred(value: ir.Value) -> bool:
    """Whether the shape comes from inference, not from what somebody wrote into a file."""
    node = value.producer()
    return node is None or (
        node.domain == "" and ir.schema("", node.op_type, ir.opset(node)) is not None
    )


def broadcast_dims(
    shapes: Iterable[Sequence[Element] | None], capped: Mapping[Element, Dim] | None = None
) -> tuple[Element, ...] | None:
    """Dimensions of what shapes broadcast to; None for those that cannot be told.

    Args:
        shapes: The shapes; None for an unknown one.
        capped: Sizes that are the smaller one of the size they map to and a positive number. Where
            one meets the other, they are equal, or the smaller one is 1.
    """
    given: list[Sequence[Element]] = []
    for shape in shapes:
        if shape is None:
            return None
        given.append(shape)
    out: list[Element] = []
    for axis in range(-max(map(len, given)), 0):
        found = {s[axis] for s in given if len(s) >= -axis} - {1}
        if capped and len(found) > 1:
            found = {d for d in found if d not in capped or capped[d] not in found}
        fixed = [d for d in found if isinstance(d, int)]
        if not found:
            out.append(1)
        elif fixed:
            out.append(fixed[0])
        else:
            out.append(found.pop() if len(found) == 1 else None)
    return tuple(out)

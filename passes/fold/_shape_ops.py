"""Operators on tensors of sizes, as object arrays of numbers, symbolic sizes and unknowns.

Every function takes the values known so far and a node, and returns the elements of its outputs,
None for an output that it cannot tell. All of them only rearrange or combine a few elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np

from graphopt import ir
from graphopt.passes.fold._dims import (
    Dim,
    Element,
    add,
    compare,
    divide,
    modulo,
    multiply,
    subtract,
)

__all__ = ["TABLE"]

Array = np.ndarray[Any, Any]
Results = Sequence["Array | None"]

_MAX_SIZE = 4096
_INT32_MAX = 2**31 - 1
_NOTHING: Results = ()


class Values(Protocol):
    """What is known about values."""

    def dims(self, value: ir.Value | None) -> tuple[int | Dim, ...] | None:
        """Dimensions of a tensor."""

    def read(self, value: ir.Value | None) -> Array | None:
        """Elements of a tensor."""


Evaluate = Callable[[Values, ir.Node], Results]


def _array(found: object) -> Array:
    if isinstance(found, np.ndarray):
        return found
    out = np.empty((), object)
    out[()] = found
    return out


def _vector(elements: Iterable[Element | bool]) -> Array:
    items = list(elements)
    out = np.empty(len(items), object)
    out[:] = items
    return out


def _numbers(values: Values, value: ir.Value | None) -> list[int] | None:
    """The elements if all of them are numbers."""
    array = values.read(value)
    if array is None or not all(isinstance(e, int) for e in array.flat):
        return None
    return [int(e) for e in array.flat]


def _axes(values: Values, node: ir.Node, since: int, index: int = 1) -> list[int] | None:
    """Axes, an attribute below opset ``since`` and an input from then on; [] for absent ones."""
    if ir.opset(node) < since:
        return list(ir.attr(node, "axes", ()))
    if len(node.inputs) <= index or node.inputs[index] is None:
        return []
    return _numbers(values, node.inputs[index])


def _shape(values: Values, node: ir.Node) -> Results:
    found = values.dims(node.inputs[0])
    if found is None:
        return _NOTHING
    return (_vector(found[ir.attr(node, "start", 0) : ir.attr(node, "end")]),)


def _size(values: Values, node: ir.Node) -> Results:
    found = values.dims(node.inputs[0])
    if found is None:
        return _NOTHING
    total: Element = 1
    for d in found:
        total = multiply(total, d)
    return (_array(total),)


def _identity(values: Values, node: ir.Node) -> Results:
    return (values.read(node.inputs[0]),)


def _gather(values: Values, node: ir.Node) -> Results:
    data, picks = values.read(node.inputs[0]), values.read(node.inputs[1])
    where = _numbers(values, node.inputs[1])
    axis = ir.attr(node, "axis", 0)
    if data is None or picks is None or where is None or not data.ndim:
        return _NOTHING
    length = data.shape[axis]
    if any(not -length <= i < length for i in where):
        return _NOTHING
    return (_array(np.take(data, np.array(where, np.int64).reshape(picks.shape), axis)),)


def _slice(values: Values, node: ir.Node) -> Results:
    data = values.read(node.inputs[0])
    if data is None:
        return _NOTHING
    found: list[list[int] | None]
    if ir.opset(node) < 10:
        found = [list(ir.attr(node, key, ())) for key in ("starts", "ends", "axes")]
    else:
        given = (*node.inputs[1:], None, None)[:4]
        found = [[] if v is None else _numbers(values, v) for v in given]
    if any(f is None for f in found):
        return _NOTHING
    starts, ends, axes, *rest = cast(list[list[int]], found)
    steps = (rest[0] if rest else []) or [1] * len(starts)
    picked = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        if step == 0 or not -data.ndim <= axis < data.ndim:
            return _NOTHING
        if step < 0 and end >= _INT32_MAX:
            return _NOTHING  # ONNX Runtime takes it for "to the front", which Python does not
        # Going backwards, a start before the first element is the first element.
        first = -data.shape[axis] if step < 0 else start
        picked[axis] = slice(max(start, first), end, step)
    return (data[tuple(picked)],)


def _concat(values: Values, node: ir.Node) -> Results:
    parts = [values.read(v) for v in node.inputs]
    if any(p is None or not p.ndim for p in parts):
        return _NOTHING
    return (np.concatenate(cast(list[Array], parts), ir.attr(node, "axis", 1)),)


def _unsqueeze(values: Values, node: ir.Node) -> Results:
    data, axes = values.read(node.inputs[0]), _axes(values, node, 13)
    if data is None or not axes:
        return _NOTHING
    return (np.expand_dims(data, tuple(axes)),)


def _squeeze(values: Values, node: ir.Node) -> Results:
    data, axes = values.read(node.inputs[0]), _axes(values, node, 13)
    if data is None or axes is None:
        return _NOTHING
    return (_array(np.squeeze(data, tuple(axes) or None)),)


def _reshape(values: Values, node: ir.Node) -> Results:
    data = values.read(node.inputs[0])
    target = _numbers(values, node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or target is None or not data.size:
        return _NOTHING
    if 0 in target and ir.attr(node, "allowzero", 0):
        return _NOTHING
    if any(size == 0 and i >= data.ndim for i, size in enumerate(target)):
        return _NOTHING
    return (data.reshape([size or data.shape[i] for i, size in enumerate(target)]),)


def _transpose(values: Values, node: ir.Node) -> Results:
    data = values.read(node.inputs[0])
    return _NOTHING if data is None else (data.transpose(ir.attr(node, "perm")),)


def _expand(values: Values, node: ir.Node) -> Results:
    data, target = values.read(node.inputs[0]), _numbers(values, node.inputs[1])
    if data is None or target is None:
        return _NOTHING
    shape = np.broadcast_shapes(data.shape, tuple(target))
    if np.prod(shape) > _MAX_SIZE:
        return _NOTHING
    return (np.broadcast_to(data, shape),)


def _split(values: Values, node: ir.Node) -> Results:
    data = values.read(node.inputs[0])
    axis = ir.attr(node, "axis", 0)
    parts: list[int] | None
    if ir.opset(node) < 13:
        parts = list(ir.attr(node, "split", ()))
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        parts = _numbers(values, node.inputs[1])
    else:
        parts = []
    if data is None or not data.ndim or parts is None:
        return _NOTHING
    if not parts:
        # The last part is smaller where the division is not exact.
        each = -(-data.shape[axis] // len(node.outputs))
        parts = [each] * len(node.outputs)
    return tuple(np.split(data, np.cumsum(parts)[:-1], axis))


def _where(values: Values, node: ir.Node) -> Results:
    parts = [values.read(v) for v in node.inputs]
    if any(p is None for p in parts):
        return _NOTHING

    def choose(condition: bool | None, a: Element, b: Element) -> Element:
        return (a if a == b else None) if condition is None else (a if condition else b)

    return _combine(choose, *cast(list[Array], parts))


def _combine(function: Callable[..., object], *parts: Array) -> Results:
    if np.prod(np.broadcast_shapes(*(p.shape for p in parts))) > _MAX_SIZE:
        return _NOTHING
    return (_array(np.frompyfunc(function, len(parts), 1)(*parts)),)


def _elementwise(function: Callable[..., object]) -> Evaluate:
    def evaluate(values: Values, node: ir.Node) -> Results:
        parts = [values.read(v) for v in node.inputs]
        if any(p is None for p in parts):
            return _NOTHING
        return _combine(function, *cast(list[Array], parts))

    return evaluate


def _variadic(function: Callable[[Element, Element], Element]) -> Evaluate:
    def evaluate(values: Values, node: ir.Node) -> Results:
        parts = [values.read(v) for v in node.inputs]
        if any(p is None for p in parts):
            return _NOTHING
        total = cast(Array, parts[0])
        for part in cast(list[Array], parts[1:]):
            combined = _combine(function, total, part)
            if not combined:
                return _NOTHING
            total = cast(Array, combined[0])
        return (total,)

    return evaluate


def _reduce(function: Callable[[Element, Element], Element], since: int) -> Evaluate:
    def evaluate(values: Values, node: ir.Node) -> Results:
        data, axes = values.read(node.inputs[0]), _axes(values, node, since)
        if data is None or axes is None or not data.size:
            return _NOTHING
        if not axes and ir.attr(node, "noop_with_empty_axes", 0):
            return (data,)
        if not data.ndim:
            return (data,)
        if axes and {a % data.ndim for a in axes} != set(range(data.ndim)):
            return _NOTHING
        total, *rest = data.reshape(-1)
        for element in rest:
            total = function(total, element)
        return (np.full((1,) * data.ndim if ir.attr(node, "keepdims", 1) else (), total, object),)

    return evaluate


def _cast(values: Values, node: ir.Node) -> Results:
    data = values.read(node.inputs[0])
    if data is None:
        return _NOTHING
    kind = node.outputs[0].dtype

    def convert(element: Element | bool) -> Element | bool:
        if kind == ir.DataType.BOOL:
            return bool(element) if isinstance(element, int) else None
        return int(element) if isinstance(element, int) else element

    return _combine(convert, data)


def _range(values: Values, node: ir.Node) -> Results:
    given = [_numbers(values, v) for v in node.inputs]
    if any(g is None or len(g) != 1 for g in given):
        return _NOTHING
    start, limit, delta = (cast(list[int], g)[0] for g in given)
    if delta == 0 or abs(limit - start) // abs(delta) > _MAX_SIZE:
        return _NOTHING
    return (_vector(range(start, limit, delta)),)


def _constant_of_shape(values: Values, node: ir.Node) -> Results:
    target = _numbers(values, node.inputs[0])
    fill = ir.attr(node, "value")
    if target is None or fill is None or min(target, default=0) < 0:
        return _NOTHING
    if np.prod(target, dtype=float) > _MAX_SIZE:
        return _NOTHING
    return (np.full(target, fill.numpy().reshape(-1)[0].item(), object),)


def _mod(values: Values, node: ir.Node) -> Results:
    fmod = bool(ir.attr(node, "fmod", 0))
    return _elementwise(lambda a, b: modulo(a, b, fmod=fmod))(values, node)


def _maximum(a: Element, b: Element) -> Element:
    first = compare(operator.ge, a, b)
    return (a if a == b else None) if first is None else (a if first else b)


def _minimum(a: Element, b: Element) -> Element:
    first = compare(operator.le, a, b)
    return (a if a == b else None) if first is None else (a if first else b)


def _absolute(a: Element) -> Element:
    return _maximum(a, multiply(a, -1))


def _comparison(op: Callable[[int, int], bool]) -> Evaluate:
    return _elementwise(lambda a, b: compare(op, a, b))


def _logical(op: Callable[[bool, bool], bool]) -> Evaluate:
    def apply(a: bool | None, b: bool | None) -> bool | None:
        outcomes = {
            op(x, y)
            for x in ((False, True) if a is None else (a,))
            for y in ((False, True) if b is None else (b,))
        }
        return outcomes.pop() if len(outcomes) == 1 else None

    return _elementwise(apply)


TABLE: dict[str, Evaluate] = {
    "Abs": _elementwise(_absolute),
    "Add": _elementwise(add),
    "And": _logical(operator.and_),
    "Cast": _cast,
    "CastLike": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(divide),
    "Equal": _comparison(operator.eq),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _comparison(operator.gt),
    "GreaterOrEqual": _comparison(operator.ge),
    "Identity": _identity,
    "Less": _comparison(operator.lt),
    "LessOrEqual": _comparison(operator.le),
    "Max": _variadic(_maximum),
    "Min": _variadic(_minimum),
    "Mod": _mod,
    "Mul": _elementwise(multiply),
    "Neg": _elementwise(lambda a: multiply(a, -1)),
    "Not": _elementwise(lambda a: None if a is None else not a),
    "Or": _logical(operator.or_),
    "Range": _range,
    "ReduceMax": _reduce(_maximum, 18),
    "ReduceMin": _reduce(_minimum, 18),
    "ReduceProd": _reduce(multiply, 18),
    "ReduceSum": _reduce(add, 13),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _elementwise(subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    "Xor": _logical(operator.xor),
}

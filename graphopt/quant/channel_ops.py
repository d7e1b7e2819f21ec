"""How channels go through operators, and which constants between them take up factors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.quant.units import clip_bounds, is_float

__all__ = ["Fold", "Follower", "Ids", "Labels"]

Array = np.ndarray[Any, Any]
Ids = np.ndarray[Any, np.dtype[np.int64]]

# Positively homogeneous, element by element or over places of one channel.
_SAME = frozenset({"Abs", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_JOINS = frozenset({"Add", "Max", "Min", "Sub", "Sum"})


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The channels of a tensor.

    Attributes:
        axis: Where they lie.
        ids: Class of each channel, ``[channels]``.
    """

    axis: int
    ids: Ids


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """A constant that takes up factors.

    Where the channels of class k are divided by ``f[k]``, it becomes
    ``constant * f[multiply] / f[divide]``.

    Attributes:
        node: The node that reads it.
        index: As which input.
        multiply: Classes that broadcast to the constant, those of what it is multiplied with.
        divide: The same of what is computed with it. The result may be larger than the constant.
    """

    node: ir.Node
    index: int
    multiply: Ids | None
    divide: Ids | None


class Follower:
    """Channels of the tensors of a graph, as far as they are known, node by node.

    Attributes:
        labels: Channels of the tensors that have any. An id stands for channels that have to be
            divided alike as far as one operator tells.
        count: Number of ids.
        pairs: Ids that have to be divided alike, element by element.
        frozen: Ids that may not be divided, and why.
        folds: The constants that factors go into.
        clips: Tensors that a Clip with bounds made, with these.
    """

    def __init__(self, graph: ir.Graph, *, clips: bool) -> None:
        self.labels: dict[ir.Value, Labels] = {}
        self.count = 0
        self.pairs: list[tuple[Ids, Ids]] = []
        self.frozen: list[tuple[Ids, str]] = []
        self.folds: list[Fold] = []
        self.clips: dict[ir.Value, tuple[float, float]] = {}
        self._through_clips = clips
        for node in graph:
            self._visit(node)
        self._freeze(graph.outputs, "it is an output of the model")

    def _visit(self, node: ir.Node) -> None:
        inside = [v for g in ir.subgraphs(node) for v in _reads(g)]
        self._freeze(inside, f"a graph inside of {node.op_type} reads it")
        if node.domain == "" and node.op_type in ("Shape", "Size"):
            return
        if not is_float(node.outputs[0]) and not any(v in self.labels for v in node.inputs):
            return
        try:
            self._follow(node)
        except _Stop as e:
            self._freeze(node.inputs, str(e))

    def _follow(self, node: ir.Node) -> None:
        if node.domain:
            raise _Stop(f"{node.domain}.{node.op_type} reads it")
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            raise _Stop(f"{node.op_type} reads it")
        handler(self, node)

    def _fresh(self, count: int) -> Ids:
        self.count += count
        return np.arange(self.count - count, self.count)

    def _freeze(self, values: Iterable[ir.Value | None], reason: str) -> None:
        for value in values:
            labels = None if value is None else self.labels.get(value)
            if labels is not None:
                self.frozen.append((labels.ids, reason))

    def _data(self, node: ir.Node, axis: int | None = None) -> Labels | None:
        """Channels of the first input; none where nothing is known of them.

        Raises:
            _Stop: They do not lie along the axis; or another input has channels as well.
        """
        self._freeze(node.inputs[1:], f"{node.op_type} reads it as a parameter")
        labels = None if node.inputs[0] is None else self.labels.get(node.inputs[0])
        if labels is not None and axis is not None and labels.axis != axis:
            raise _Stop(f"{node.op_type} reads its channels along another axis")
        return labels

    def _make(self, node: ir.Node, axis: int, ids: Ids, index: int = 0) -> None:
        value = node.outputs[index]
        if is_float(value):
            self.labels[value] = Labels(axis, ids)

    def _produce(self, node: ir.Node, axis: int, count: int) -> Ids:
        ids = self._fresh(count)
        self._make(node, axis, ids)
        return ids

    def _bias(self, node: ir.Node, index: int, divide: Ids) -> None:
        if index < len(node.inputs) and node.inputs[index] is not None:
            self.folds.append(Fold(node, index, None, divide))

    def _conv(self, node: ir.Node) -> None:
        x = self._data(node, 1)
        w = _weight(node, 1)
        _constants(node, 2)
        groups, ones = int(ir.attr(node, "group", 1)), (1,) * (w.ndim - 2)
        into = None if x is None else x.ids.reshape(groups, -1)
        if node.op_type == "Conv":
            out = self._produce(node, 1, len(w))
            if into is not None:  # outputs of one group are neighbours, and so are its inputs
                into = into.repeat(len(w) // groups, axis=0)
            divide = out.reshape(-1, 1, *ones)
        else:
            out = self._produce(node, 1, w.shape[1] * groups)
            into = None if into is None else into.reshape(-1, 1)
            divide = out.reshape(groups, -1).repeat(len(w) // groups, axis=0)
            divide = divide.reshape(*divide.shape, *ones)
        multiply = None if into is None else into.reshape(*into.shape, *ones)
        self.folds.append(Fold(node, 1, multiply, divide))
        self._bias(node, 2, out)

    def _matrix(self, node: ir.Node) -> None:
        gemm = node.op_type == "Gemm"
        rank = 2 if gemm else ir.rank(node.inputs[0])
        if rank is None or rank < 2 or (gemm and ir.attr(node, "transA", 0)):
            raise _Stop(f"{node.op_type} reads it otherwise than as rows")
        x = self._data(node, rank - 1)
        w = _weight(node, 1)
        if w.ndim != 2:
            raise _Stop(f"the weight of {node.op_type} is no matrix")
        _constants(node, 2)
        turned = gemm and bool(ir.attr(node, "transB", 0))
        out = self._produce(node, rank - 1, w.shape[0 if turned else 1])
        divide = out[:, None] if turned else out[None, :]
        into = None if x is None else x.ids[None, :] if turned else x.ids[:, None]
        self.folds.append(Fold(node, 1, into, divide))
        if gemm:
            self._bias(node, 2, out)

    def _batch_norm(self, node: ir.Node) -> None:
        x = self._data(node, 1)
        if ir.attr(node, "training_mode", 0) or any(v.name for v in node.outputs[1:]):
            raise _Stop("BatchNormalization trains")
        if not ir.attr(node, "spatial", 1):
            raise _Stop("BatchNormalization has statistics per position")
        _constants(node, 1, 2, 3, 4)
        out = self._produce(node, 1, _weight(node, 1).size)
        # The variance stays as it is, because of the epsilon that is added to it.
        self.folds.append(Fold(node, 1, None if x is None else x.ids, out))
        self.folds.append(Fold(node, 2, None, out))
        if x is not None:
            self.folds.append(Fold(node, 3, None, x.ids))

    def _same(self, node: ir.Node) -> None:
        x = self._data(node, 1 if node.op_type in _POOLS else None)
        if x is not None:
            self._make(node, x.axis, x.ids)

    def _clip(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        low, high = clip_bounds(node)
        if not low <= 0 <= high:
            raise _Stop("Clip has bounds that are computed or on one side of 0")
        if any(b not in (0, np.inf, -np.inf) for b in (low, high)):
            if not self._through_clips:
                raise _Stop("Clip has bounds that do not move with it")
            self.clips[node.outputs[0]] = (low, high)
        self._make(node, x.axis, x.ids)

    def _join(self, node: ir.Node) -> None:
        """Elementwise over several tensors, which are divided alike."""
        rank = ir.rank(node.outputs[0])
        known = [self.labels[v] for v in node.inputs if v is not None and v in self.labels]
        if not known:
            return
        if rank is None or any(ir.rank(v) is None for v in node.inputs):
            raise _Stop(f"{node.op_type} reads it, and ranks are not known")
        first = known[0]
        end = first.axis - (ir.rank(next(v for v in node.inputs if v in self.labels)) or 0)
        for value in node.inputs:
            assert value is not None
            labels = self.labels.get(value)
            if labels is None and ir.const(value) is None:
                raise _Stop(f"{node.op_type} joins it with something that may not be divided")
            size = _size(value, end)
            if labels is None and size not in (1, len(first.ids)):
                raise _Stop(f"{node.op_type} spreads its channels")
            if labels is not None and (
                labels.axis - (ir.rank(value) or 0) != end or len(labels.ids) != len(first.ids)
            ):
                raise _Stop(f"{node.op_type} joins it with channels that are not its own")
        for i, value in enumerate(node.inputs):
            labels = self.labels.get(value) if value is not None else None
            if labels is None:
                self.folds.append(Fold(node, i, None, first.ids.reshape(-1, *(1,) * (-end - 1))))
            elif labels is not first:
                self.pairs.append((first.ids, labels.ids))
        self._make(node, rank + end, first.ids)

    def _times(self, node: ir.Node) -> None:
        """Mul and Div: linear in one operand while nothing is done to the other."""
        a, b = node.inputs
        assert a is not None
        assert b is not None
        x, other = (a, b) if a in self.labels or node.op_type == "Div" else (b, a)
        labels = self.labels.get(x)
        if other in self.labels:
            raise _Stop(f"{node.op_type} multiplies it with other channels")
        if labels is None:
            return
        rank, width = ir.rank(x), len(labels.ids)
        if rank is None or (ir.rank(other) or 99) > rank:
            raise _Stop(f"{node.op_type} spreads it")
        if _size(other, labels.axis - rank) not in (1, width):
            raise _Stop(f"{node.op_type} spreads its channels")
        self._make(node, labels.axis, labels.ids)

    def _reduce(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        rank, axes = ir.rank(node.inputs[0]), _axes(node)
        if rank is None or not axes:
            raise _Stop(f"{node.op_type} reduces it over axes that are not known")
        gone = {a % rank for a in axes}
        if x.axis in gone:
            raise _Stop(f"{node.op_type} reduces it over its channels")
        keep = bool(ir.attr(node, "keepdims", 1))
        self._make(node, x.axis - (0 if keep else sum(a < x.axis for a in gone)), x.ids)

    def _squeeze(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        out, axes = ir.rank(node.outputs[0]), _axes(node)
        rank = ir.rank(node.inputs[0])
        if rank is None or out is None or axes is None:
            raise _Stop(f"{node.op_type} changes axes that are not known")
        if node.op_type == "Unsqueeze":
            new = {a % out for a in axes}
            self._make(node, [a for a in range(out) if a not in new][x.axis], x.ids)
            return
        gone = {a % rank for a in axes}
        if x.axis in gone:
            raise _Stop("Squeeze removes its channels")
        self._make(node, x.axis - sum(a < x.axis for a in gone), x.ids)

    def _slice(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        rank = ir.rank(node.inputs[0])
        if ir.opset(node) < 10:
            parts: list[Any] = [ir.attr(node, name) for name in ("starts", "ends", "axes")]
        else:
            parts = [ir.array(_at(node, i)) for i in (1, 2, 3)]
            if any(p is None and _at(node, i + 1) is not None for i, p in enumerate(parts)):
                raise _Stop("Slice has bounds that are computed")
        steps = _at(node, 4) if ir.opset(node) >= 10 else None
        if steps is not None and ir.array(steps) is None:
            raise _Stop("Slice has steps that are computed")
        if rank is None or parts[0] is None or parts[1] is None:
            raise _Stop("Slice takes a part that is not known")
        starts, ends = list(parts[0]), list(parts[1])
        axes = list(range(len(starts))) if parts[2] is None else list(parts[2])
        by = [1] * len(starts) if steps is None else list(ir.array(steps))  # type: ignore[arg-type]
        ids = x.ids
        for start, end, axis, step in zip(starts, ends, axes, by, strict=True):
            if int(axis) % rank == x.axis:
                ids = ids[_slice_of(int(start), int(end), int(step), len(ids))]
        self._make(node, x.axis, ids)

    def _pad(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        rank = ir.rank(node.inputs[0])
        old = ir.opset(node) < 11
        pads = ir.attr(node, "pads") if old else ir.array(_at(node, 1))
        if rank is None or pads is None or _at(node, 3) is not None or len(pads) != 2 * rank:
            raise _Stop("Pad adds what is not known")
        before, after = int(pads[x.axis]), int(pads[x.axis + rank])
        if ir.attr(node, "mode", "constant") == "constant":
            fill = _at(node, 2)
            with_ = ir.attr(node, "value", 0.0) if old else 0 if fill is None else ir.array(fill)
            if with_ is None or np.any(with_):
                raise _Stop("Pad adds something else than zeros")
        elif before or after:
            raise _Stop("Pad repeats channels")
        kept = x.ids[max(0, -before) : len(x.ids) - max(0, -after)]
        new = [self._fresh(max(0, n)) for n in (before, after)]  # zeros may be divided by anything
        self._make(node, x.axis, np.concatenate([new[0], kept, new[1]]))

    def _concat(self, node: ir.Node) -> None:
        known = [self.labels[v] for v in node.inputs if v is not None and v in self.labels]
        rank = ir.rank(node.outputs[0])
        if not known:
            return
        axis = int(ir.attr(node, "axis", 1))
        first = known[0]
        if rank is None or any(x.axis != first.axis for x in known):
            raise _Stop("Concat joins channels along different axes")
        if axis % rank != first.axis:
            if any(len(x.ids) != len(first.ids) for x in known) or len(known) < len(node.inputs):
                raise _Stop("Concat joins it with something that may not be divided")
            self.pairs += [(first.ids, x.ids) for x in known[1:]]
            self._make(node, first.axis, first.ids)
            return
        parts = []
        for value in node.inputs:
            assert value is not None
            labels = self.labels.get(value)
            size = _size(value, axis)
            if labels is None and size is None:
                raise _Stop("Concat joins it with something of unknown size")
            parts.append(self._fresh(size or 0) if labels is None else labels.ids)
            if labels is None:
                self.frozen.append((parts[-1], "Concat joins it with what may not be divided"))
        self._make(node, first.axis, np.concatenate(parts))

    def _split(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        rank, axis = ir.rank(node.inputs[0]), int(ir.attr(node, "axis", 0))
        if rank is None:
            raise _Stop("Split reads it, and its rank is not known")
        start = 0
        for i, value in enumerate(node.outputs):
            if axis % rank != x.axis:
                self._make(node, x.axis, x.ids, i)
                continue
            size = _size(value, axis)
            if size is None:
                self._freeze(node.inputs, "Split makes parts of unknown size")
                return
            self._make(node, x.axis, x.ids[start : start + size], i)
            start += size

    def _reshape(self, node: ir.Node) -> None:
        """Rows stay rows, and what lies in each is cut otherwise."""
        x = self._data(node, 1)
        if x is None:
            return
        before, after = ir.dims(node.inputs[0]), ir.dims(node.outputs[0])
        inner = None if before is None else _product(before[2:])
        sizes = None if after is None or len(after) < 2 else after[1:]
        total = None if sizes is None else _product(sizes)
        # With as many elements in each row there are as many rows.
        if inner is None or sizes is None or total != len(x.ids) * inner or not total:
            raise _Stop(f"{node.op_type} changes more than the shape of each sample")
        rest = _product(sizes[1:])
        if not rest or inner % rest:
            raise _Stop(f"{node.op_type} mixes channels")
        assert isinstance(sizes[0], int)
        self._make(node, 1, x.ids[np.arange(sizes[0]) * rest // inner])

    def _transpose(self, node: ir.Node) -> None:
        x = self._data(node)
        rank = ir.rank(node.inputs[0])
        if x is None:
            return
        if rank is None:
            raise _Stop("Transpose reads it, and its rank is not known")
        perm = ir.attr(node, "perm") or tuple(reversed(range(rank)))
        self._make(node, tuple(perm).index(x.axis), x.ids)

    def _resize(self, node: ir.Node) -> None:
        x = self._data(node)
        if x is None:
            return
        if ir.attr(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
            raise _Stop("Resize may fill in a constant")
        if _size(node.outputs[0], x.axis) != len(x.ids):
            raise _Stop("Resize changes its channels")
        self._make(node, x.axis, x.ids)


_HANDLERS: dict[str, Callable[[Follower, ir.Node], None]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), Follower._conv),
    **dict.fromkeys(("Gemm", "MatMul"), Follower._matrix),
    **dict.fromkeys(_SAME | _POOLS, Follower._same),
    **dict.fromkeys(_JOINS, Follower._join),
    **dict.fromkeys(("Mul", "Div"), Follower._times),
    **dict.fromkeys(_REDUCTIONS, Follower._reduce),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), Follower._squeeze),
    **dict.fromkeys(("Reshape", "Flatten"), Follower._reshape),
    **dict.fromkeys(("Resize", "Upsample"), Follower._resize),
    "BatchNormalization": Follower._batch_norm,
    "Clip": Follower._clip,
    "Concat": Follower._concat,
    "Pad": Follower._pad,
    "Slice": Follower._slice,
    "Split": Follower._split,
    "Transpose": Follower._transpose,
}


class _Stop(Exception):  # noqa: N818 - not an error: the reason why channels are not followed
    """Why what a node reads may not be divided."""


def _reads(graph: ir.Graph) -> Iterator[ir.Value]:
    """All that nodes of a graph and of those inside of it read, and what it returns."""
    yield from graph.outputs
    for node in graph:
        yield from (v for v in node.inputs if v is not None)
        for inner in ir.subgraphs(node):
            yield from _reads(inner)


def _weight(node: ir.Node, index: int) -> Array:
    data = ir.array(_at(node, index))
    if data is None:
        raise _Stop(f"{node.op_type} has a weight that is computed")
    return data


def _constants(node: ir.Node, *indices: int) -> None:
    for i in indices:
        if _at(node, i) is not None and ir.const(_at(node, i)) is None:
            raise _Stop(f"input {i} of {node.op_type} is computed")


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _size(value: ir.Value, axis: int) -> int | None:
    """Size along an axis, 1 for one in front of the first; None where it is not known."""
    found = ir.dims(value)
    if found is None:
        return None
    if axis < -len(found):
        return 1
    size = found[axis]
    return size if isinstance(size, int) else None


def _product(dims: Sequence[int | str | None]) -> int | None:
    sizes = [d for d in dims if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _axes(node: ir.Node) -> list[int] | None:
    given = ir.attr(node, "axes")
    found = ir.array(_at(node, 1)) if given is None else given
    return None if found is None else [int(a) for a in found]


def _slice_of(start: int, end: int, step: int, size: int) -> slice:
    if step > 0:
        return slice(start, end, step)
    # Going down, an end before the first element is no index in NumPy.
    last = end + size if end < 0 else end
    start = min(start + size if start < 0 else start, size - 1)
    return slice(max(start, 0), None if last < 0 else last, step)

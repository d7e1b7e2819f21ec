"""What values an input of a model makes sense with, read off the operators that consume it.

An index must lie within what it indexes, a shape must fit the data, a square root wants no negative
numbers. A :class:`Domain` draws such values for one input.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from graphopt import ir
from graphopt.runtime.values import Array

__all__ = ["COMPARISONS", "Draw", "Role", "fixed_dims", "roles", "values"]

Sizes: TypeAlias = Mapping[tuple[str, int] | str, int]

# Ops whose first input goes through with its values unchanged (or a part of them).
_TRANSPARENT = frozenset({
    "Cast", "CastLike", "Concat", "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_FOLLOWED = 64


@dataclasses.dataclass(frozen=True)
class Role:
    """One use of an input: it is input ``index`` of ``node``, perhaps after a cast or a reshape."""

    node: ir.Node
    index: int
    direct: bool

    @property
    def key(self) -> tuple[str, int]:
        """Operator type and input index."""
        return self.node.op_type, self.index


def roles(value: ir.Value) -> list[Role]:
    """Uses of a graph input, followed through casts, reshapes and into loop bodies."""
    found: list[Role] = []
    seen = {value}
    pending = deque([(value, True)])
    while pending and len(seen) <= _FOLLOWED:
        current, direct = pending.popleft()
        for use in current.uses():
            node, i = use.node, use.idx
            found.append(Role(node, i, direct))
            if node.op_type in _TRANSPARENT and (i == 0 or node.op_type == "Concat"):
                follow = list(node.outputs)
            elif node.op_type in ("Loop", "Scan"):
                follow = [g.inputs[i] for g in ir.subgraphs(node) if i < len(g.inputs)]
            else:
                follow = []
            pending.extend((v, False) for v in follow if v not in seen)
            seen.update(follow)
    return found


def fixed_dims(uses: Sequence[Role]) -> dict[int, int]:
    """Sizes of axes (negative ones count from the back) that constant weights dictate."""
    found: dict[int, int] = {}
    for use in uses:
        if not use.direct or use.index > 1:
            continue
        node = use.node
        other = node.inputs[1 - use.index] if len(node.inputs) > 1 else None
        shape = ir.static_shape(other)
        if not shape:
            continue
        match node.op_type:
            case "Conv" if use.index == 0 and len(shape) > 1:
                found[1] = shape[1] * int(ir.attr(node, "group", 1))
            case "ConvTranspose" | "BatchNormalization" | "InstanceNormalization" if use.index == 0:
                found[1] = shape[0]
            case "Gemm" if use.index == 0 and len(shape) == 2:
                axis = -2 if ir.attr(node, "transA", 0) else -1
                found[axis] = shape[1 if ir.attr(node, "transB", 0) else 0]
            case "MatMul" if len(shape) > 1:
                found[-1 if use.index == 0 else -2] = shape[-2 if use.index == 0 else -1]
            case "LSTM" | "GRU" | "RNN" if use.index == 0:
                found[-1] = shape[-1]
            case "LayerNormalization" if use.index == 0:
                found.update({-1 - i: d for i, d in enumerate(reversed(shape))})
            case "Add" | "Mul" | "Sub" | "Div" | "PRelu":
                found.update({-1 - i: d for i, d in enumerate(reversed(shape)) if d > 1})
    return found


@dataclasses.dataclass(frozen=True)
class Draw:
    """Everything that decides the values of one input.

    Attributes:
        name: Name of the input.
        dtype: NumPy type to draw.
        shape: Shape to draw.
        uses: Who consumes it.
        sizes: Sizes chosen for symbolic dimensions and for (input name, axis).
        rng: Source of randomness.
        turn: Number of the probe, so that flags can alternate.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    uses: Sequence[Role]
    sizes: Sizes
    rng: np.random.Generator
    turn: int

    @property
    def length(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def full(self, value: float) -> Array:
        """A constant, the nearest one that the type holds."""
        if "int" in self.dtype.name:
            bits, signed = int(self.dtype.name.split("int")[1]), self.dtype.name[0] == "i"
            value = min(max(value, -(2 ** (bits - 1)) if signed else 0), 2 ** (bits - signed) - 1)
        return np.full(self.shape, value, self.dtype)

    def integers(self, low: int, high: int) -> Array:
        """Integers in [low, high)."""
        return self.rng.integers(low, max(high, low + 1), self.shape).astype(self.dtype)

    def vector(self, items: Sequence[int]) -> Array:
        """The first elements of ``items``, cut or padded with ones to the shape."""
        padded = [*items, *[1] * self.length][: self.length]
        return np.array(padded, np.int64).astype(self.dtype).reshape(self.shape)

    def extent(self, value: ir.Value | None, axis: int) -> int | None:
        """Size of an axis of another value under the chosen sizes, or None if unknown."""
        found = ir.dims(value)
        if value is None or not found or not -len(found) <= axis < len(found):
            return None
        d = found[axis]
        if isinstance(d, int):
            return d
        return self.sizes.get(d if d is not None else (value.name or "", axis % len(found)))

    def extents(self, value: ir.Value | None) -> list[int | None]:
        """Sizes of all axes of another value; empty if its rank is unknown."""
        return [self.extent(value, i) for i in range(ir.rank(value) or 0)]


def values(draw: Draw) -> Array:
    """Values for one input, of its type and shape."""
    kind = draw.dtype.kind
    if kind == "b":
        return _booleans(draw)
    if kind in "iu" or draw.dtype.name.endswith(("int4", "int2")):
        return _whole(draw)
    return _real(draw)


def _booleans(draw: Draw) -> Array:
    if not draw.shape or draw.length == 1:
        on = any(u.key == ("Loop", 1) for u in draw.uses) or draw.turn % 2 == 0
        return draw.full(on and not any(u.key == ("Dropout", 2) for u in draw.uses))
    return draw.rng.random(draw.shape) < 0.5


def _whole(draw: Draw) -> Array:
    for use in draw.uses:
        special = _SPECIAL.get(use.key)
        found = None if special is None else special(draw, use.node)
        if found is not None:
            return found
    bounds = [b for use in draw.uses for b in _bounds(draw, use)]
    if bounds:
        if "position" in draw.name.lower():
            return _positions(draw) % draw.full(max(min(bounds), 1))
        return draw.integers(0, min(bounds))
    for use in draw.uses:
        if use.node.op_type in COMPARISONS and draw.length == 1 and draw.turn % 2 == 0:
            limit = ir.array(use.node.inputs[1 - use.index])
            if limit is not None and limit.size == 1:
                return draw.full(limit.item())
    for pattern, make in _NAMED:
        if pattern.search(draw.name.lower()):
            return make(draw)
    if draw.dtype.name in ("uint8", "int8"):
        info = np.iinfo(draw.dtype)
        return draw.integers(int(info.min), int(info.max) + 1)
    if draw.dtype.name.endswith(("int4", "int2")) or draw.dtype.kind == "u":
        return draw.integers(0, 2 if draw.dtype.name.endswith("int2") else 6)
    signed = draw.uses and all(u.node.op_type in _ARITHMETIC for u in draw.uses)
    return draw.integers(-5, 6) if signed else draw.integers(0, 3)


def _real(draw: Draw) -> Array:
    for use in draw.uses:
        special = _SPECIAL.get(use.key)
        found = special(draw, use.node) if special is not None and use.direct else None
        if found is not None:
            return found
    normal = draw.rng.standard_normal(draw.shape)
    if draw.dtype.kind == "c":
        normal = normal + 1j * draw.rng.standard_normal(draw.shape)
    else:
        for use in draw.uses:
            if use.key in _RANGES:
                low, high = _RANGES[use.key]
                normal = draw.rng.uniform(low, high, draw.shape)
    return np.asarray(normal).astype(draw.dtype)


_ARITHMETIC = frozenset({
    "Abs", "Add", "Cast", "Clip", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Max", "Mean", "Min", "Mul", "Neg", "Relu", "Sign", "Sub", "Sum", "Where",
})  # fmt: skip

COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

# Intervals of floating-point inputs; everything else is standard normal.
_RANGES: dict[tuple[str, int], tuple[float, float]] = {
    ("Sqrt", 0): (0.1, 4.0),
    ("Log", 0): (0.1, 4.0),
    ("Pow", 0): (0.1, 2.0),
    ("Acos", 0): (-0.9, 0.9),
    ("Asin", 0): (-0.9, 0.9),
    ("Atanh", 0): (-0.9, 0.9),
    ("Acosh", 0): (1.1, 4.0),
    ("BatchNormalization", 4): (0.5, 2.0),
    ("Bernoulli", 0): (0.1, 0.9),
    ("Clip", 1): (-1.5, -0.5),
    ("Clip", 2): (0.5, 1.5),
    ("DequantizeLinear", 1): (0.01, 0.1),
    ("Dropout", 1): (0.1, 0.5),
    ("GridSample", 1): (-1.0, 1.0),
    ("NonMaxSuppression", 1): (0.0, 1.0),
    ("NonMaxSuppression", 3): (0.4, 0.6),
    ("NonMaxSuppression", 4): (0.1, 0.3),
    ("QLinearConv", 1): (0.01, 0.1),
    ("QLinearConv", 4): (0.01, 0.1),
    ("QLinearConv", 6): (0.05, 0.1),
    ("QLinearMatMul", 1): (0.01, 0.1),
    ("QLinearMatMul", 4): (0.01, 0.1),
    ("QLinearMatMul", 6): (0.05, 0.1),
    ("QuantizeLinear", 1): (0.01, 0.1),
}

_INDEXED: dict[tuple[str, int], int] = {  # default axis of the data (input 0) that is indexed
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("ScatterElements", 1): 0,
    ("Scatter", 1): 0,
    ("ArrayFeatureExtractor", 1): -1,
    ("SoftmaxCrossEntropyLoss", 1): 1,
    ("NegativeLogLikelihoodLoss", 1): 1,
    ("RoiAlign", 2): 0,
    ("TensorScatter", 2): -2,
}


def _bounds(draw: Draw, use: Role) -> Iterator[int]:
    """Upper limits (exclusive) that a use puts on indices."""
    node = use.node
    data = node.inputs[0] if node.inputs else None
    if use.key in _INDEXED:
        axis = int(ir.attr(node, "axis", _INDEXED[use.key]) or 0)
        yield draw.extent(data, axis) or 2
    elif use.key in (("GatherND", 1), ("ScatterND", 1)):
        sizes = draw.extents(data)[int(ir.attr(node, "batch_dims", 0)) :]
        yield min((s for s in sizes if s), default=1)
    elif use.key == ("OneHot", 0):
        depth = ir.array(node.inputs[1])
        yield int(depth.reshape(-1)[0]) if depth is not None and depth.size else 3
    elif use.key == ("MaxUnpool", 1):
        yield math.prod(s or 1 for s in draw.extents(data)[2:])
    elif use.key == ("RotaryEmbedding", 3) or use.key == ("RotaryEmbedding", 1):
        cache = node.inputs[1 if use.index == 3 else 2]
        yield draw.extent(cache, 0) or 2
    elif use.node.op_type == "EmbedLayerNormalization" and use.index < 2:
        yield draw.extent(node.inputs[2 if use.index == 0 else 4], 0) or 2


Special: TypeAlias = Callable[[Draw, ir.Node], "Array | None"]


def _ones(draw: Draw, node: ir.Node) -> Array:
    return draw.full(1)


def _zeros(draw: Draw, node: ir.Node) -> Array:
    return draw.full(0)


def _few(draw: Draw, node: ir.Node) -> Array:
    return draw.integers(1, 4)


def _axes(draw: Draw, node: ir.Node) -> Array:
    """Distinct axes; for Squeeze those of size one."""
    if node.op_type == "Squeeze":
        single = [i for i, d in enumerate(draw.extents(node.inputs[0])) if d == 1]
        if len(single) >= draw.length:
            return draw.vector(single)
    return draw.vector(range(draw.length))


def _reshape(draw: Draw, node: ir.Node) -> Array:
    return draw.vector([-1])


def _expand(draw: Draw, node: ir.Node) -> Array:
    sizes = [d or 1 for d in draw.extents(node.inputs[0])]
    lead = draw.length - len(sizes)
    return draw.vector([2] * lead + sizes if lead >= 0 else sizes[-lead:])


def _scales(draw: Draw, node: ir.Node) -> Array:
    """Powers of two for the last two of the axes: few modes know how to resize the others."""
    factor = 0.5 if draw.turn % 2 else 2.0
    scales = draw.full(1)
    scales.reshape(-1)[-2:] = factor
    return scales


def _resized(draw: Draw, node: ir.Node) -> Array:
    sizes = [d or 1 for d in draw.extents(node.inputs[0])]
    axes = ir.attr(node, "axes") or range(len(sizes))
    return draw.vector([2 * sizes[a] if a % len(sizes) > 1 else sizes[a] for a in axes])


def _image(draw: Draw, node: ir.Node) -> Array:
    """For Col2Im with blocks of one: as many pixels as there are columns."""
    columns = draw.extent(node.inputs[0], 2) or 1
    return draw.vector([columns])


def _unpooled(draw: Draw, node: ir.Node) -> Array:
    sizes = [d or 1 for d in draw.extents(node.inputs[0])]
    return draw.vector([*sizes[:2], *(3 * d for d in sizes[2:])])


def _range(draw: Draw, node: ir.Node) -> Array | None:
    _, limit, delta = node.inputs
    if limit is not None and draw.name == limit.name:
        return draw.full(4 + draw.turn % 3)
    return draw.full(1 if delta is not None and draw.name == delta.name else 0)


def _split(draw: Draw, node: ir.Node) -> Array | None:
    total = draw.extent(node.inputs[0], int(ir.attr(node, "axis", 0)))
    if total is None or draw.length == 0:
        return None
    each = total // draw.length
    return draw.vector([each] * (draw.length - 1) + [total - each * (draw.length - 1)])


def _trips(draw: Draw, node: ir.Node) -> Array:
    return draw.full(2 + draw.turn % 2)


def _ends(draw: Draw, node: ir.Node) -> Array:
    return draw.integers(2, 5)


def _sequence_lengths(draw: Draw, node: ir.Node) -> Array:
    axis = int(ir.attr(node, "time_axis", 0)) if node.op_type == "ReverseSequence" else 0
    longest = draw.extent(node.inputs[0], axis) or 1
    lengths = draw.integers(1, longest + 1)
    if lengths.size:
        lengths.reshape(-1)[0] = longest
    return lengths


def _boxes(draw: Draw, node: ir.Node) -> Array | None:
    if not draw.shape or draw.shape[-1] != 4:
        return None
    corner = draw.rng.uniform(0, 1, (*draw.shape[:-1], 2))
    size = draw.rng.uniform(0.1, 0.5, corner.shape)
    return np.concatenate([corner, corner + size], axis=-1).astype(draw.dtype)


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

_SPECIAL: dict[tuple[str, int], Special] = {
    ("AffineGrid", 1): lambda d, n: d.vector([2, 3, 4, 5, 6]),
    ("BitShift", 1): _few,
    ("BlackmanWindow", 0): lambda d, n: d.full(8),
    ("CenterCropPad", 1): _few,
    ("Col2Im", 1): _image,
    ("Col2Im", 2): _ones,
    ("ConstantOfShape", 0): _few,
    ("CumProd", 1): _zeros,
    ("CumSum", 1): _zeros,
    ("DFT", 1): lambda d, n: d.full(8),
    ("DFT", 2): _ones,
    ("Div", 1): lambda d, n: d.integers(1, 6) if d.dtype.kind in "iu" else None,
    ("Expand", 1): _expand,
    ("GRU", 4): _sequence_lengths,
    ("HammingWindow", 0): lambda d, n: d.full(8),
    ("HannWindow", 0): lambda d, n: d.full(8),
    ("LSTM", 4): _sequence_lengths,
    ("Loop", 0): _trips,
    ("MaxUnpool", 2): _unpooled,
    ("Mod", 1): lambda d, n: d.integers(1, 6) if d.dtype.kind in "iu" else None,
    ("NonMaxSuppression", 0): _boxes,
    ("NonMaxSuppression", 2): lambda d, n: d.full(3),
    ("OneHot", 1): lambda d, n: d.full(3 + d.turn % 2),
    ("Pad", 1): lambda d, n: d.integers(0, 2),
    ("Pad", 3): _axes,
    ("Pow", 1): lambda d, n: d.integers(0, 4) if d.dtype.kind in "iu" else None,
    ("RNN", 4): _sequence_lengths,
    ("Range", 0): _range,
    ("Range", 1): _range,
    ("Range", 2): _range,
    ("Reshape", 1): _reshape,
    ("Resize", 1): lambda d, n: d.vector([0] * (d.length // 2) + [1] * (d.length // 2)),
    ("Resize", 2): _scales,
    ("Resize", 3): _resized,
    ("ReverseSequence", 1): _sequence_lengths,
    ("SequenceAt", 1): _zeros,
    ("SequenceErase", 1): _zeros,
    ("SequenceInsert", 2): _zeros,
    ("Slice", 1): lambda d, n: d.integers(0, 2),
    ("Slice", 2): _ends,
    ("Slice", 3): _axes,
    ("Slice", 4): _ones,
    ("Split", 1): _split,
    ("SplitToSequence", 1): _split,
    ("Squeeze", 1): _axes,
    ("STFT", 1): lambda d, n: d.full(4),
    ("STFT", 3): lambda d, n: d.full(8),
    ("Tile", 1): _few,
    ("TopK", 1): lambda d, n: d.full(1 + d.turn % 2),
    ("Trilu", 1): lambda d, n: d.integers(-1, 2),
    ("Unsqueeze", 1): _axes,
    ("Upsample", 1): _scales,
    **{(op, 1): _axes for op in _REDUCTIONS},
}


def _mask(draw: Draw) -> Array:
    """Ones with a tail of zeros in every second row, as padding makes them."""
    mask = draw.full(1)
    if mask.ndim and mask.shape[-1] > 2:
        rows = mask.reshape(-1, mask.shape[-1])
        rows[1::2, -(mask.shape[-1] // 4 + 1) :] = 0
    return mask


def _positions(draw: Draw) -> Array:
    steps = np.arange(draw.shape[-1] if draw.shape else 1)
    return np.broadcast_to(steps, draw.shape).astype(draw.dtype) if draw.shape else draw.full(0)


# Inputs known by convention, where no operator tells more.
_NAMED: tuple[tuple[re.Pattern[str], Callable[[Draw], Array]], ...] = (
    (re.compile(r"mask"), _mask),
    (re.compile(r"token_type|segment"), lambda d: d.integers(0, 2)),
    (re.compile(r"position"), _positions),
    (re.compile(r"^sr$|sampl\w*_?rate"), lambda d: d.full(8000 if d.turn % 2 else 16000)),
    (re.compile(r"len|size|shape|count"), lambda d: d.integers(1, 4)),
)  # fmt: skip

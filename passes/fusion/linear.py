"""Linear operators with constant weights, and how to scale and shift what they compute.

Conv, ConvTranspose, Gemm, MatMul, and MatMul followed by Add compute ``W x + b``. Multiplying the
result by a number per output channel and adding another changes nothing but ``W`` and ``b``. New
weights are computed in float64 and rounded once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias, cast

import numpy as np

from graphopt import Rewriter, ir

__all__ = [
    "LINEAR",
    "Array",
    "Linear",
    "Unfit",
    "constant",
    "describe",
    "flat",
    "is_float",
    "multiply",
    "only_use",
    "round_to",
]

Array: TypeAlias = "np.ndarray[Any, Any]"

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# What the record of a node takes in a file, estimated low: the growth that removing one pays for.
_NODE_BYTES = 64

# Weights are multiplied in pieces of this many elements, so that float64 copies stay small.
_PIECE = 1 << 20

# Weights of float16 below this are subnormal for the most part and have lost their precision.
_SMALL_HALF = 16 * float(np.finfo(np.float16).smallest_normal)


class Unfit(Exception):  # noqa: N818 - not an error: the reason why a rewrite is declined
    """Why an operator or a constant does not qualify."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: The operator.
        weight: Its weight, a constant.
        bias: Its bias, or None.
        holder: The node that takes the bias; None for a MatMul, which has no room for one.
        slot: Which input of ``holder`` the bias is.
        channels: Number of output channels.
        rank: Rank of the result, None where it is unknown.
        trailing: Number of dimensions of the result behind the channels.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    holder: ir.Node | None
    slot: int
    channels: int
    rank: int | None
    trailing: int

    @property
    def data(self) -> Array:
        """The weight."""
        return constant(self.weight, "the weight")

    @property
    def groups(self) -> int:
        """Number of groups of a convolution, 1 otherwise."""
        return int(ir.attr(self.node, "group", 1))

    def per_channel(self, data: Array) -> Array:
        """A constant that the result is combined with, as float64 of shape [1] or [channels].

        Raises:
            Unfit: It would give the result another shape, or it varies over positions.
        """
        return flat(data, self.rank, self.trailing, self.channels)

    def scaled(self, factor: Array) -> Array:
        """The weight with its output channels multiplied by ``factor``, float64 [1] or [channels].

        Raises:
            Unfit: Others use the weight too, or its type cannot hold the products.
        """
        if not only_use(self.weight):
            raise Unfit("others use the weight too: it would be stored twice")
        data, op = self.data, self.node.op_type
        if factor.size == 1:
            return multiply(data, factor.reshape(()))
        if op == "Conv":
            return multiply(data, factor.reshape(-1, *[1] * (data.ndim - 1)))
        if op == "ConvTranspose":
            # [inputs, outputs of the group, ...]: the inputs of a group are neighbours.
            rows = np.repeat(factor.reshape(self.groups, -1), data.shape[0] // self.groups, axis=0)
            return multiply(data, rows.reshape(*rows.shape, *[1] * (data.ndim - 2)))
        if op == "Gemm" and ir.attr(self.node, "transB", 0):
            return multiply(data, factor.reshape(-1, 1))
        return multiply(data, factor.reshape(1, -1))

    def added(self) -> Array:
        """What is added to the products now, as float64 of shape [1] or [channels].

        Raises:
            Unfit: The bias is not constant, or varies over rows.
        """
        if self.bias is None:
            return np.zeros(1)
        data = constant(self.bias, "the bias")
        if self.node.op_type in ("Conv", "ConvTranspose"):
            return flat(data, 1, 0, self.channels)
        values = self.per_channel(data)
        return values * float(ir.attr(self.node, "beta", 1.0)) if self.slot == 2 else values

    def rebias(self, added: Array, freed: tuple[ir.Value, ...]) -> Array | None:
        """A bias in the operator's type and shape, or None where what is there will do.

        Args:
            added: Float64 of shape [1] or [channels].
            freed: Constants that nothing needs any more, unless others use them.

        Raises:
            Unfit: The bias overflows, or is larger than all that it replaces.
        """
        if self.bias is None and not added.any():
            return None
        if self.holder is None:
            raise Unfit("a MatMul has no bias")
        if self.node.op_type in ("Conv", "ConvTranspose"):
            added = np.broadcast_to(added, (self.channels,))
        bias = round_to(added, self.data.dtype, "the bias")
        if np.array_equal(self.added(), added) and "beta" not in self.node.attributes:
            return None
        if bias.nbytes > _NODE_BYTES:
            old = (*freed, self.bias) if self.bias is not None else freed
            gone = sum(_nbytes(v) for v in dict.fromkeys(old) if only_use(v))
            if bias.nbytes > gone + _NODE_BYTES:
                raise Unfit("the new bias would be larger than what it replaces")
        return bias

    def update(self, rw: Rewriter, weight: Array | None, bias: Array | None) -> None:
        """Give the operator another weight and another bias; None keeps what is there.

        Args:
            rw: Where to make the change.
            weight: As :meth:`scaled` makes it.
            bias: As :meth:`rebias` makes it: all that is added, the factor beta of a Gemm included.
        """
        if weight is not None:
            rw.set_input(self.node, 1, rw.const(weight, self.weight.name or "weight"))
        if bias is not None and self.holder is not None:
            name = f"{self.weight.name}.bias" if self.bias is None else self.bias.name
            rw.set_input(self.holder, self.slot, rw.const(bias, name or "bias"))
            if "beta" in self.node.attributes:
                rw.set_attr(self.node, beta=None)


def describe(node: ir.Node, add: ir.Node | None = None) -> Linear:
    """Describe a linear operator.

    Args:
        node: A Conv, ConvTranspose, Gemm or MatMul.
        add: An Add of the result of a MatMul and something else.

    Raises:
        Unfit: The weight is not a constant of floats of a shape that the operator takes.
    """
    weight = node.inputs[1]
    tensor = ir.const(weight)
    if weight is None or tensor is None:
        raise Unfit("the weight is not constant")
    if tensor.dtype not in _FLOATS:
        raise Unfit("the weight is not floating-point")
    shape = tuple(int(d) for d in tensor.shape.numpy())
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = int(ir.attr(node, "group", 1))
        if len(shape) < 3 or groups < 1 or shape[0] % groups:
            raise Unfit("the weight does not fit the operator")
        channels = shape[0] if node.op_type == "Conv" else shape[1] * groups
        return Linear(node, weight, bias, node, 2, channels, len(shape), len(shape) - 2)
    if len(shape) != 2:
        raise Unfit("the weight is not a matrix")
    if node.op_type == "Gemm":
        channels = shape[0] if ir.attr(node, "transB", 0) else shape[1]
        return Linear(node, weight, bias, node, 2, channels, 2, 0)
    rank = ir.rank(node.outputs[0])
    if add is None:
        return Linear(node, weight, None, None, 0, shape[1], rank, 0)
    slot = 1 if add.inputs[0] is node.outputs[0] else 0
    return Linear(node, weight, add.inputs[slot], add, slot, shape[1], rank, 0)


def constant(value: ir.Value | None, what: str) -> Array:
    """Data of a constant.

    Raises:
        Unfit: The value is not constant; the reason says that ``what`` is not.
    """
    found = ir.array(value)
    if found is None:
        raise Unfit(f"{what} is not constant")
    return found


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of floats of 16 bits or more."""
    return value is not None and value.dtype in _FLOATS


def only_use(value: ir.Value) -> bool:
    """Whether a constant goes away together with one use of it."""
    return ir.use_count(value) == 1 and not value.is_graph_output()


def flat(data: Array, rank: int | None, trailing: int, channels: int) -> Array:
    """A constant that varies over channels only, as float64 of shape [1] or [channels].

    Args:
        data: The constant.
        rank: Rank of the tensor it is combined with, None where it is unknown.
        trailing: Number of dimensions of that tensor behind the channels.
        channels: Number of its channels.

    Raises:
        Unfit: It would give the result another shape, or it varies over positions.
    """
    if data.ndim > (1 if rank is None else rank):
        raise Unfit("the constant may have a higher rank than what it is combined with")
    shape = (1,) * (trailing + 1 - data.ndim) + data.shape
    at = len(shape) - 1 - trailing
    if any(d != 1 for i, d in enumerate(shape) if i != at):
        raise Unfit("the constant varies over positions or samples")
    if shape[at] not in (1, channels):
        raise Unfit("the constant does not have one element per channel")
    return data.astype(np.float64).reshape(-1)


def multiply(data: Array, factor: Array) -> Array:
    """``data * factor`` in float64, rounded to the type of ``data``.

    Args:
        data: Floats.
        factor: Float64 that broadcasts to the shape of ``data``.

    Raises:
        Unfit: A product is not finite, or all of them are so small that float16 loses precision.
    """
    out = np.empty(data.shape, data.dtype)
    whole = np.broadcast_to(factor, data.shape)
    rows = max(1, _PIECE // max(1, math.prod(data.shape[1:])))
    before = after = 0.0
    for start in range(0, data.shape[0], rows):
        part = slice(start, start + rows)
        piece = data[part].astype(np.float64)
        before = max(before, float(np.abs(piece).max(initial=0.0)))
        with np.errstate(over="ignore", invalid="ignore"):
            piece *= whole[part]
        out[part] = round_to(piece, data.dtype, "the weight")
        after = max(after, float(np.abs(piece).max(initial=0.0)))
    if data.dtype == np.float16 and 0 < after < min(before, _SMALL_HALF):
        raise Unfit("the weight would lose its precision in float16")
    return out


def round_to(data: Array, dtype: Any, what: str) -> Array:
    """Float64 rounded to another type.

    Raises:
        Unfit: An element is not finite then; the reason says that ``what`` is not.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out = cast(Array, data.astype(dtype))
        if not np.isfinite(out.astype(np.float32) if out.dtype.itemsize == 2 else out).all():
            raise Unfit(f"{what} is not finite after folding")
    return out


def _nbytes(value: ir.Value) -> int:
    tensor = ir.const(value)
    return 0 if tensor is None else tensor.nbytes

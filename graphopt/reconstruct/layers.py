"""Linear operators with constant weights: what least squares can fit anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration.gram import Patches
from graphopt.rewrite import Rewriter

__all__ = ["Layer", "layers"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul whose weight is constant.

    As a matrix its weight is ``[groups, outputs of a group, columns]``; a convolution has a column
    for each element of its kernel and input channel of a group, channels outermost.

    Attributes:
        node: The operator.
        adds: The node that adds the bias to a MatMul, or None.
        output: What it computes, bias included.
        patches: How a convolution cuts its input, or None.
        groups: Number of groups.
        turned: Whether the weight is ``[columns, outputs]``.
    """

    node: ir.Node
    adds: ir.Node | None
    output: ir.Value
    patches: Patches | None
    groups: int
    turned: bool

    @property
    def name(self) -> str:
        """Name of what it computes."""
        return self.output.name or ""

    @property
    def input(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def kernel(self) -> int:
        """Columns per input channel."""
        return 1 if self.patches is None else math.prod(self.patches.kernel)

    @property
    def transposed(self) -> bool:
        """Whether it is a ConvTranspose, whose weight is ``[inputs, outputs of a group, ...]``."""
        return self.patches is not None and bool(self.patches.stretch)

    @property
    def takes_bias(self) -> bool:
        """Whether it has a bias, or can be given one."""
        return self.node.op_type != "MatMul" or self.adds is not None

    def matrix(self) -> Array:
        """The weight, ``[groups, outputs of a group, columns]`` float64."""
        weight = ir.array(self.node.inputs[1])
        assert weight is not None
        wide = np.asarray(weight, np.float64) * self._scale("alpha")
        if self.transposed:
            blocks = wide.reshape(self.groups, -1, wide.shape[1], self.kernel)
            return blocks.transpose(0, 2, 1, 3).reshape(self.groups, wide.shape[1], -1)
        rows = wide.T if self.turned else wide.reshape(len(wide), -1)
        return rows.reshape(self.groups, len(rows) // self.groups, -1)

    def bias(self) -> Array:
        """The bias, ``[groups, outputs of a group]`` float64; zeros where there is none."""
        count = self.outputs
        place = self._bias_place()
        given = () if place is None else place[0].inputs[place[1] : place[1] + 1]
        found = ir.array(given[0]) if given else None
        if found is None:
            return np.zeros((self.groups, count // self.groups))
        wide = np.asarray(found, np.float64) * self._scale("beta")
        return np.broadcast_to(wide.reshape(-1), (count,)).reshape(self.groups, -1).copy()

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        shape = ir.static_shape(self.node.inputs[1])
        assert shape is not None
        if self.transposed:
            return shape[1] * self.groups
        return shape[-1] if self.turned else shape[0]

    @property
    def columns(self) -> int:
        """Columns of the weight of a group."""
        shape = ir.static_shape(self.node.inputs[1])
        assert shape is not None
        if self.transposed:
            return shape[0] // self.groups * self.kernel
        return shape[0] if self.turned else math.prod(shape[1:])

    def write(self, rw: Rewriter, matrix: Array, bias: Array | None) -> None:
        """Give it another weight and bias, in the shapes of :meth:`matrix` and :meth:`bias`."""
        value = self.node.inputs[1]
        old = ir.array(value)
        assert value is not None
        assert old is not None
        rows = matrix.reshape(-1, matrix.shape[-1]) / self._scale("alpha")
        if self.transposed:
            blocks = rows.reshape(self.groups, old.shape[1], -1, self.kernel)
            rows = blocks.transpose(0, 2, 1, 3)
        new = (rows.T if self.turned else rows.reshape(old.shape)).astype(old.dtype)
        rw.set_input(self.node, 1, rw.const(np.ascontiguousarray(new), value.name or "weight"))
        if bias is None or not self.takes_bias:
            return
        place = self._bias_place()
        assert place is not None
        node, index = place
        flat = bias.reshape(-1) / self._scale("beta")
        there = node.inputs[index] if index < len(node.inputs) else None
        if there is None and not flat.any():
            return
        name = (there.name if there is not None else None) or f"{value.name}.bias"
        shape = ir.static_shape(there)
        if shape is not None and math.prod(shape) == flat.size:
            flat = flat.reshape(shape)  # its rank may be what gives an Add its rank
        rw.set_input(node, index, rw.const(flat.astype(old.dtype), name))

    def _scale(self, name: str) -> float:
        """What a Gemm multiplies its product or its bias by."""
        return float(ir.attr(self.node, name, 1.0)) if self.node.op_type == "Gemm" else 1.0

    def _bias_place(self) -> tuple[ir.Node, int] | None:
        if self.adds is not None:
            side = 1 if ir.const(self.adds.inputs[1]) is not None else 0
            return self.adds, side
        return None if self.node.op_type == "MatMul" else (self.node, 2)


def layers(model: ir.Model) -> Iterator[Layer]:
    """The layers of the main graph of a model, in its order."""
    for node in model.graph:
        found = _layer(node)
        if found is not None:
            yield found


def _layer(node: ir.Node) -> Layer | None:
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    shape = ir.static_shape(weight)
    tensor = ir.const(weight)
    if tensor is None or shape is None or tensor.dtype != ir.DataType.FLOAT or 0 in shape:
        return None
    if node.inputs[0] is None or ir.const(node.inputs[0]) is not None:
        return None
    if any(ir.const(v) is None for v in node.inputs[2:] if v is not None):
        return None
    output = node.outputs[0]
    if node.op_type in ("Conv", "ConvTranspose"):
        patches = (_patches if node.op_type == "Conv" else _transposed)(node, shape)
        if patches is None:
            return None
        return Layer(node, None, output, patches, patches.groups, turned=False)
    if len(shape) != 2:
        return None
    if node.op_type == "Gemm":
        # A bias per row is no bias of channels.
        bias = ir.static_shape(node.inputs[2]) if len(node.inputs) > 2 else None
        sizes = () if bias is None else bias[:-1]
        if ir.attr(node, "transA", 0) or any(n != 1 for n in sizes):
            return None
        if not ir.attr(node, "alpha", 1.0) or not ir.attr(node, "beta", 1.0):
            return None
        return Layer(node, None, output, None, 1, turned=not ir.attr(node, "transB", 0))
    adds = _bias_of(output, shape[-1])
    return Layer(node, adds, output if adds is None else adds.outputs[0], None, 1, turned=True)


def _bias_of(value: ir.Value, channels: int) -> ir.Node | None:
    """The Add with a constant per channel that alone reads a value."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    if add.domain or add.graph is not value.graph:
        return None
    other = add.inputs[1 - uses[0].idx]
    shape = ir.static_shape(other) if ir.const(other) is not None else None
    if shape is None or not shape or shape[-1] != channels or math.prod(shape[:-1]) != 1:
        return None
    return add


def _patches(node: ir.Node, shape: tuple[int, ...]) -> Patches | None:
    kernel = tuple(shape[2:])
    n = len(kernel)
    strides = tuple(ir.attr(node, "strides", ()) or (1,) * n)
    dilations = tuple(ir.attr(node, "dilations", ()) or (1,) * n)
    pads = tuple(ir.attr(node, "pads", ()) or (0,) * 2 * n)
    mode = ir.attr(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * 2 * n
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = (ir.dims(node.inputs[0]) or ())[2:]
        totals = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=False):
            span = (k - 1) * d + 1
            if s == 1:
                totals.append(span - 1)
            elif isinstance(size, int):
                totals.append(max((math.ceil(size / s) - 1) * s + span - size, 0))
        if len(totals) != n:
            return None
        small = [t // 2 for t in totals]
        large = [t - h for t, h in zip(totals, small, strict=True)]
        pads = tuple((*small, *large) if mode == "SAME_UPPER" else (*large, *small))
    return Patches(kernel, strides, pads, dilations, int(ir.attr(node, "group", 1)))


def _transposed(node: ir.Node, shape: tuple[int, ...]) -> Patches | None:
    """How a ConvTranspose cuts its input, if that does not depend on its size."""
    kernel = tuple(shape[2:])
    n, mode = len(kernel), ir.attr(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID") or ir.attr(node, "output_shape", ()):
        return None
    strides = tuple(ir.attr(node, "strides", ()) or (1,) * n)
    dilations = tuple(ir.attr(node, "dilations", ()) or (1,) * n)
    more = tuple(ir.attr(node, "output_padding", ()) or (0,) * n)
    cut = tuple(ir.attr(node, "pads", ()) or (0,) * 2 * n) if mode == "NOTSET" else (0,) * 2 * n
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    before = [r - c for r, c in zip(reach, cut[:n], strict=True)]
    behind = [r - c + m for r, c, m in zip(reach, cut[n:], more, strict=True)]
    groups = int(ir.attr(node, "group", 1))
    return Patches(kernel, (1,) * n, (*before, *behind), dilations, groups, strides)

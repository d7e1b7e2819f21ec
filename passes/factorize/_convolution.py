"""Convolutions with constant weights, as passes that take them apart see them."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import ir
from graphopt.passes.fusion.linear import Array, Unfit, describe, only_use

__all__ = ["BLOCK", "Convolution", "convolution"]

# ONNX Runtime's fast kernel takes channels by so many; others take up to twice the time for each
# multiplication.
BLOCK = 16


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A Conv whose weight is constant.

    Attributes:
        node: The operator.
        weight: Its weight.
        data: The weight's elements, ``[outputs, inputs of a group, *kernel]``.
        groups: Number of groups.
        strides: One per spatial axis.
        dilations: One per spatial axis.
    """

    node: ir.Node
    weight: ir.Value
    data: Array
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Elements along each spatial axis."""
        return tuple(self.data.shape[2:])

    @property
    def input(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        """What it adds, or None."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    def pads(self) -> tuple[int, ...]:
        """How many zeros it reads around its input: all begins, then all ends.

        Raises:
            Unfit: That depends on the size of the input (auto_pad), which is not known.
        """
        n = len(self.kernel)
        mode = ir.attr(self.node, "auto_pad", "NOTSET")
        if mode == "VALID":
            return (0,) * 2 * n
        if mode == "NOTSET":
            return tuple(int(p) for p in ir.attr(self.node, "pads", ())) or (0,) * 2 * n
        sizes = (ir.dims(self.input) or (None,) * (n + 2))[2:]
        less, more = [], []
        for size, k, s, d in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            reach = (k - 1) * d
            if s == 1:
                total = reach
            elif isinstance(size, int):
                total = max((-(-size // s) - 1) * s + reach + 1 - size, 0)
            else:
                raise Unfit("it pads as much as the size of its input asks for (auto_pad)")
            less.append(total // 2)
            more.append(total - total // 2)
        return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)

    def check_change(self) -> None:
        """Check that the weight may be replaced.

        Raises:
            Unfit: Others use it too, or it has elements with which zeros are no zeros.
        """
        if not only_use(self.weight):
            raise Unfit("others use the weight too: it would be stored twice")
        wide = self.data.astype(np.float32) if self.data.dtype.itemsize == 2 else self.data
        if not np.isfinite(wide).all():
            raise Unfit("the weight is not finite")


def convolution(node: ir.Node) -> Convolution:
    """Describe a Conv.

    Raises:
        Unfit: The weight is not a constant of floats of a shape that the operator takes.
    """
    linear = describe(node)
    data = linear.data
    n = data.ndim - 2
    if not data.size:
        raise Unfit("the weight is empty")

    def along(name: str) -> tuple[int, ...]:
        return tuple(int(v) for v in ir.attr(node, name, ())) or (1,) * n

    found = Convolution(
        node, linear.weight, data, linear.groups, along("strides"), along("dilations")
    )
    if len(found.strides) != n or len(found.dilations) != n:
        raise Unfit("the attributes do not fit the rank of the weight")
    return found

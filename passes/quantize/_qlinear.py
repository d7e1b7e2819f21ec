"""Operands of operators on integers: codes, and the constants that say what they stand for."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphopt import Rewriter, Target, ir
from graphopt.passes.quantize._grids import Grid, integers, is_dequantize, known, read

__all__ = [
    "CONTRIB",
    "Operand",
    "Unfit",
    "activation",
    "bias_of",
    "import_contrib",
    "operand",
    "parameters",
    "per_tensor",
    "result_grid",
    "takes_contrib",
    "weight_of",
]

CONTRIB = "com.microsoft"
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


class Unfit(Exception):
    """Why an operator has no integer form."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """What a DequantizeLinear dequantizes.

    Attributes:
        codes: The integers.
        grid: What they stand for.
        node: The DequantizeLinear.
    """

    codes: ir.Value
    grid: Grid
    node: ir.Node

    def inputs(self, rw: Rewriter) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point, as operators on integers take them."""
        return (self.codes, *parameters(rw, self.node, self.grid))


def operand(value: ir.Value | None) -> Operand | None:
    """What a value is dequantized from; None where it is not, or its grid is not known."""
    node = None if value is None else value.producer()
    if node is None or not is_dequantize(node) or node.inputs[0] is None:
        return None
    grid = read(node)
    return None if isinstance(grid, str) else Operand(node.inputs[0], grid, node)


def per_tensor(grid: Grid) -> bool:
    """Whether it is a grid of 8-bit integers with one scale."""
    return grid.axis is None and integers(grid) in _BYTES


def parameters(rw: Rewriter, node: ir.Node, grid: Grid) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear; a missing one is made."""
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    assert scale is not None
    if zero is None:
        zero = rw.const(grid.zero_point, f"{scale.name}.zero")
    return scale, zero


def result_grid(quantizer: ir.Node, *sources: Operand) -> Grid:
    """The grid that a quantizer quantizes to, which has the type of what it is computed from.

    Raises:
        Unfit: It has not.
    """
    grid = read(quantizer)
    if isinstance(grid, str):
        raise Unfit(grid)
    if not per_tensor(grid):
        raise Unfit("its result has a scale per channel, or not 8 bits")
    if any(integers(s.grid) != integers(grid) for s in sources):
        raise Unfit("its integers are of different types")
    return grid


def activation(node: ir.Node, position: int) -> Operand:
    """An input that is dequantized from 8-bit integers with one scale.

    Raises:
        Unfit: It is not.
    """
    value = node.inputs[position] if position < len(node.inputs) else None
    found = operand(value)
    if found is None:
        raise Unfit(f"input {position} of the {node.op_type} is not dequantized")
    if not per_tensor(found.grid):
        raise Unfit(
            f"input {position} of the {node.op_type} has a scale per channel, or not 8 bits"
        )
    return found


def weight_of(node: ir.Node, x: Operand, axis: int) -> Operand:
    """The second input, whose scales are one, or lie along an axis of output channels.

    Raises:
        Unfit: They do not, or no kernel takes the weight.
    """
    found = operand(node.inputs[1])
    if found is None:
        raise Unfit(f"input 1 of the {node.op_type} is not dequantized")
    grid, rank = found.grid, ir.rank(found.codes)
    kind = integers(grid)
    if kind != ir.DataType.INT8 and not kind == integers(x.grid) == ir.DataType.UINT8:
        raise Unfit(f"there is no kernel for a weight of {kind.name.lower()}")
    if grid.axis is not None and (rank is None or grid.axis != axis % rank):
        raise Unfit("the scales of its weight are not those of output channels")
    if grid.axis is not None and node.op_type == "MatMul" and rank != 2:
        raise Unfit("its weight has a scale per channel and is no matrix")
    if np.unique(grid.zero_point).size > 1:
        raise Unfit("the zero points of its weight differ")
    return found


def bias_of(node: ir.Node, x: Operand, weight: Operand, rw: Rewriter) -> ir.Value | None:
    """The third input in units of what the integers sum up to, or None where it is absent.

    Raises:
        Unfit: It is computed, or has no such form.
    """
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    shape = ir.static_shape(weight.codes)
    if shape is None:
        raise Unfit("the number of output channels is not known")
    first = node.op_type == "Conv" or bool(ir.attr(node, "transB"))
    channels = shape[0 if first else 1]
    unit = x.grid.scale.astype(np.float64) * weight.grid.scale.astype(np.float64)
    found = operand(value)
    if (
        found is not None
        and integers(found.grid) == ir.DataType.INT32
        and not found.grid.zero_point.any()
        and np.allclose(found.grid.scale, unit, rtol=1e-6, atol=0)
        and ir.static_shape(found.codes) == (channels,)
    ):
        return found.codes
    numbers = known(value)
    if numbers is None:
        raise Unfit("its bias is not constant")
    if numbers.size != 1 and numbers.shape not in ((channels,), (1, channels)):
        raise Unfit("its bias has not one element per output channel")
    sums = np.rint(np.broadcast_to(numbers.reshape(-1), (channels,)).astype(np.float64) / unit)
    if not (np.abs(sums) < 2.0**31).all():
        raise Unfit("its bias exceeds 32 bits in units of its products")
    return rw.const(sums.astype(np.int32), value.name or "bias")


def takes_contrib(target: Target) -> bool:
    """Whether a target has ONNX Runtime's own operators on integers, as only its CPU code does."""
    return CONTRIB in target.domains and target.providers[:1] == ("CPUExecutionProvider",)


def import_contrib(model: ir.Model) -> None:
    """Import ONNX Runtime's domain where a node is of it."""
    if any(n.domain == CONTRIB for n in ir.all_nodes(model)):
        for graph in ir.all_graphs(model):
            graph.opset_imports.setdefault(CONTRIB, 1)

"""Quantizers and dequantizers where the target's integer kernels need them and there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable

from graphopt import Context, Exactness, Pass, ir
from graphopt.calibration import MinMax, collect
from graphopt.passes.quantize._grids import Grid, is_dequantize, is_quantize, pair, read
from graphopt.passes.quantize._scheme import static_scheme
from graphopt.quant import from_range
from graphopt.targets import IntegerKernel, Scheme

__all__ = ["PlaceQdq"]

_NAME = "place-qdq"


class PlaceQdq(Pass):
    """Complete the quantization of operators whose author quantized some of their inputs.

    What it does: ONNX Runtime computes an operator on integers if all of its activations come from
    a DequantizeLinear and its result goes to a QuantizeLinear. TensorRT wants it otherwise: nothing
    between a convolution and the addition behind it. This pass adds what is missing to operators
    with a quantized activation that have a quantized weight, or a quantized result. Where a value
    has a quantizer for other users already, all use that; else samples tell its range.

    Exactness: LOSSY

    Needs: calibration data where a value was not quantized for anyone; repair-qdq before, which
    finds those that were

    Options: none

    Example: Q(Add(DQ(a), Conv(DQ(x), DQ(w)))) -> Q(Add(DQ(a), DQ(Q(Conv(DQ(x), DQ(w))))))

    Declines when: there is no calibration data; a result is an output of the model; an operand is a
    constant in floating point.

    References: NVIDIA TensorRT documentation, "Working with Quantized Types"; ONNX Runtime,
    onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc.
    """

    name = _NAME
    exactness = Exactness.LOSSY
    min_opset = 10

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Find what is missing, learn the ranges that nobody knows, and insert it."""
        scheme = static_scheme(ctx)
        plan = _Plan(model, scheme, lambda why: ctx.decline(_NAME, why))
        plan.complete(calibrated=ctx.data is not None)
        grids = {v: _known_grid(v) for v in plan.missing}
        ranges = _observe(model, ctx, [v for v, grid in grids.items() if grid is None])
        rw = ctx.rewriter()
        for value, known in grids.items():
            grid = known or from_range(*ranges[value], scheme.activation)
            if not ctx.allow(f"{_NAME} at %{value.name}"):
                break
            rw.insert_after(value, functools.partial(pair, rw, grid=grid))
            ctx.stats.applied["insert-pair"] += 1
        return rw.changed


def _observe(
    model: ir.Model, ctx: Context, values: list[ir.Value]
) -> dict[ir.Value, tuple[float, float]]:
    """Smallest and largest number that each value holds for any of the samples."""
    if not values or ctx.data is None:
        return {}
    watched = {v.name or "": MinMax() for v in values}
    found = collect(model, watched, ctx.data, executor=ctx.executor, cache=ctx.cache)
    ranges = {}
    for value in values:
        (seen,) = found[value.name or ""]
        assert isinstance(seen, MinMax)
        ranges[value] = (seen.min, seen.max)
    return ranges


class _Plan:
    """The values that are to go through a quantizer, in the order they were found."""

    def __init__(self, model: ir.Model, scheme: Scheme, decline: Callable[[str], None]) -> None:
        self.graph, self.scheme, self.decline = model.graph, scheme, decline
        self.missing: dict[ir.Value, None] = {}

    def complete(self, calibrated: bool) -> None:
        """Look at all nodes, and again at those next to a value that is to get a quantizer."""
        refused: dict[ir.Node, str] = {}
        pending = list(self.graph)[::-1]
        while pending:
            node = pending.pop()
            kernel = self.scheme.kernel(node)
            if isinstance(kernel, str) or kernel.passes_through or node.graph is not self.graph:
                continue
            found = self._needs(node, kernel)
            if isinstance(found, str):
                refused[node] = found
                continue
            if not calibrated and any(_known_grid(v) is None for v in found):
                refused[node] = "no calibration data tells the range of a value nobody quantized"
                continue
            refused.pop(node, None)
            for value in found:
                if value not in self.missing:
                    self.missing[value] = None
                    pending.extend(_neighbours(value))
        for why in refused.values():
            self.decline(why)

    def _needs(self, node: ir.Node, kernel: IntegerKernel) -> list[ir.Value] | str:
        """The values around a node that lack a quantizer, or why they cannot get one."""
        weight = _at(node, kernel.weight)
        weighted = weight is not None and _is_dequantized_constant(weight)
        parameters = {kernel.weight if weighted else None, kernel.bias}
        positions = range(len(node.inputs)) if kernel.activations is None else kernel.activations
        read_ = [v for i in positions if i not in parameters and (v := _at(node, i)) is not None]
        lacking = [v for v in read_ if not (is_dequantize(v.producer()) or v in self.missing)]
        if len(lacking) == len(read_) or not (weighted or len(read_) > 1):
            return []
        if kernel.weight is not None and weight is not None and ir.const(weight) is not None:
            return []
        out = _behind_clips(node.outputs[0])
        users = [use.node for use in out.uses()]
        quantized = out in self.missing or (bool(users) and all(map(is_quantize, users)))
        if not weighted and not quantized:
            return []  # its author wants it in floating point
        if any(ir.const(v) is not None for v in lacking):
            return "an operand is a constant in floating point"
        if not kernel.float_output and not quantized:
            lacking.append(out)
        if any(v.is_graph_output() for v in lacking):
            return "a value is an output of the model"
        return lacking


def _at(node: ir.Node, position: int | None) -> ir.Value | None:
    return None if position is None or position >= len(node.inputs) else node.inputs[position]


def _is_dequantized_constant(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and is_dequantize(node) and ir.const(node.inputs[0]) is not None


def _neighbours(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, and the one that computes it but for a Relu or Clip."""
    found = [use.node for use in value.uses()]
    node = value.producer()
    while node is not None and node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return found if node is None else [*found, node]


def _behind_clips(value: ir.Value) -> ir.Value:
    """The value behind a Relu or Clip, which a quantizer makes superfluous."""
    while ir.use_count(value) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        if use.node.domain or use.node.op_type not in ("Relu", "Clip") or use.idx:
            break
        value = use.node.outputs[0]
    return value


def _known_grid(value: ir.Value) -> Grid | None:
    """The grid of a quantizer that a value has for some of its users."""
    for use in value.uses():
        if is_quantize(use.node):
            grid = read(use.node)
            if not isinstance(grid, str) and grid.axis is None:
                return grid
    return None

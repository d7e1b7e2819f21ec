"""Smoothing: moving what makes activations hard to quantize into weights, where it does no harm.

Activations share one scale, so that a channel of large numbers leaves few integers to all others.
Two changes leave the function of the model as it is and make channels alike: subtracting a constant
from a channel, which biases behind it put back, and dividing it by a factor, which the weights that
read it are multiplied by. Both go into constants where the model has them; where not, a factor
costs a Mul.

References:
    Xiao et al., "SmoothQuant" (2022), equation 4; Wei et al., "Outlier Suppression+" (2023),
    section 4.1, for the shift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration import ChannelStats
from graphopt.calibration.gram import BatchRanges
from graphopt.quant.constants import Declined, Edits, over_last_axis, shift_result, used_once
from graphopt.quant.rounding import round_weights, weight_scales
from graphopt.rewrite import Rewriter

__all__ = [
    "Channels",
    "Smoothed",
    "choose_factor",
    "fold_factor",
    "fold_shift",
    "insert_factor",
    "smooth",
]

Array = np.ndarray[Any, Any]

_EXPONENTS = np.arange(0.4, 1.01, 0.05)
# Channels are never divided by less than this share of the largest factor.
_LEAST = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """What is known of the channels of an activation.

    Attributes:
        low: Smallest value of each channel in each batch, ``[batches, channels]``.
        high: Largest value, likewise. Where scales are fixed beforehand, the only row is the range
            over all batches.
        squares: Mean squares, ``[channels]``.
        mean: Means, ``[channels]``.
    """

    low: Array
    high: Array
    squares: Array
    mean: Array

    @classmethod
    def of(cls, stats: ChannelStats, batches: BatchRanges | None = None) -> Channels:
        """From what observers saw; without ``batches`` the scales are taken to be fixed."""
        low, high = (stats.min[None], stats.max[None]) if batches is None else (
            batches.min.astype(np.float64), batches.max.astype(np.float64)
        )  # fmt: skip
        return cls(low, high, stats.squares / max(1, stats.count), stats.mean)

    def changed(self, shift: Array, factor: Array) -> Channels:
        """The channels after ``shift`` was subtracted and the rest divided by ``factor``."""
        squares = np.maximum(self.squares - 2 * shift * self.mean + shift**2, 0)
        return Channels(
            (self.low - shift) / factor,
            (self.high - shift) / factor,
            squares / factor**2,
            (self.mean - shift) / factor,
        )

    @property
    def middle(self) -> Array:
        """Middle of the range of each channel over all batches."""
        return np.asarray((self.low.min(axis=0) + self.high.max(axis=0)) / 2)


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """What was done to an activation.

    Attributes:
        shift: Whether a constant was subtracted from its channels.
        factor: How its channels were divided: ``folded`` into constants, or by a Mul that was
            ``inserted``; None if they were not.
        gain: Expected error of what reads it before, in units of that after.
        reasons: Why not more.
    """

    shift: bool
    factor: str | None
    gain: float
    reasons: tuple[str, ...]


def expected_error(
    channels: Channels, weight: Array, limits: tuple[int, int] = (-127, 127), levels: int = 255
) -> float:
    """Mean squared error of a product with quantized weights and activations, over all outputs.

    Rounding activations with one scale per batch adds noise of a twelfth of the squared step to
    every channel; weights are rounded to the nearest with a scale per output.

    Args:
        channels: The activation.
        weight: ``[in, out]``, of all operators that read the activation.
        limits: Smallest and largest integer of a weight.
        levels: Steps from the smallest to the largest activation.
    """
    high = np.maximum(channels.high.max(axis=1), 0)
    low = np.minimum(channels.low.min(axis=1), 0)
    step = (high - low) / levels
    w = weight.T
    scale = weight_scales(w, limits)
    rounding = round_weights(w, scale, limits) * scale - w
    noise = float((step**2).mean()) / 12 * float((w**2).sum())
    return noise + float((rounding**2 @ channels.squares).sum())


def choose_factor(
    channels: Channels, weight: Array, limits: tuple[int, int] = (-127, 127), levels: int = 255
) -> tuple[Array, float]:
    """Factors to divide an activation by, of least expected error.

    Candidates are ``range**a / size of the weights**(1 - a)`` for exponents a from 0.4 to 1, with
    the range over all batches and the mean one.

    Args:
        channels: The activation.
        weight: ``[in, out]``, of all operators that read the activation.
        limits: Smallest and largest integer of a weight.
        levels: Steps from the smallest to the largest activation.

    Returns:
        Factors ``[in]``, ones where none is better, and the expected error with them.
    """
    size = np.sqrt((weight**2).mean(axis=1))
    size = np.maximum(size, _LEAST * size.max(initial=_LEAST))
    each = np.maximum(np.abs(channels.low), np.abs(channels.high))
    best = np.ones(len(weight))
    error = expected_error(channels, weight, limits, levels)
    for span in (each.max(axis=0), np.sqrt((each**2).mean(axis=0))):
        span = np.maximum(span, _LEAST * span.max(initial=_LEAST))
        for a in _EXPONENTS:
            factor = span**a / size ** (1 - a)
            factor /= np.exp(np.log(factor).mean())
            after = channels.changed(np.zeros(len(weight)), factor)
            found = expected_error(after, weight * factor[:, None], limits, levels)
            if found < error:
                best, error = factor, found
    return best, error


def fold_shift(rw: Rewriter, value: ir.Value, shift: Array) -> str | None:
    """Subtract a constant from each channel of a value, and add it back behind what reads it.

    The value is computed with a constant added last: by LayerNormalization, Gemm or Add. Everything
    that reads it is a MatMul with a constant weight and a constant added to its result, a Gemm, or
    an Add of something that has a constant added last in its turn, such as a residual.

    Args:
        rw: Rewriter of the model.
        value: A value whose channels lie along the last axis.
        shift: ``[channels]``.

    Returns:
        Why not, or None if it was done. The function of the model is the same up to rounding.
    """
    edits = Edits()
    try:
        if value.is_graph_output():
            raise Declined("it is an output of the model")
        if not _same_length(value, shift):
            raise Declined("the number of its channels is not known")
        edits.shift(value, -shift)
        for use in value.uses():
            _put_back(edits, use.node, use.idx, value, shift)
        edits.apply(rw)
    except Declined as e:
        return str(e)
    return None


def _put_back(edits: Edits, node: ir.Node, index: int, value: ir.Value, shift: Array) -> None:
    if node.domain == "" and node.op_type == "Shape":
        return
    if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
        weight = _matrix(edits, node, index)
        scale = float(ir.attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
        shift_result(edits, node, scale * (shift @ weight))
        return
    if node.domain == "" and node.op_type == "Add":
        other = node.inputs[1 - index]
        assert other is not None
        if ir.const(other) is not None:
            edits.set(node, 1 - index, edits.get(node, 1 - index) + shift)
        elif other is not value and used_once(other) and _same_length(other, shift):
            edits.shift(other, shift)
        else:
            raise Declined("an Add reads it whose other input cannot make up for it")
        return
    raise Declined(f"{node.op_type} reads it")


def fold_factor(rw: Rewriter, value: ir.Value, factor: Array, axis: int = -1) -> str | None:
    """Divide each channel of a value by a factor, and multiply the weights that read it.

    The value is the result of LayerNormalization, RMSNormalization, BatchNormalization, MatMul,
    Gemm or Conv, of Mul or Add with a constant, or of Relu or LeakyRelu of these. Everything that
    reads it is a MatMul, Gemm or Conv with a constant weight.

    Args:
        rw: Rewriter of the model.
        value: The value.
        factor: ``[channels]``, positive.
        axis: Axis of its channels: -1, or 1.

    Returns:
        Why not, or None if it was done. The function of the model is the same up to rounding.
    """
    edits = Edits()
    try:
        if value.is_graph_output():
            raise Declined("it is an output of the model")
        _multiply(edits, value, 1 / factor, axis)
        for use in value.uses():
            _absorb(edits, use.node, use.idx, factor, axis)
        edits.apply(rw)
    except Declined as e:
        return str(e)
    return None


def insert_factor(
    rw: Rewriter, value: ir.Value, nodes: Sequence[ir.Node], factor: Array
) -> str | None:
    """Divide what some nodes read of a value by a factor, and multiply their weights by it.

    Args:
        rw: Rewriter of the model.
        value: A float value whose channels lie along the last axis.
        nodes: MatMul and Gemm nodes of one graph with constant weights, in program order.
        factor: ``[channels]``, positive.

    Returns:
        Why not, or None if it was done. The function of the model is the same up to rounding.
    """
    edits = Edits()
    try:
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            raise Declined("its type is not known to be float")
        for node in nodes:
            _absorb(edits, node, 0, factor, -1)
        edits.apply(rw)
    except Declined as e:
        return str(e)
    with rw.at(nodes[0]):
        by = rw.const((1 / factor).astype(value.dtype.numpy()), f"{value.name}.smooth")
        scaled = rw.op("Mul", value, by)
    scaled.type = ir.TensorType(value.dtype)
    scaled.shape = None if value.shape is None else value.shape.copy()
    for node in nodes:
        rw.set_input(node, 0, scaled)
    return None


def smooth(
    rw: Rewriter,
    nodes: Iterable[ir.Node],
    channels: Mapping[ir.Value, Channels],
    *,
    limits: tuple[int, int] = (-127, 127),
    levels: int = 255,
    least: float = 2.0,
) -> dict[ir.Value, Smoothed]:
    """Smooth what some matrix products read.

    Each activation is shifted to the middle of its range where that helps and constants take it,
    then divided by the factors of least expected error, in constants where possible and else by a
    Mul of its own.

    Args:
        rw: Rewriter of the model.
        nodes: MatMul and Gemm nodes with constant weights that are to be quantized, in program
            order.
        channels: What is known of the activations that they read; others are left alone.
        limits: Smallest and largest integer of a weight.
        levels: Steps from the smallest to the largest activation.
        least: A Mul is inserted where it divides the expected error by so much.

    Returns:
        What was done, by activation. Statistics of activations hold no more for those that changed.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        value = node.inputs[0]
        if value in channels and _product(node) is not None:
            readers.setdefault(value, []).append(node)  # type: ignore[arg-type]
    return {
        value: _smooth(rw, value, found, channels[value], limits, levels, least)
        for value, found in readers.items()
    }


def _smooth(
    rw: Rewriter,
    value: ir.Value,
    nodes: list[ir.Node],
    found: Channels,
    limits: tuple[int, int],
    levels: int,
    least: float,
) -> Smoothed:
    weight = np.concatenate([w for n in nodes if (w := _product(n)) is not None], axis=1)
    if len(weight) != len(found.squares):
        return Smoothed(False, None, 1.0, ("weights and statistics differ in channels",))
    before = now = expected_error(found, weight, limits, levels)
    reasons = []
    shift, same = found.middle, np.ones(len(weight))
    moved = found.changed(shift, same)
    if (error := expected_error(moved, weight, limits, levels)) < before:
        why = fold_shift(rw, value, shift)
        if why is None:
            found, now = moved, error
        else:
            reasons.append(f"no shift: {why}")
    shifted = now < before
    factor, error = choose_factor(found, weight, limits, levels)
    how = None
    if error < now:
        why = fold_factor(rw, value, factor)
        if why is None:
            how, now = "folded", error
        else:
            reasons.append(f"no factor in constants: {why}")
            if now < least * error:
                reasons.append(f"no Mul: it would divide the error by {now / error:.3g} only")
            elif (why := insert_factor(rw, value, nodes, factor)) is not None:
                reasons.append(f"no Mul: {why}")
            else:
                how, now = "inserted", error
    return Smoothed(shifted, how, before / now if now else 1.0, tuple(reasons))


def _product(node: ir.Node) -> Array | None:
    """``[in, out]`` of a MatMul or Gemm with a constant weight, factors included; else None."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    try:
        weight = _matrix(Edits(), node, 0)
    except Declined:
        return None
    return weight * float(ir.attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else weight


def _matrix(edits: Edits, node: ir.Node, index: int) -> Array:
    """Weight ``[in, out]`` that a MatMul or Gemm multiplies its first input by.

    Raises:
        Declined: The weight is no constant matrix, or the value is read in another place.
    """
    if index != 0 or (node.op_type == "Gemm" and ir.attr(node, "transA", 0)):
        raise Declined(f"{node.op_type} reads it otherwise than as rows")
    weight = edits.get(node, 1)
    if weight.ndim != 2:
        raise Declined("a weight is not a matrix")
    return weight.T if _transposed(node) else weight


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(ir.attr(node, "transB", 0))


def _same_length(value: ir.Value, shift: Array) -> bool:
    dims = ir.dims(value)
    return bool(dims) and dims[-1] == len(shift)  # type: ignore[index]


def _last(value: ir.Value | None, axis: int) -> bool:
    rank = ir.rank(value)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _along(factor: Array, value: ir.Value, axis: int) -> Array:
    """The factor in a shape that broadcasts along an axis of a value."""
    if _last(value, axis):
        return factor
    rank = ir.rank(value)
    if rank is None:
        raise Declined("its rank is unknown")
    return factor.reshape(-1, *[1] * (rank - 1 - axis))


def _multiply(edits: Edits, value: ir.Value, by: Array, axis: int) -> None:
    """Let a value be ``by`` times as much along an axis."""
    node = value.producer()
    if node is None:
        raise Declined("it is an input of the model")
    kind = node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
    match kind:
        case "LayerNormalization" | "RMSNormalization" if _last(value, axis):
            if not over_last_axis(node):
                raise Declined("the normalization is not over the last axis alone")
            _times(edits, node, 1, by)
            _times(edits, node, 2, by)
        case "BatchNormalization" if axis == 1 and len(node.outputs) == 1:
            if ir.attr(node, "training_mode", 0):
                raise Declined("the normalization trains")
            _times(edits, node, 1, by)
            _times(edits, node, 2, by)
        case "MatMul" if _last(value, axis):
            weight = edits.get(node, 1)
            if weight.ndim != 2:
                raise Declined("a weight is not a matrix")
            edits.set(node, 1, weight * by)
        case "Gemm" if _last(value, axis):
            weight = edits.get(node, 1)
            edits.set(node, 1, weight * (by[:, None] if _transposed(node) else by))
            _times(edits, node, 2, by)
        case "Conv" if axis == 1:
            weight = edits.get(node, 1)
            edits.set(node, 1, weight * by.reshape(-1, *[1] * (weight.ndim - 1)))
            _times(edits, node, 2, by)
        case "Mul" | "Add":
            _multiply_operands(edits, node, by, axis)
        case "Relu" | "LeakyRelu" if node.inputs[0] is not None and used_once(node.inputs[0]):
            _multiply(edits, node.inputs[0], by, axis)
        case _:
            raise Declined(f"{node.op_type} has no constant to divide")


def _multiply_operands(edits: Edits, node: ir.Node, by: Array, axis: int) -> None:
    """Of Mul one operand, and of Add both."""
    constant = next((i for i, v in enumerate(node.inputs) if ir.const(v) is not None), None)
    if constant is None:
        raise Declined(f"{node.op_type} has no constant input")
    held = edits.get(node, constant)
    if held.size == 1 and len(by) > 1:
        # It may be part of a function that a runtime knows by its constants, as Gelu by its 0.5.
        raise Declined(f"{node.op_type} has one constant for all channels")
    edits.set(node, constant, held * _along(by, node.outputs[0], axis))
    if node.op_type == "Add":
        other = node.inputs[1 - constant]
        assert other is not None
        if not used_once(other):
            raise Declined("others read what the constant is added to")
        if ir.dims(other) is None or len(ir.dims(other) or ()) != ir.rank(node.outputs[0]):
            raise Declined("the shape of what the constant is added to is not known")
        _multiply(edits, other, by, axis)


def _times(edits: Edits, node: ir.Node, index: int, by: Array) -> None:
    if edits.has(node, index):
        edits.set(node, index, edits.get(node, index) * by)


def _absorb(edits: Edits, node: ir.Node, index: int, factor: Array, axis: int) -> None:
    """Multiply the weights by which a node multiplies the channels of an input."""
    if node.domain == "" and node.op_type == "Shape":
        return
    if node.domain == "" and node.op_type in ("MatMul", "Gemm") and _last(node.inputs[index], axis):
        weight = _matrix(edits, node, index) * factor[:, None]
        edits.set(node, 1, weight.T if _transposed(node) else weight)
        return
    if node.domain == "" and node.op_type == "Conv" and axis == 1 and index == 0:
        weight = edits.get(node, 1)
        groups = int(ir.attr(node, "group", 1))
        # Outputs of one group are neighbours, and read channels that are neighbours.
        each = factor.reshape(groups, -1).repeat(len(weight) // groups, axis=0)
        edits.set(node, 1, weight * each.reshape(*each.shape, *[1] * (weight.ndim - 2)))
        return
    raise Declined(f"{node.op_type} reads it")

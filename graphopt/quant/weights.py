"""Rounding the weights of units so that what they compute changes least."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from graphopt import ir
from graphopt.calibration.gram import Gram, Patches
from graphopt.quant.emit import Array, Quantized
from graphopt.quant.params import QParams
from graphopt.quant.prepare import quantize_weight
from graphopt.quant.rounding import mean_shift, round_weights
from graphopt.quant.units import Unit, Units

__all__ = ["observer", "rounded"]

# Rows of a batch that a Gram matrix takes in: there are many batches, and neighbouring patches of
# an image say much the same.
_ROWS = 256
_COLUMNS = 2304
# Share of the squared peak of a column that counts as its energy: rare large inputs count, too.
_PEAKS = 0.001


def observer(unit: Unit) -> Gram | None:
    """What has to be observed of a unit's input to round its weight well; None where it cannot be.

    Args:
        unit: A unit with a constant weight.
    """
    node = unit.node
    if unit.weight is None:
        return None
    if node.op_type == "Gemm" and not ir.attr(node, "transA", 0):
        return Gram(axis=-1, rows=_ROWS, limit=_COLUMNS)
    if node.op_type == "MatMul":
        return Gram(axis=-1, rows=_ROWS, limit=_COLUMNS)
    if node.op_type != "Conv" or ir.attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    shape = ir.static_shape(unit.weight)
    if shape is None:
        return None
    patches = Patches(
        kernel=shape[2:],
        strides=tuple(ir.attr(node, "strides", ()) or ()),
        pads=tuple(ir.attr(node, "pads", ()) or ()),
        dilations=tuple(ir.attr(node, "dilations", ()) or ()),
        groups=int(ir.attr(node, "group", 1)),
    )
    return Gram(patches=patches, rows=_ROWS, limit=_COLUMNS)


def rounded(
    unit: Unit, units: Units, params: Mapping[str, QParams], gram: Gram | None
) -> Quantized:
    """A unit's weight in integers.

    With a Gram matrix of its inputs, rounding makes up for its own errors (Frantar et al., GPTQ,
    2022), and the bias for the shift of the mean that is left (Nagel et al., 2019).

    Args:
        unit: A unit with a constant weight.
        units: The units it belongs to.
        params: Parameters of the activations, by name.
        gram: What :func:`observer` saw, or None to round to the nearest.
    """
    found = quantize_weight(unit, units, params)
    if gram is None or not gram.count or unit.weight is None:
        return found
    weight = ir.array(unit.weight)
    assert weight is not None
    flip = unit.node.op_type != "Conv" and unit.kernel.axis(unit.node) % weight.ndim != 0
    matrix = weight.T if flip else weight.reshape(len(weight), -1)
    scale = np.broadcast_to(found.params.scale.reshape(-1, 1), (len(matrix), 1))
    if found.params.zero_point.size > 1 and np.any(found.params.zero_point):
        return found
    zero = int(found.params.zero_point.reshape(-1)[0])
    limits = found.params.format.limits[0] - zero, found.params.format.limits[1] - zero
    groups = gram.sum.shape[0]
    parts, shifts = [], []
    each = len(matrix) // groups
    for g in range(groups):
        rows = slice(g * each, (g + 1) * each)
        integers = round_weights(matrix[rows], scale[rows], limits, gram.moments(g, peaks=_PEAKS))
        parts.append(integers)
        shifts.append(mean_shift(matrix[rows], integers, scale[rows], gram.mean[g]))
    whole = np.concatenate(parts) + zero
    data: Array = whole.T if flip else whole.reshape(weight.shape)
    bias = found.bias
    if bias is not None:
        bias = (bias - np.concatenate(shifts)).astype(np.float32)
    return dataclasses.replace(
        found, integers=np.ascontiguousarray(data.astype(found.params.format.dtype)), bias=bias
    )

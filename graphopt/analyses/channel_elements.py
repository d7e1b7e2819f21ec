"""Channels through operators that compute element by element, or reduce and mix along axes."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt import ir
from graphopt.analyses.channel_flow import Factors, Flow, Handler, Operand, Stop, at, of_data
from graphopt.analyses.channel_moves import squeeze

__all__ = ["ELEMENTS", "given"]

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_JOINS = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu",
    "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip
# Zeros add nothing to these.
_SUMS = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd",
)  # fmt: skip


def given(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """Integers that are an attribute of a node or, in later opsets, an input; None if absent.

    Raises:
        Stop: They are computed.
    """
    value = ir.attr(node, name)
    if value is not None:
        return (int(value),) if isinstance(value, int) else tuple(int(k) for k in value)
    if at(node, index) is None:
        return None
    data = ir.array(at(node, index))
    if data is None:
        raise Stop(f"computes its {name}")
    return tuple(int(k) for k in data.ravel())


def _unary(flow: Flow, node: ir.Node) -> None:
    flow.only(node, 0)
    for i in range(len(node.outputs)):
        flow.make(node, flow.of(node), i)


def _dropout(flow: Flow, node: ir.Node) -> None:
    if not ir.is_deterministic(node):
        raise Stop("draws random numbers for it")
    _unary(flow, node)


def _join(flow: Flow, node: ir.Node) -> None:
    ranks = []
    for value in node.inputs:
        dims = flow.dims(value)
        if dims is None:
            raise Stop("reads something of unknown rank")
        ranks.append(len(dims))
    rank = max(ranks)
    if ir.opset(node) < 7:
        raise Stop("broadcasts as it did before opset 7")
    flow.make(node, flow.join(node, [flow.operand(node, i, rank) for i in range(len(ranks))]))


def _scaled(flow: Flow, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear."""
    factors = flow.of(node)
    flow.only(node, 0)
    if not factors:
        return
    rank = factors[0].ndim
    for index in (1, 2):
        value = at(node, index)
        shape = flow.fixed(value)
        if value is None or (shape is None and ir.rank(value) == 0):
            continue
        if shape is None:
            raise Stop("has a scale that is computed")
        if len(shape) > 1:
            raise Stop("has a scale per block")
        if shape and shape != (1,):
            axis = int(ir.attr(node, "axis", 1)) % rank
            for factor in factors:
                flow.adopt(node, index, factor, (axis,))
    flow.make(node, factors)


def _mixes(flow: Flow, node: ir.Node, axes: Sequence[int], why: str) -> None:
    flow.make(node, flow.apart(flow.of(node), axes, node, why))


def _softmax(flow: Flow, node: ir.Node) -> None:
    rank = flow.of(node)[0].ndim
    axis = int(ir.attr(node, "axis", -1)) % rank
    flow.only(node, 0)
    _mixes(flow, node, range(axis, rank) if ir.opset(node) < 13 else [axis], "mixes them")


@of_data
def _along(flow: Flow, node: ir.Node, factors: Factors) -> None:
    """Operators that compute along one axis."""
    if node.op_type == "CumSum":
        found = ir.array(at(node, 1))
        if found is None:
            raise Stop("computes its axis")
        axis = int(found.reshape(()))
    else:
        axis = 1 if node.op_type == "LRN" else int(ir.attr(node, "axis", -1))
    _mixes(flow, node, [axis % factors[0].ndim], "mixes them")


def _pool(flow: Flow, node: ir.Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Stop("returns places, which are counted over all channels")
    rank = flow.of(node)[0].ndim
    _mixes(flow, node, range(2, rank), "pools over them")


@of_data
def _reduce(flow: Flow, node: ir.Node, factors: Factors) -> None:
    rank = factors[0].ndim
    if node.op_type in ("ArgMax", "ArgMin"):
        found: tuple[int, ...] | None = (int(ir.attr(node, "axis", 0)),)
    else:
        found = given(node, "axes", 1)
    if not found:
        if found == () or ir.attr(node, "noop_with_empty_axes", 0):
            raise Stop("has no axes")
        found = tuple(range(rank))
    axes = {a % rank for a in found}
    if node.op_type in _SUMS:
        factors = _ended(flow, node, factors, axes)
    else:
        factors = flow.apart(factors, axes, node, "reduces over them")
    if not ir.attr(node, "keepdims", 1):
        factors = tuple(squeeze(f, sorted(axes)) for f in factors)
    flow.make(node, factors)


def _ended(flow: Flow, node: ir.Node, factors: Factors, axes: set[int]) -> Factors:
    left = []
    for factor in factors:
        vary = {a for a, n in enumerate(factor.shape) if n != 1}
        if vary and vary <= axes:
            flow.end(node, 0, factor)
        else:
            left.append(flow.merged(factor, vary & axes))
    return tuple(left)


def _batch_norm(flow: Flow, node: ir.Node) -> None:
    if ir.attr(node, "training_mode", 0) or any(v.name for v in node.outputs[1:]):
        raise Stop("trains")
    if not ir.attr(node, "spatial", 1):
        raise Stop("has statistics per position")
    factors = flow.of(node)
    for index in range(1, 5):
        flow.weight(node, index)
    for factor in factors:
        for index in range(1, 5):
            flow.adopt(node, index, factor, (1,))
    flow.make(node, factors)


@of_data
def _instance_norm(flow: Flow, node: ir.Node, factors: Factors) -> None:
    factors = flow.apart(factors, range(2, factors[0].ndim), node, "normalises over them")
    for index in (1, 2):
        flow.weight(node, index)
        for factor in factors:
            flow.adopt(node, index, factor, (1,))
    flow.make(node, factors)


def _group_norm(flow: Flow, node: ir.Node) -> None:
    """Whole groups, since what is left of a group has another mean."""
    flow.only(node, 0)
    groups, left = int(ir.attr(node, "num_groups", 1)), []
    per_group = ir.opset(node) < 21
    for index in (1, 2):
        flow.weight(node, index)
    factors = flow.of(node)
    if not factors:
        return
    for factor in flow.apart(factors, range(2, factors[0].ndim), node, "normalises over them"):
        if factor.shape[1] == 1:
            left.append(factor)
            continue
        if factor.size != factor.shape[1] or factor.size % groups:
            raise Stop("has channels along several axes")
        rows = factor.reshape(groups, -1)
        flow.pair(rows[:, :1], rows)
        left.append(rows[:, :1].repeat(rows.shape[1], 1).reshape(factor.shape))
        for index in (1, 2):
            if per_group:
                flow.adopt(node, index, rows[:, 0])
            else:
                flow.adopt(node, index, left[-1], (1,))
    flow.make(node, left)


def _layer_norm(flow: Flow, node: ir.Node) -> None:
    if any(v.name for v in node.outputs[1:]):
        raise Stop("returns its statistics")
    flow.only(node, 0)
    factors = flow.of(node)
    if not factors:
        return
    rank = factors[0].ndim
    first = int(ir.attr(node, "axis", -1)) % rank
    left = flow.apart(factors, range(first, rank), node, "normalises over them")
    result = Operand(-1, left, (None,) * rank, tuple(range(rank)), frozenset())
    # Scales may differ along axes in front of these, too.
    scales = [flow.operand(node, i, rank) for i in (1, 2) if at(node, i) is not None]
    flow.make(node, flow.join(node, [result, *scales]))


def _mean_variance(flow: Flow, node: ir.Node) -> None:
    rank = flow.of(node)[0].ndim
    axes = [int(a) % rank for a in ir.attr(node, "axes", (0, 2, 3))]
    _mixes(flow, node, axes, "normalises over them")


@of_data
def _resize(flow: Flow, node: ir.Node, factors: Factors) -> None:
    """Resize and Upsample keep the axes whose size they do not change."""
    if ir.attr(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Stop("may fill in a constant")
    if ir.attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Stop("keeps an aspect ratio of all axes")
    dims = ir.dims(node.outputs[0])
    rank = factors[0].ndim
    if dims is None or len(dims) != rank:
        raise Stop("has an output of unknown rank")
    index = 1 if node.op_type == "Upsample" or ir.opset(node) < 11 else 2
    scales = ir.attr(node, "scales", ir.array(at(node, index)))
    axes = ir.attr(node, "axes") or range(rank)
    # Fewer than one more channel is none, but those there are move.
    scaled = {} if scales is None else {a % rank: n for a, n in zip(axes, scales, strict=False)}
    for factor in factors:
        for axis, size in enumerate(factor.shape):
            if size != 1 and (dims[axis] != size or scaled.get(axis, 1) != 1):
                raise Stop("resizes them")
    flow.make(node, factors)


ELEMENTS: dict[str, Handler] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_JOINS, _join),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys((*_SUMS, *_REDUCTIONS), _reduce),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _scaled),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("CumSum", "LRN", "LpNormalization"), _along),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "MeanVarianceNormalization": _mean_variance,
}

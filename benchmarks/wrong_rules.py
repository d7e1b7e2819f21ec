"""Deliberately wrong passes, each with a model on which it does harm: the oracle has to catch them.

They are written the way such mistakes are made, against the public API, and lie about their
exactness. Each mistake leaves a valid model of the same types, so that only numbers can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt import Const, Exactness, Match, Op, Pass, RewritePass, Rewriter, Var, ir, rule

# --- rules ---------------------------------------------------------------------------------------

_x, _y, _c = Var(), Var(), Const()
_w, _b = Const(), Const(optional=True)
_scale, _beta, _mean, _variance = Const(), Const(), Const(), Const()
_add = Op("Add", _x, _c)
_conv = Op("Conv", _x, _w, _b)
_norm = Op("BatchNormalization", _conv, _scale, _beta, _mean, _variance)
_inner = Op("Transpose", _x)
_shape = Op("Shape", _x)


@rule(Op("Relu", _add))
def wrong_drop_relu(m: Match, rw: Rewriter) -> ir.Value | None:
    """The Add comes back without its Relu."""
    return rw.op("Add", m[_x], m.value(_c))


@rule(_norm)
def wrong_norm_without_epsilon(m: Match, rw: Rewriter) -> ir.Value | None:
    """BatchNorm folded into the convolution, its epsilon forgotten."""
    factor = m[_scale] / np.sqrt(m[_variance])
    bias = m.get(_b)
    start = np.zeros_like(m[_mean]) if bias is None else bias
    weight = rw.const(m[_w] * factor.reshape(-1, 1, 1, 1), "w_folded")
    shift = rw.const((start - m[_mean]) * factor + m[_beta], "b_folded")
    return rw.op("Conv", m[_x], weight, shift, like=m[_conv])


@rule(Op("Transpose", _inner))
def wrong_drop_transposes(m: Match, rw: Rewriter) -> ir.Value | None:
    """Two Transposes cancel, whatever their perms are."""
    return m[_x]


@rule(Op("Sub", _x, _c))
def wrong_commuted_sub(m: Match, rw: Rewriter) -> ir.Value | None:
    """The constant goes first, as for an Add."""
    if ir.const(m[_x]) is not None:
        return m.fail("both inputs are constant")
    return rw.op("Sub", m.value(_c), m[_x])


@rule(Op("Concat", Op("Relu", _x), Op("Tanh", _y)))
def wrong_swapped_concat(m: Match, rw: Rewriter) -> ir.Value | None:
    """The inputs of a Concat change places."""
    first, second = m.root.inputs[0], m.root.inputs[1]
    return rw.op("Concat", second, first, like=m.root)


@rule(_shape)
def wrong_frozen_dims(m: Match, rw: Rewriter) -> ir.Value | None:
    """A symbolic dim is taken for 1; only another setting of the dims can tell."""
    known = ir.dims(m[_x])
    if known is None:
        return m.fail("the rank is unknown")
    sizes = [dim if isinstance(dim, int) else 1 for dim in known]
    return rw.const(np.array(sizes, np.int64), "shape")


class WrongDropRelu(RewritePass):
    """Drop the Relu after an Add (wrong on purpose)."""

    name = "wrong-drop-relu"
    exactness = Exactness.BITWISE
    rules = (wrong_drop_relu,)


class WrongNormWithoutEpsilon(RewritePass):
    """Fold BatchNormalization into Conv without its epsilon (wrong on purpose)."""

    name = "wrong-norm-without-epsilon"
    exactness = Exactness.ROUNDING
    rules = (wrong_norm_without_epsilon,)


class WrongDropTransposes(RewritePass):
    """Cancel two Transposes whatever their perms (wrong on purpose)."""

    name = "wrong-drop-transposes"
    exactness = Exactness.BITWISE
    rules = (wrong_drop_transposes,)


class WrongCommutedSub(RewritePass):
    """Commute a subtraction (wrong on purpose)."""

    name = "wrong-commuted-sub"
    exactness = Exactness.BITWISE
    rules = (wrong_commuted_sub,)


class WrongSwappedConcat(RewritePass):
    """Swap the inputs of a Concat (wrong on purpose)."""

    name = "wrong-swapped-concat"
    exactness = Exactness.BITWISE
    rules = (wrong_swapped_concat,)


class WrongFrozenDims(RewritePass):
    """Fold Shape of a dynamic value (wrong on purpose)."""

    name = "wrong-frozen-dims"
    exactness = Exactness.BITWISE
    rules = (wrong_frozen_dims,)


# --- models --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A wrong pass, its rule's name, and a model it harms."""

    made: type[Pass]
    rule: str
    model: Callable[[], onnx.ModelProto]


def _model(
    nodes: list[onnx.NodeProto],
    dims: list[int | str],
    weights: dict[str, np.ndarray] | None = None,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """A model of one float input ``x``; some healthy nodes around it give other passes work."""
    before = [
        helper.make_node("Identity", ["x"], ["x0"], "first"),
        helper.make_node("Neg", ["x0"], ["x1"], "negative"),
        helper.make_node("Neg", ["x1"], ["a"], "positive"),
    ]
    graph = helper.make_graph(
        [*before, *nodes],
        "wrong",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _relu_model() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["a", "c"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    return _model(nodes, ["n", 8], {"c": np.linspace(-1, 1, 8, dtype=np.float32)})


def _norm_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["s"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["s", "scale", "beta", "mean", "var"], ["y"], epsilon=1e-3
        ),
    ]
    weights = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    weights |= {k: rng.standard_normal(4).astype(np.float32) for k in ("scale", "beta", "mean")}
    weights["var"] = np.array([0.01, 0.02, 0.5, 1.0], np.float32)
    return _model(nodes, ["n", 3, 8, 8], weights)


def _transpose_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["a"], ["s"], perm=[1, 2, 0]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 2, 0]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    return _model(nodes, [4, 4, 4])


def _sub_model() -> onnx.ModelProto:
    nodes = [helper.make_node("Sub", ["a", "c"], ["y"])]
    return _model(nodes, ["n", 4], {"c": np.array([0.5, -0.5, 2.0, 0.25], np.float32)})


def _concat_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["a"], ["s"]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Concat", ["s", "t"], ["y"], axis=1),
    ]
    return _model(nodes, ["n", 4])


def _shape_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Expand", ["c", "s"], ["t"]),
        helper.make_node("Sigmoid", ["t"], ["y"]),
    ]
    return _model(nodes, ["n", 4], {"c": np.array([0.5], np.float32)})


WRONG = (
    Wrong(WrongDropRelu, "wrong-drop-relu", _relu_model),
    Wrong(WrongNormWithoutEpsilon, "wrong-norm-without-epsilon", _norm_model),
    Wrong(WrongDropTransposes, "wrong-drop-transposes", _transpose_model),
    Wrong(WrongCommutedSub, "wrong-commuted-sub", _sub_model),
    Wrong(WrongSwappedConcat, "wrong-swapped-concat", _concat_model),
    Wrong(WrongFrozenDims, "wrong-frozen-dims", _shape_model),
)

"""Changing constants inside a model so that values become others, all at once or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter

__all__ = ["Declined", "Edits", "add_to_output"]

Array = np.ndarray[Any, Any]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Declined(Exception):  # noqa: N818 - not an error: the reason why something is left as it is
    """Why a value cannot be changed through constants."""


class Edits:
    """New contents for constant inputs of nodes. The model changes when they are applied.

    Contents are float64 until then. A constant that other nodes read too stays as it is for them.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[ir.Node, int], Array] = {}

    def get(self, node: ir.Node, index: int) -> Array:
        """A constant input of a node as it will be, float64.

        Raises:
            Declined: The input is no constant of floating-point numbers.
        """
        if (node, index) in self._found:
            return self._found[node, index]
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = ir.const(value)
        if tensor is None:
            raise Declined(f"input {index} of {node.op_type} is not constant")
        if tensor.dtype not in _FLOATS:
            raise Declined(f"input {index} of {node.op_type} is not floating-point")
        return tensor.numpy().astype(np.float64)

    def has(self, node: ir.Node, index: int) -> bool:
        """Whether a node has an input, or will have it."""
        given = index < len(node.inputs) and node.inputs[index] is not None
        return given or (node, index) in self._found

    def set(self, node: ir.Node, index: int, array: Array) -> None:
        """Plan other contents for an input, which may be one that the node lacks so far."""
        self._found[node, index] = array

    def apply(self, rw: Rewriter) -> None:
        """Write the new contents, rounded once to the type of the old ones.

        Raises:
            Declined: A number does not fit into its type; nothing was changed then.
        """
        rounded = {}
        for (node, i), array in self._found.items():
            old = node.inputs[i] if i < len(node.inputs) else None
            like = old if old is not None else _typed_input(node)
            with np.errstate(over="ignore"):
                data = array.astype(like.dtype.numpy())  # type: ignore[union-attr]
            if not np.isfinite(data.astype(np.float64)).all():
                raise Declined(f"a constant of {node.op_type} would not be finite any more")
            name = old.name if old is not None else f"{node.outputs[0].name}.bias"
            rounded[node, i] = (data, name or "const")
        for (node, i), (data, name) in rounded.items():
            with rw.at(node):
                rw.set_input(node, i, rw.const(data, name))

    # Adding to a value

    def shift(self, value: ir.Value, amount: Array) -> None:
        """Let a value be ``amount`` (along its last axis) more, by a constant that is added.

        Raises:
            Declined: Nothing constant is added where the value is computed.
        """
        node = value.producer()
        if node is None:
            raise Declined("it is an input of the model")
        if node.domain == "" and node.op_type == "LayerNormalization":
            if not over_last_axis(node):
                raise Declined("the normalization is not over the last axis alone")
            bias = self.get(node, 2) if self.has(node, 2) else np.zeros(1)
            self.set(node, 2, bias + amount)
        elif node.domain == "" and node.op_type == "Gemm":
            self._shift_gemm(node, amount)
        elif node.domain == "" and node.op_type == "Add":
            self._shift_sum(node, amount)
        else:
            raise Declined(f"{node.op_type} adds no constant")

    def _shift_gemm(self, node: ir.Node, amount: Array) -> None:
        if not self.has(node, 2):
            self.set(node, 2, amount)
            return
        beta = float(ir.attr(node, "beta", 1.0))
        if not beta:
            raise Declined("Gemm ignores its bias (beta=0)")
        self.set(node, 2, self.get(node, 2) + amount / beta)

    def _shift_sum(self, node: ir.Node, amount: Array) -> None:
        for i, value in enumerate(node.inputs):
            if ir.const(value) is not None:
                self.set(node, i, self.get(node, i) + amount)
                return
        reasons = []
        for value in node.inputs:
            assert value is not None
            if not used_once(value):
                continue
            if not same_shape(value, node.outputs[0]):
                continue
            try:
                self.shift(value, amount)
            except Declined as e:
                reasons.append(str(e))
            else:
                return
        raise Declined("; ".join(reasons) or "nothing constant is added to it")


def add_to_output(rw: Rewriter, node: ir.Node, amount: Array) -> str | None:
    """Let a linear operator's result, with the bias that is added to it, be more.

    Args:
        rw: Rewriter of the model.
        node: A Gemm, or a MatMul whose only user adds a constant.
        amount: One number per output channel, along the last axis.

    Returns:
        Why not, or None if it was done.
    """
    edits = Edits()
    try:
        shift_result(edits, node, amount)
        edits.apply(rw)
    except Declined as e:
        return str(e)
    return None


def shift_result(edits: Edits, node: ir.Node, amount: Array) -> None:
    """Plan as :func:`add_to_output` does.

    Raises:
        Declined: There is no bias.
    """
    if node.op_type == "Gemm":
        edits.shift(node.outputs[0], amount)
        return
    (out,) = node.outputs
    users = [use.node for use in out.uses()]
    if out.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        raise Declined(f"no bias is added to what {node.op_type} computes")
    add = users[0]
    other = 1 if add.inputs[0] is out else 0
    edits.set(add, other, edits.get(add, other) + amount)


def used_once(value: ir.Value) -> bool:
    """Whether a value has one user, so that changing it changes nothing else."""
    return ir.use_count(value) == 1 and not value.is_graph_output()


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether a value is known to be as long as another along the last axis."""
    one, two = ir.dims(a), ir.dims(b)
    return bool(one and two) and one[-1] == two[-1] and one[-1] is not None  # type: ignore[index]


def over_last_axis(node: ir.Node) -> bool:
    """Whether a normalization is over the last axis of its input and no other."""
    axis, rank = int(ir.attr(node, "axis", -1)), ir.rank(node.inputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _typed_input(node: ir.Node) -> ir.Value:
    """The input whose type that of an absent bias is."""
    value = node.inputs[1]
    assert value is not None
    return value

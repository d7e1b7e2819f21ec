"""Layers that can be left out: what is added to a shortcut that goes around it.

Residual networks refine one stream of activations step by step, and steps that change little can be
left out whole (Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow
Networks", 2016; Men et al., "ShortGPT", 2024).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.rewrite.rewriter import is_dead

__all__ = ["Block", "bypass", "find_blocks", "matches", "take_out"]

_ATTENTION = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax"})
_CONVOLUTION = frozenset({"Conv", "ConvInteger", "ConvTranspose", "QLinearConv"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_PRODUCT = frozenset({
    "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "QGemm", "QLinearMatMul",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """An addition of a shortcut and of what a branch computes from it.

    Attributes:
        add: The addition.
        shortcut: What is left if the branch goes.
        branch: Nodes between the shortcut and the addition, in the order of the graph.
        kind: ``attention``, ``convolution``, ``recurrent`` or ``feed-forward``.
        reason: Why the branch may not go, or None if it may.
    """

    add: ir.Node
    shortcut: ir.Value
    branch: tuple[ir.Node, ...]
    kind: str
    reason: str | None = None

    @property
    def name(self) -> str:
        """Name of the sum."""
        return self.add.outputs[0].name or ""


def find_blocks(model: ir.Model) -> list[Block]:
    """Layers of the main graph that something is added to, in the order of the graph.

    Additions around no product, convolution or recurrent operator are no layers and not listed.

    Args:
        model: A model in normal form with shapes inferred.
    """
    order = {node: i for i, node in enumerate(model.graph)}
    found = (_block(node, order) for node in model.graph if node.op_type in ("Add", "Sum"))
    return [block for block in found if block is not None]


def bypass(rw: Rewriter, block: Block) -> None:
    """Let the shortcut of a block stand for its sum; nodes stay in number and order.

    An Identity stands in for the sum, under its name, and others for what only the branch needed,
    so that layers can be fitted to what those at the same place of the original compute.
    """
    out, name = block.add.outputs[0], block.name
    given = out.is_graph_output()
    makers = [v.producer() for v in block.add.inputs if v is not None]
    stand_in = _stand_in(rw, block.add, block.shortcut)
    rw.replace(out, stand_in)
    rw.erase(block.add)
    if not given:
        stand_in.name = name
    nothing: ir.Value | None = None
    pending = [m for m in makers if m is not None]
    while pending:
        node = pending.pop()
        if node.graph is None or node is stand_in.producer() or not is_dead(node):
            continue
        if nothing is None:
            nothing = rw.const(np.zeros(1, np.float32), "nothing")
        elif nothing in node.inputs:
            continue  # a stand-in
        makers = [v.producer() for v in node.inputs if v is not None]
        _stand_in(rw, node, nothing)
        rw.erase(node)
        pending += [m for m in makers if m is not None]
    rw.remove_initializers()


def take_out(rw: Rewriter, names: Collection[str]) -> None:
    """Remove blocks that are bypassed, and everything that nothing uses any more.

    Args:
        rw: Rewriter of the model.
        names: Names of the blocks.
    """
    for node in list(rw.model.graph):
        if node.op_type == "Identity" and node.outputs[0].name in names:
            assert node.inputs[0] is not None
            rw.replace(node.outputs[0], node.inputs[0])
    for node in reversed(list(rw.model.graph)):
        if is_dead(node):
            rw.erase(node)
    rw.remove_initializers()


def _stand_in(rw: Rewriter, node: ir.Node, value: ir.Value) -> ir.Value:
    with rw.at(node):
        return rw.op("Identity", value)


def matches(block: Block, patterns: Sequence[str]) -> bool:
    """Whether a glob pattern fits the kind of a block, or a name of it or of something in it."""
    names = {block.kind, block.add.name or "", block.name}
    for node in block.branch:
        names |= {node.name or "", *(v.name or "" for v in node.outputs)}
    return any(fnmatch.fnmatchcase(n, p) for p in patterns for n in names)


def _block(add: ir.Node, order: dict[ir.Node, int]) -> Block | None:
    if add.domain or len(add.inputs) != 2:
        return None
    one, other = add.inputs
    if one is None or other is None or one is other:
        return None
    if ir.const(one) is not None or ir.const(other) is not None:
        return None
    # What the branch is computed from comes before what it computes.
    shortcut, end = sorted((one, other), key=lambda v: _position(v, order))
    behind, branch = _between(shortcut, end, order)
    kind = _kind(branch or behind)
    if kind is None:
        return None
    return Block(add, shortcut, branch, kind, _obstacle(add, shortcut, branch))


def _position(value: ir.Value, order: dict[ir.Node, int]) -> int:
    node = value.producer()
    return -1 if node is None else order.get(node, -1)


def _between(
    start: ir.Value, end: ir.Value, order: dict[ir.Node, int]
) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]]:
    """Nodes behind ``start`` that ``end`` needs, and those of them between the two."""
    first = _position(start, order)
    seen: set[ir.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in seen and order.get(node, -1) > first:
            seen.add(node)
            pending += [v for v in node.inputs if v is not None]
    behind = sorted(seen, key=order.__getitem__)
    reached: set[ir.Value] = {start}
    way = []
    for node in behind:
        if any(v in reached for v in node.inputs):
            reached.update(node.outputs)
            way.append(node)
    return tuple(behind), tuple(way)


def _kind(nodes: Iterable[ir.Node]) -> str | None:
    ops = {n.op_type for n in nodes}
    if (ops & _PRODUCT and ops & _ATTENTION) or ops & _ATTENTION - {"Softmax"}:
        return "attention"
    for kind, members in (
        ("convolution", _CONVOLUTION), ("recurrent", _RECURRENT), ("feed-forward", _PRODUCT)
    ):  # fmt: skip
        if ops & members:
            return kind
    return None


def _obstacle(add: ir.Node, shortcut: ir.Value, branch: Sequence[ir.Node]) -> str | None:
    """Why a branch may not go."""
    if not branch:
        return "nothing goes around it: neither summand is computed from the other"
    out = add.outputs[0]
    sizes = ir.dims(shortcut)
    if shortcut.dtype != out.dtype or sizes is None or None in sizes:
        return "the shape of its shortcut is not known"
    if sizes != ir.dims(out):
        return "its shortcut has another shape"
    inside = {*branch, add}
    for node in branch:
        for value in node.outputs:
            if value.is_graph_output():
                return f"%{value.name}, inside of it, is an output of the model"
            if any(use.node not in inside for use in value.uses()):
                return f"%{value.name}, inside of it, is used elsewhere"
    return None

"""Compute what is computed twice only once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Hashable
from typing import Any

from graphopt import Context, Exactness, Pass, Rewriter, ir

__all__ = ["EliminateCommonSubexpressions"]

# a op b and b op a are the same bits (all NaNs count as one value). Max and Min are not among them:
# which zero they return depends on the order.
_COMMUTATIVE = frozenset({
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor",
})  # fmt: skip
_BROADCAST = 7  # below this opset the second input is broadcast to the first
_DIGEST_ABOVE = 256  # bytes; keys of larger tensors are digests


class EliminateCommonSubexpressions(Pass):
    """Merge nodes that compute the same from the same inputs.

    What it does: Numbers values by what computes them: operator, inputs by position, attributes
    with the defaults of the operator filled in and tensors compared by content, outputs present or
    absent. A node whose number was given before is replaced by the earlier node. A node of a
    subgraph may be replaced by one of an enclosing graph that runs before it, never by one of a
    sibling.

    Exactness: Bitwise. The earlier node computes the same from the same.

    Needs: Nothing. Constants of equal content are one value only after deduplicate-initializers.

    Options: None.

    Example: ``a = Relu(x); b = Relu(x); y = Add(a, b)`` -> ``a = Relu(x); y = Add(a, a)``

    Declines when: The operator is random, unknown, or has subgraphs; both nodes are Identity nodes
    that give two graph outputs their names.

    References: Click, Global Code Motion / Global Value Numbering, PLDI 1995.
    """

    name = "eliminate-common-subexpressions"
    exactness = Exactness.BITWISE

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Walk all graphs in program order."""
        rw = ctx.rewriter()
        _Numbering(ctx, rw).graph(model.graph)
        return rw.changed


@dataclasses.dataclass
class _Numbering:
    ctx: Context
    rw: Rewriter
    seen: dict[Hashable, ir.Node] = dataclasses.field(default_factory=dict)
    going: bool = True

    def graph(self, graph: ir.Graph) -> None:
        # One table serves all scopes: what a graph adds, it removes again when it ends.
        local: list[Hashable] = []
        for node in tuple(graph):
            if not self.going:
                break
            inner = tuple(ir.subgraphs(node))
            for each in inner:
                self.graph(each)
            key = None if inner else _key(node)
            if key is None:
                continue
            first = self.seen.get(key)
            if first is None:
                self.seen[key] = node
                local.append(key)
            else:
                self.merge(node, first)
        for key in local:
            del self.seen[key]

    def merge(self, node: ir.Node, first: ir.Node) -> None:
        pairs = [(a, b) for a, b in zip(node.outputs, first.outputs, strict=True) if a.name]
        if node.op_type == "Identity" and not all(self.rw.can_replace(a, b) for a, b in pairs):
            # It would take another Identity to give the graph output its name.
            return
        self.going = self.ctx.allow(f"merge at %{pairs[0][0].name}")
        if not self.going:
            return
        with self.rw.at(node):
            for old, new in pairs:
                self.rw.replace(old, new)
        self.rw.erase(node)
        self.ctx.stats.applied["merge"] += 1


def _key(node: ir.Node) -> Hashable | None:
    """What a node computes, or None where that is unknown or differs from time to time."""
    if not any(v.name for v in node.outputs) or not ir.is_deterministic(node):
        return None
    inputs = [None if v is None else id(v) for v in node.inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    version = ir.opset(node, node.domain)
    if (
        node.op_type in _COMMUTATIVE
        and node.domain == ""
        and version >= _BROADCAST
        and None not in inputs
    ):
        inputs.sort(key=lambda i: i or 0)
    attributes = []
    for name in sorted({*node.attributes, *_defaults(node.domain, node.op_type, version)}):
        own = node.attributes.get(name)
        key = None if own is not None and own.is_ref() else _attribute(ir.attr(node, name))
        if key is None:
            return None
        attributes.append((name, key))
    present = tuple(bool(v.name) for v in node.outputs)
    return (node.domain, node.op_type, node.overload, tuple(inputs), tuple(attributes), present)


@functools.cache
def _defaults(domain: str, op_type: str, version: int) -> tuple[str, ...]:
    """Names of the attributes that have a default."""
    schema = ir.schema(domain, op_type, version)
    if schema is None:
        return ()
    return tuple(n for n, a in schema.attributes.items() if a.default_value.name)


def _attribute(value: Any) -> Hashable | None:
    """A key equal exactly for equal values: 1 is not 1.0, 0.0 is not -0.0, NaN is itself."""
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, (int, str, bytes)):
        return (type(value).__name__, value)
    if isinstance(value, tuple):
        keys = tuple(_attribute(v) for v in value)
        return None if None in keys else keys
    if isinstance(value, ir.TensorProtocol):
        return _tensor(value)
    return None


def _tensor(tensor: ir.TensorProtocol) -> Hashable | None:
    kind = (tensor.dtype, tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.StringTensor):
        return (*kind, tuple(tensor.string_data()))
    if tensor.dtype == ir.DataType.STRING:
        return None
    data = tensor.tobytes()
    if len(data) > _DIGEST_ABOVE:
        data = hashlib.sha256(data).digest()
    return (*kind, data)

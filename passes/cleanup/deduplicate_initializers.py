"""Store equal constants once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TypeGuard

from graphopt import Context, Exactness, Pass, Rewriter, ir
from graphopt.ir.content import Content

__all__ = ["DeduplicateInitializers"]

_SAMPLE = 64
_SMALL = 3 * _SAMPLE


class DeduplicateInitializers(Pass):
    """Let constants of equal content share one initializer.

    What it does: Compares data types and shapes first, then a few bytes of the data, and reads all
    of it only where those are equal, in pieces of 1 MB, so that the weights of a large model stay
    on disk. A constant of a subgraph may be replaced by one of an enclosing graph.

    Exactness: Bitwise. Contents are equal bit by bit: 0.0 is not -0.0, and NaNs of different
    payloads differ.

    Needs: Nothing.

    Options: min-bytes (constants of fewer bytes stay as they are, default 0).

    Example: ``const a = [1, 2]; const b = [1, 2]; y = Add(Mul(x, a), b)`` ->
    ``const a = [1, 2]; y = Add(Mul(x, a), a)``

    Declines when: The initializer is the default of a graph input, a graph output, or a running
    mean or variance of a BatchNormalization that trains: ONNX Runtime writes over those.

    References: Equal content is found as in Bobbarjung et al., Improving Duplicate Elimination in
    Storage Systems, ACM TOS 2006: cheap keys first, digests for what they leave.
    """

    name = "deduplicate-initializers"
    exactness = Exactness.BITWISE
    min_bytes: int = 0

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Find equal constants, then let the outermost first one stand for each group."""
        written = set(_written(model))
        tensors = {
            v: v.const_value
            for graph in ir.all_graphs(model)
            for v in graph.initializers.values()
            if _comparable(v) and v not in written and v.const_value is not None
        }
        keys: dict[ir.Value, Hashable] = {
            v: (t.dtype, tuple(t.shape.numpy()))
            for v, t in tensors.items()
            if not self.min_bytes or t.nbytes >= self.min_bytes
        }
        for refine in (_sample, _digest):
            counts = Counter(keys.values())
            keys = {v: (key, refine(tensors[v])) for v, key in keys.items() if counts[key] > 1}
        counts = Counter(keys.values())
        rw = ctx.rewriter()
        merger = _Merger(ctx, rw, {v: key for v, key in keys.items() if counts[key] > 1})
        if merger.keys:
            merger.graph(model.graph)
        if rw.changed:
            rw.remove_initializers()
        return rw.changed


@dataclasses.dataclass
class _Merger:
    ctx: Context
    rw: Rewriter
    keys: dict[ir.Value, Hashable]
    seen: dict[Hashable, ir.Value] = dataclasses.field(default_factory=dict)
    going: bool = True

    def graph(self, graph: ir.Graph) -> None:
        # One table serves all scopes: what a graph adds, it removes again when it ends.
        local: list[Hashable] = []
        for value in tuple(graph.initializers.values()):
            key = self.keys.get(value)
            if key is None or not self.going:
                continue
            first = self.seen.get(key)
            if first is None:
                self.seen[key] = value
                local.append(key)
            elif value.uses():
                self.going = self.ctx.allow(f"share %{value.name}")
                if self.going:
                    self.rw.replace(value, first)
                    self.ctx.stats.applied["share"] += 1
        for node in graph:
            for inner in ir.subgraphs(node):
                self.graph(inner)
        for key in local:
            del self.seen[key]


def _written(model: ir.Model) -> Iterator[ir.Value | None]:
    """Running means and variances, which ONNX Runtime updates in place when it trains."""
    for node in ir.all_nodes(model):
        if node.op_type == "BatchNormalization" and (
            len(node.outputs) > 1 or ir.attr(node, "training_mode", 0)
        ):
            yield from node.inputs[3:5]


def _comparable(value: ir.Value) -> bool:
    if value.is_graph_input() or value.is_graph_output() or value.const_value is None:
        return False
    # NumPy strips the zeros that a string ends with, so it cannot say which strings are equal.
    return value.const_value.dtype != ir.DataType.STRING or _is_text(value.const_value)


def _is_text(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.StringTensor]:
    return isinstance(tensor, ir.StringTensor)


def _sample(tensor: ir.TensorProtocol) -> Hashable:
    """Some bytes from the start, the middle and the end; of a small tensor all."""
    if _is_text(tensor):
        return tuple(tensor.string_data()[:_SAMPLE])
    content = Content(tensor)
    size = content.nbytes
    if size <= _SMALL:
        return content.read(0, size).tobytes()
    return tuple(content.read(at, _SAMPLE).tobytes() for at in (0, size // 2, size - _SAMPLE))


def _digest(tensor: ir.TensorProtocol) -> Hashable:
    if _is_text(tensor):
        return tuple(tensor.string_data())
    if tensor.nbytes <= _SMALL:
        return b""  # the sample was all of it
    found = hashlib.sha256()
    for chunk in Content(tensor).chunks():
        found.update(chunk.data)
    return found.digest()

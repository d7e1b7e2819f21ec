"""What a model costs: multiply-accumulates, parameters, bytes moved, estimated time.

The estimate is a roofline (Williams et al., 2009): a node takes the longer of its arithmetic and
its
memory traffic, plus a fixed overhead. It ranks two forms of one model; what a form really takes is
measured on the target (``graphopt bench``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from graphopt import ir

if TYPE_CHECKING:
    from graphopt.manager.context import Context

__all__ = ["Cost", "NodeCost"]

_MACS_PER_SECOND = 25e9  # one AVX2 core on fp32
_BYTES_PER_SECOND = 10e9
_SECONDS_PER_NODE = 2e-6  # dispatch of a kernel by ONNX Runtime

# ONNX Runtime passes the buffer on, or never runs these at all.
_FREE = frozenset({
    "Constant", "Flatten", "Identity", "Optional", "Reshape", "Shape", "Size", "Squeeze",
    "Unsqueeze",
})  # fmt: skip
_CONV = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1, "DeformConv": 1}
_MATMUL = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"})
_GATES = frozenset({"LSTM", "GRU", "RNN"})
_HEAVY = _MATMUL | _GATES | set(_CONV) | {
    "Attention", "ConvTranspose", "Einsum", "Gemm", "MultiHeadAttention",
}  # fmt: skip
# These read as much of their first input as they return.
_PARTIAL = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
_SIZELESS = (ir.DataType.STRING, ir.DataType.UNDEFINED)


class NodeCost(NamedTuple):
    """Cost of one node, per inference.

    Attributes:
        macs: Multiply-accumulates.
        bytes: Bytes read and written, weights included.
        seconds: Estimated time.
    """

    macs: int
    bytes: int
    seconds: float


_NOTHING = NodeCost(0, 0, _SECONDS_PER_NODE)


class Cost:
    """Costs of a model and of each node. Unknown dimensions count as 1, so costs are per sample.

    Of the branches of an If the dearest counts; the body of a Loop or Scan counts as often as its
    trip count says, once where that is unknown.

    Attributes:
        nodes: Cost of every node; nodes of subgraphs for one execution of the subgraph, which is
            not part of the cost of the node that owns it.
        count: Number of nodes, those of subgraphs included.
        parameters: Number of elements in all initializers.
        macs: Multiply-accumulates per inference.
        seconds: Estimated time per inference.
    """

    def __init__(self, model: ir.Model, ctx: Context | None = None) -> None:
        self.nodes: dict[ir.Node, NodeCost] = {}
        self.parameters = 0
        self._nbytes: dict[ir.Value, int] = {}
        self.macs, self.seconds = self._graph(model.graph)
        self.count = len(self.nodes)

    def _graph(self, graph: ir.Graph) -> tuple[int, float]:
        macs, seconds = 0, 0.0
        for value in graph.initializers.values():
            self.parameters += self.elements(value)
        for node in graph:
            inner = [self._graph(g) for g in ir.subgraphs(node)]
            cost = self.nodes[node] = _NOTHING if inner else self._node(node)
            macs += cost.macs
            seconds += cost.seconds
            if inner:
                times = 1 if node.op_type == "If" else _trips(node)
                macs += times * max(m for m, _ in inner)
                seconds += times * max(s for _, s in inner)
        return macs, seconds

    def _node(self, node: ir.Node) -> NodeCost:
        if node.op_type in _FREE:
            return _NOTHING
        moved = 0
        known = self._nbytes
        values = (*node.inputs, *node.outputs)
        if node.op_type in _PARTIAL and not node.domain:
            values = (*node.inputs[1:], *node.outputs, *node.outputs)  # read what it returns
        for value in values:
            if value is not None:
                size = known.get(value)
                moved += self._bytes(value) if size is None else size
        macs = self._macs(node) if node.op_type in _HEAVY else 0
        seconds = max(macs / _MACS_PER_SECOND, moved / _BYTES_PER_SECOND) + _SECONDS_PER_NODE
        return NodeCost(macs, moved, seconds)

    def _bytes(self, value: ir.Value) -> int:
        dtype = value.dtype
        size = 0
        if dtype is not None and dtype not in _SIZELESS:
            size = self.elements(value) * dtype.bitwidth // 8
        self._nbytes[value] = size
        return size

    def gain(self, before: Mapping[ir.Node, NodeCost]) -> float:
        """Estimated seconds that a change saved: nodes that are gone, less nodes that are new.

        Nodes that stayed do not count, since all that can have changed about their estimate is how
        much is known of their shapes.

        Args:
            before: ``nodes`` of the model before the change.
        """
        gone = sum(c.seconds for n, c in before.items() if n not in self.nodes)
        return gone - sum(c.seconds for n, c in self.nodes.items() if n not in before)

    def elements(self, value: ir.Value | None) -> int:
        """Number of elements of a value, unknown dimensions counted as 1; 0 for an unknown rank."""
        if value is None or value.shape is None:
            return 0
        found = 1
        for d in value.shape.dims:
            if isinstance(d, int) and d >= 0:
                found *= d
        return found

    def _macs(self, node: ir.Node) -> int:
        op, args = node.op_type, node.inputs
        if op in _CONV:
            weight = _shape(args, _CONV[op])
            if weight and weight[0]:
                return self.elements(node.outputs[0]) * math.prod(weight[1:])
        elif op == "ConvTranspose":
            weight = _shape(args, 1)
            if weight:
                return self.elements(args[0]) * math.prod(weight[1:])
        elif op in _MATMUL:
            left = _shape(args, 0)
            if left:
                return self.elements(node.outputs[0]) * left[-1]
        elif op == "Gemm":
            left = _shape(args, 0)
            if len(left) == 2:
                inner = left[0] if ir.attr(node, "transA", 0) else left[1]
                return self.elements(node.outputs[0]) * inner
        elif op in _GATES:
            x, w, r = _shape(args, 0), _shape(args, 1), _shape(args, 2)
            if len(x) == len(w) == len(r) == 3:
                return x[0] * x[1] * (math.prod(w) + math.prod(r))
        elif op == "Einsum":
            return self._einsum(node)
        elif op in ("Attention", "MultiHeadAttention"):
            q, k = _shape(args, 0), _shape(args, 1)
            if len(q) >= 2 and len(k) >= 2:
                return 2 * math.prod(q) * k[-2]
        return 0

    def _einsum(self, node: ir.Node) -> int:
        equation = str(ir.attr(node, "equation", "")).replace(" ", "").partition("->")[0]
        sizes: dict[str, int] = {}
        for i, term in enumerate(equation.split(",")[: len(node.inputs)]):
            shape = _shape(node.inputs, i)
            if "." not in term and len(term) == len(shape):
                sizes.update(zip(term, shape, strict=True))
        return math.prod(sizes.values())


def _shape(values: Sequence[ir.Value | None], index: int) -> tuple[int, ...]:
    """Shape of an input with unknown dimensions as 1; empty for an unknown rank."""
    if index >= len(values):
        return ()
    return tuple(d if isinstance(d, int) else 1 for d in ir.dims(values[index]) or ())


def _trips(node: ir.Node) -> int:
    if node.op_type == "Loop" and node.inputs:
        count = ir.array(node.inputs[0])
        if count is not None and count.size == 1:
            return max(0, min(int(count.reshape(())), 1_000_000))
    if node.op_type == "Scan":
        n = int(ir.attr(node, "num_scan_inputs", 0))
        if n:
            shape = ir.dims(node.inputs[-n])
            if shape and isinstance(shape[0], int):
                return shape[0]
    return 1

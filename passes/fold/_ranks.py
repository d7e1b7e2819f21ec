"""Conditions that must hold, since otherwise the model fails.

Exporters of dynamic languages write ``If(size == 1) {Squeeze(x)} else {x}``, whose result has one
rank or the other. Where the operators behind it take only one of them, the other branch can only
end in an error, so the condition decides nothing.
"""

from __future__ import annotations

from graphopt import ir

__all__ = ["certain_conditions"]

# The rank of these inputs is fixed, and onnxruntime checks it.
_RECURRENT = {"RNN": (0, 5), "GRU": (0, 5), "LSTM": (0, 5, 6)}
_SAME_RANK = frozenset({
    "Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh",
})  # fmt: skip


def certain_conditions(graph: ir.Graph) -> dict[ir.Value, bool]:
    """Values of conditions of If nodes in ``graph`` in every run of the graph that succeeds.

    Only nodes of the graph itself count, since those in its subgraphs may not run.
    """
    needed: dict[ir.Value, int] = {}
    certain: dict[ir.Value, bool] = {}
    for node in reversed(graph):
        if node.domain != "":
            continue
        if node.op_type == "If":
            found = _only_branch(node, needed)
            if found is not None and node.inputs[0] is not None:
                certain[node.inputs[0]] = found
        else:
            _need(node, needed)
    return certain


def _need(node: ir.Node, needed: dict[ir.Value, int]) -> None:
    """Note the ranks that the inputs of a node must have."""
    op = node.op_type
    data = node.inputs[0] if node.inputs else None
    if op in _RECURRENT:
        for i in _RECURRENT[op]:
            if i < len(node.inputs) and (state := node.inputs[i]) is not None:
                needed[state] = 3
        return
    if data is None:
        return
    after = needed.get(node.outputs[0])
    rank: int | None = None
    if op in ("Conv", "ConvTranspose"):
        rank = ir.rank(node.inputs[1]) if ir.const(node.inputs[1]) is not None else None
    elif op == "Transpose" and "perm" in node.attributes:
        rank = len(ir.attr(node, "perm"))
    elif after is not None and op in _SAME_RANK:
        rank = after
    elif after is not None and op in ("Squeeze", "Unsqueeze") and (count := _count_axes(node)):
        rank = after + count if op == "Squeeze" else after - count
    if rank is not None:
        needed[data] = rank


def _count_axes(node: ir.Node) -> int:
    """How many axes a Squeeze or Unsqueeze names; 0 where that is unknown."""
    if ir.opset(node) < 13:
        return len(ir.attr(node, "axes", ()))
    axes = ir.array(node.inputs[1]) if len(node.inputs) > 1 else None
    return 0 if axes is None else int(axes.size)


def _rank(value: ir.Value) -> int | None:
    """The rank of a value; ONNX's inference does not see axes that come from around a subgraph."""
    node = value.producer()
    rank = ir.rank(value)
    if rank is None and node is not None and node.op_type in ("Squeeze", "Unsqueeze"):
        before, count = ir.rank(node.inputs[0]), _count_axes(node)
        if before is not None and count and node.domain == "":
            return before - count if node.op_type == "Squeeze" else before + count
    return rank


def _only_branch(node: ir.Node, needed: dict[ir.Value, int]) -> bool | None:
    """Which branch gives results that can be used, if only one does."""
    usable = []
    for name in ("then_branch", "else_branch"):
        results = node.attributes[name].as_graph().outputs
        usable.append(
            all(
                needed.get(out) in (None, rank) or rank is None
                for out, rank in zip(node.outputs, map(_rank, results), strict=True)
            )
        )
    return usable[0] if usable[0] is not usable[1] else None

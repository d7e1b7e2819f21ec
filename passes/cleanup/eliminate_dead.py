"""Remove what nothing uses."""

from __future__ import annotations

import dataclasses

from graphopt import Context, Exactness, Pass, Rewriter, ir

__all__ = ["EliminateDead"]

# Operators that compute the same with and without their optional outputs. Not among them:
# BatchNormalization, whose number of outputs selects training or inference before opset 14 and is
# fixed by its mode since then; Attention, whose present key and value go together.
_INDEPENDENT = frozenset({
    "Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN", "SoftmaxCrossEntropyLoss",
    "Unique",
})  # fmt: skip


class EliminateDead(Pass):
    """Remove nodes, initializers and optional outputs that nothing uses.

    What it does: Walks every graph backwards once, so that a node goes right after its last user.
    Nodes of subgraphs count as users of what they capture. Unused initializers go in all graphs.
    Optional outputs that nobody reads become absent where the operator computes the rest the same
    without them (Dropout, GRU, LSTM, RNN, LayerNormalization, MaxPool, Unique,
    SoftmaxCrossEntropyLoss).

    Exactness: Bitwise. What is left is computed as before.

    Needs: Nothing.

    Options: None.

    Example: ``a = Relu(x); y = Neg(x); return y`` -> ``y = Neg(x); return y``

    Declines when: A node may have an effect besides its outputs, which is assumed of operators of
    unknown domains. Optional outputs of BatchNormalization stay: before opset 14 they switch it to
    training.

    References: Aho, Lam, Sethi, Ullman, Compilers, 9.1.6 (dead-code elimination).
    """

    name = "eliminate-dead"
    exactness = Exactness.BITWISE

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Sweep all graphs."""
        rw = ctx.rewriter()
        sweep = _Sweep(ctx, rw)
        sweep.graph(model.graph)
        unused = any(_unused(v) for g in ir.all_graphs(model) for v in g.initializers.values())
        if sweep.going and unused and ctx.allow("drop-initializers"):
            ctx.stats.applied["drop-initializer"] += rw.remove_initializers()
        return rw.changed


@dataclasses.dataclass
class _Sweep:
    ctx: Context
    rw: Rewriter
    going: bool = True

    def graph(self, graph: ir.Graph) -> None:
        for node in reversed(tuple(graph)):
            if not self.going:
                return
            if any(v.is_graph_output() or v.uses() for v in node.outputs) or not ir.is_pure(node):
                self.outputs(node)
                # Later graphs first here too: what they capture is made before the node.
                for inner in reversed(tuple(ir.subgraphs(node))):
                    self.graph(inner)
            elif self.allow("remove", node):
                self.rw.erase(node)
                self.ctx.stats.erased += 1

    def outputs(self, node: ir.Node) -> None:
        if node.domain or node.op_type not in _INDEPENDENT or len(node.outputs) < 2:
            return
        schema = ir.schema("", node.op_type, ir.opset(node))
        if schema is None:
            return
        optional = [str(formal.option).endswith("Optional") for formal in schema.outputs]
        for index in reversed(range(len(node.outputs))):
            value = node.outputs[index]
            if (
                value.name
                and optional[index]
                and _unused(value)
                and self.allow("drop-output", node)
            ):
                self.rw.drop_output(node, index)
                self.ctx.stats.applied["drop-output"] += 1

    def allow(self, what: str, node: ir.Node) -> bool:
        place = node.outputs[0].name if node.outputs else node.name
        self.going = self.going and self.ctx.allow(f"{what} at %{place}")
        return self.going


def _unused(value: ir.Value) -> bool:
    return not (value.is_graph_output() or value.is_graph_input() or value.uses())

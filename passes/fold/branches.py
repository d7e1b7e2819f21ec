"""Resolve control flow that is decided at compile time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from graphopt import Context, Exactness, Pass, Rewriter, ir
from graphopt.passes.fold._prune import Pruner
from graphopt.passes.fold._ranks import certain_conditions
from graphopt.passes.fold._reads import is_used

__all__ = ["FoldBranches"]

Known = Mapping[ir.Value, bool]


class FoldBranches(Pass):
    """Resolve If and Loop nodes that are decided at compile time, and drop unused results.

    What it does: An If whose condition is constant, or is the condition of an If around it,
        becomes the branch taken. So does an If one of whose branches gives a result of a rank that
        what follows cannot take, as in ``LSTM(Unsqueeze(If(size == 1) {Squeeze(x)} else {x}))``:
        that branch would end in an error. A Loop that runs zero times becomes its initial values.
        Outputs of If, Loop and Scan that nothing uses go, with whatever computed them in the
        subgraphs: unused results of branches, scan outputs, loop-carried values that feed nothing
        but themselves, and scan inputs that the body does not read. A loop-carried value that the
        body returns unchanged becomes the value from outside.

    Exactness: bitwise, for inputs that the model accepts.

    Needs: nothing. It finds more after fold-constants and fold-shapes.

    Options: none.

    Example: ``If(true) {then: Relu(x), else: Neg(x)}`` -> ``Relu(x)``

    Declines when: the condition or the trip count depends on the inputs; a Loop that runs zero
        times has scan outputs that are used, since their shape is not known; Scan has the form it
        had before opset 9.

    References: https://onnx.ai/onnx/operators/onnx__If.html,
        https://onnx.ai/onnx/operators/onnx__Loop.html, https://onnx.ai/onnx/operators/onnx__Scan.html
    """

    name: ClassVar[str] = "fold-branches"
    exactness: ClassVar[Exactness] = Exactness.BITWISE

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Resolve what is decided, outermost first, then remove what nothing uses any more."""
        rw = ctx.rewriter()
        if not any(next(ir.subgraphs(node), None) is not None for node in model.graph):
            return False
        _Folder(rw, ctx).graph(model.graph, {})
        Pruner(rw, ctx).run()
        if rw.changed:
            rw.remove_initializers()
        return rw.changed


class _Folder:
    def __init__(self, rw: Rewriter, ctx: Context) -> None:
        self.rw = rw
        self.ctx = ctx

    def graph(self, graph: ir.Graph, known: Known) -> None:
        """Resolve the nodes of a graph where the values in ``known`` have these values."""
        while True:
            facts = dict(known)
            for condition, truth in certain_conditions(graph).items():
                facts.update(_facts(condition, truth))
            if not self.nodes(graph, facts):
                return

    def nodes(self, graph: ir.Graph, known: Known) -> bool:
        """Resolve the nodes of a graph once; return whether a branch of it was resolved."""
        pending = deque(graph)
        resolved = False
        while pending:
            node = pending.popleft()
            if node.domain == "" and node.op_type == "If":
                moved = self.branch(node, known)
                resolved |= moved is not None
                pending.extendleft(reversed(moved or ()))
            elif not (node.domain == "" and node.op_type == "Loop" and self.loop(node)):
                for inner in ir.subgraphs(node):
                    self.graph(inner, known)
        return resolved

    def branch(self, node: ir.Node, known: Known) -> list[ir.Node] | None:
        """Resolve an If; return the nodes that have come in its place, None if it stays."""
        condition = node.inputs[0]
        then, otherwise = (node.attributes[f"{k}_branch"].as_graph() for k in ("then", "else"))
        taken = None if condition is None else _truth(condition, known)
        action = f"inline-branch at %{node.outputs[0].name}"
        if taken is None or not self.ctx.allow(action):
            assert condition is not None
            for inner, truth in ((then, True), (otherwise, False)):
                self.graph(inner, {**known, **_facts(condition, truth)})
            return None
        chosen = then if taken else otherwise
        moved = list(chosen)
        results = self.rw.splice(node, chosen)
        for old, new in zip(node.outputs, results, strict=True):
            if is_used(old):
                self.rw.replace(old, new)
        self.rw.erase(node)
        self.ctx.stats.applied["inline-branch"] += 1
        return moved

    def loop(self, node: ir.Node) -> bool:
        """Resolve a Loop that does not run; return whether it did."""
        if not _runs_zero_times(node):
            return False
        initial = node.inputs[2:]
        if any(is_used(v) for v in node.outputs[len(initial) :]):
            self.ctx.decline("skip-loop", "the shape of a scan output is not known")
            return False
        if not any(is_used(v) for v in node.outputs) or not self.ctx.allow(
            f"skip-loop at %{node.outputs[0].name}"
        ):
            return False
        for old, new in zip(node.outputs, initial, strict=False):
            if is_used(old) and new is not None:
                self.rw.replace(old, new)
        self.rw.erase(node)
        self.ctx.stats.applied["skip-loop"] += 1
        return True


def _truth(value: ir.Value, known: Known) -> bool | None:
    """The boolean that ``value`` always is, or None."""
    constant = ir.array(value)
    if constant is not None:
        return bool(constant.reshape(-1)[0]) if constant.size == 1 else None
    source, same = _source(value)
    return None if source not in known else known[source] is same


def _facts(condition: ir.Value, truth: bool) -> dict[ir.Value, bool]:
    """What is known where a condition holds, or does not."""
    source, same = _source(condition)
    return {source: truth is same}


def _source(value: ir.Value) -> tuple[ir.Value, bool]:
    """What a boolean is a copy of, or, if the second result is False, the negation of."""
    same = True
    while (node := value.producer()) is not None and node.op_type in ("Cast", "Identity", "Not"):
        source = node.inputs[0]
        if source is None or source.dtype != ir.DataType.BOOL:
            break
        same ^= node.op_type == "Not"
        value = source
    return value, same


def _runs_zero_times(node: ir.Node) -> bool:
    trips, condition = (ir.array(v) for v in (*node.inputs[:2], None, None)[:2])
    if trips is not None and trips.size == 1 and int(trips.reshape(-1)[0]) <= 0:
        return True
    return condition is not None and condition.size == 1 and not condition.reshape(-1)[0]

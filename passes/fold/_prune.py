"""Remove nodes and results of control flow that nothing uses."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt import Context, Rewriter, ir
from graphopt.passes.fold._reads import is_used, reads

__all__ = ["Pruner"]


class Pruner:
    """Removes what nothing uses, users before what they use, so that one sweep is enough.

    Only a loop body whose results go can make more sweeps worthwhile; then there are more.

    Args:
        rw: Rewriter of the model.
        ctx: Where to count, and to ask before each change.
    """

    def __init__(self, rw: Rewriter, ctx: Context) -> None:
        self.rw = rw
        self.ctx = ctx
        self.again = True

    def run(self) -> None:
        """Sweep until nothing changes."""
        while self.again:
            self.again = False
            self.sweep(self.rw.model.graph)

    def sweep(self, graph: ir.Graph) -> None:
        """Visit a graph and those inside it from the end to the beginning."""
        for node in reversed(graph):
            if not any(is_used(v) for v in node.outputs) and ir.is_pure(node):
                self.rw.erase(node)
                self.ctx.stats.erased += 1
                continue
            if node.domain == "":
                if node.op_type == "If":
                    self.branch(node)
                elif node.op_type == "Loop":
                    self.loop(node)
                elif node.op_type == "Scan" and ir.opset(node) >= 9:
                    self.scan(node)
            for inner in ir.subgraphs(node):
                self.sweep(inner)

    def allow(self, rule: str, node: ir.Node) -> bool:
        return self.ctx.allow(f"{rule} at %{node.outputs[0].name}")

    def count(self, rule: str, number: int) -> None:
        self.ctx.stats.applied[rule] += number
        self.again = True

    def branch(self, node: ir.Node) -> None:
        keep = [i for i, v in enumerate(node.outputs) if is_used(v)] or [0]
        gone = len(node.outputs) - len(keep)
        if gone and self.allow("prune-branch-outputs", node):
            for graph in ir.subgraphs(node):
                self.rw.set_interface(graph, outputs=[graph.outputs[i] for i in keep])
            self.rw.keep_outputs(node, keep)
            self.count("prune-branch-outputs", gone)

    def loop(self, node: ir.Node) -> None:
        (body,) = ir.subgraphs(node)
        states = len(node.inputs) - 2
        if states < 0 or len(body.inputs) != states + 2:
            return
        self.pass_through(node, body, states, first_input=2, first_output=1)
        states = len(node.inputs) - 2
        scans = range(states, len(node.outputs))
        keep_scans = [i for i in scans if is_used(node.outputs[i])]
        live = _live_states(node, body, states, 2, 1, [0, *(i + 1 for i in keep_scans)])
        keep = [*live, *keep_scans]
        if not keep or len(keep) == len(node.outputs) or not self.allow("prune-loop", node):
            return
        self.count("prune-loop", len(node.outputs) - len(keep))
        self.rw.set_interface(body, outputs=[body.outputs[0], *(body.outputs[i + 1] for i in keep)])
        self.release(body, [body.inputs[i + 2] for i in range(states) if i not in set(live)])
        self.rw.set_interface(body, inputs=[*body.inputs[:2], *(body.inputs[i + 2] for i in live)])
        self.rw.keep_outputs(node, keep)
        self.rw.set_inputs(node, [*node.inputs[:2], *(node.inputs[i + 2] for i in live)])

    def scan(self, node: ir.Node) -> None:
        (body,) = ir.subgraphs(node)
        read = int(ir.attr(node, "num_scan_inputs"))
        states = len(node.inputs) - read
        if states < 0 or len(body.inputs) != len(node.inputs):
            return
        self.pass_through(node, body, states, first_input=0, first_output=0)
        states = len(node.inputs) - read
        keep_scans = [i for i in range(states, len(node.outputs)) if is_used(node.outputs[i])]
        live = _live_states(node, body, states, 0, 0, keep_scans)
        keep = [*live, *keep_scans]
        if not keep:
            return
        dead = {body.inputs[i] for i in range(states) if i not in set(live)}
        doomed = _only_for(node, body, keep)
        used = [i for i in range(states, len(node.inputs)) if _is_read(body.inputs[i], doomed)] or [
            states
        ]
        gone = len(node.outputs) - len(keep) + read - len(used)
        if not gone or not self.allow("prune-scan", node):
            return
        self.count("prune-scan", gone)
        self.rw.set_interface(body, outputs=[body.outputs[i] for i in keep])
        kept_inputs = [*live, *used]
        dead |= {body.inputs[i] for i in range(states, len(node.inputs)) if i not in set(used)}
        self.release(body, list(dead))
        self.rw.set_interface(body, inputs=[body.inputs[i] for i in kept_inputs])
        for name, kept in (
            ("scan_input_axes", [i - states for i in used]),
            ("scan_input_directions", [i - states for i in used]),
            ("scan_output_axes", [i - states for i in keep_scans]),
            ("scan_output_directions", [i - states for i in keep_scans]),
        ):
            if name in node.attributes:
                given = ir.attr(node, name)
                self.rw.set_attr(node, **{name: [given[i] for i in kept] or None})
        self.rw.set_attr(node, num_scan_inputs=len(used))
        self.rw.keep_outputs(node, keep)
        self.rw.set_inputs(node, [node.inputs[i] for i in kept_inputs])

    def pass_through(
        self, node: ir.Node, body: ir.Graph, states: int, first_input: int, first_output: int
    ) -> None:
        """Use the value from outside instead of a carried one that the body returns unchanged."""
        for i in range(states):
            inside, outside = body.inputs[first_input + i], node.inputs[first_input + i]
            result = body.outputs[first_output + i]
            made = result.producer()
            if made is not None and made.op_type == "Identity" and made.domain == "":
                result = made.inputs[0] or result
            if result is not inside or outside is None:
                continue
            elsewhere = [v for j, v in enumerate(body.outputs) if j != first_output + i]
            uses = [use for use in inside.uses() if use.node is not made]
            if inside in elsewhere or not (uses or is_used(node.outputs[i])):
                continue
            if not self.allow("hoist-unchanged-state", node):
                return
            for use in uses:
                self.rw.set_input(use.node, use.idx, outside)
            if is_used(node.outputs[i]):
                self.rw.replace(node.outputs[i], outside)
            self.count("hoist-unchanged-state", 1)

    def release(self, body: ir.Graph, values: Sequence[ir.Value]) -> None:
        """Erase the nodes of a body that only computed what its outputs no longer include."""
        gone = set(values)
        for each in reversed(body):
            if not any(is_used(v) for v in each.outputs) and ir.is_pure(each):
                self.rw.erase(each)
                self.ctx.stats.erased += 1
        left = [v for v in gone if v.uses()]
        assert not left, f"%{left[0].name} is still read"


def _live_states(
    node: ir.Node,
    body: ir.Graph,
    states: int,
    first_input: int,
    first_output: int,
    outputs: Sequence[int],
) -> list[int]:
    """Which carried values are used outside, or decide about anything that is."""
    index = {body.inputs[first_input + i]: i for i in range(states)}
    live = {i for i in range(states) if is_used(node.outputs[i])}
    pending = [body.outputs[i] for i in outputs]
    pending += [body.outputs[first_output + i] for i in live]
    pending += [v for each in body if not ir.is_pure(each) for v in reads(each)]
    seen: set[ir.Node] = set()
    while pending:
        value = pending.pop()
        state = index.get(value)
        if state is not None and state not in live:
            live.add(state)
            pending.append(body.outputs[first_output + state])
        made = value.producer()
        if made is not None and made.graph is body and made not in seen:
            seen.add(made)
            pending.extend(reads(made))
    return sorted(live)


def _only_for(node: ir.Node, body: ir.Graph, keep: Sequence[int]) -> set[ir.Node]:
    """The nodes of a body that the kept outputs do not need."""
    pending = [body.outputs[i] for i in keep]
    pending += [v for each in body if not ir.is_pure(each) for v in reads(each)]
    needed = {each for each in body if not ir.is_pure(each)}
    while pending:
        made = pending.pop().producer()
        if made is not None and made.graph is body and made not in needed:
            needed.add(made)
            pending.extend(reads(made))
    return {each for each in body if each not in needed}


def _is_read(value: ir.Value, doomed: set[ir.Node]) -> bool:
    if value.is_graph_output():
        return True
    return any(use.node not in doomed for use in value.uses())

"""Find the nodes that could be computed at compile time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from graphopt import Context, ir
from graphopt.passes.fold._reads import captures, inputs, reads
from graphopt.passes.fold._sizes import expected_bytes

__all__ = ["Candidates", "divisor_is_safe", "find"]

_DOMAINS = frozenset({"", "com.microsoft", "ai.onnx.ml", "ai.onnx.preview.training"})
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclasses.dataclass
class Candidates:
    """Deterministic nodes all of whose inputs are constants, or come from others of them.

    Attributes:
        nodes: In an order in which they can be computed.
        reads: The values that each node reads, each once.
        inside: The nodes, and those in their subgraphs.
        stage: Nodes of a later stage can only be computed when a result of an earlier one has been
            looked at: integer division by zero kills the process.
    """

    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    reads: dict[ir.Node, tuple[ir.Value, ...]] = dataclasses.field(default_factory=dict)
    inside: set[ir.Node] = dataclasses.field(default_factory=set)
    stage: dict[ir.Node, int] = dataclasses.field(default_factory=dict)

    def discard(self, failed: Iterable[ir.Node]) -> None:
        """Forget nodes, and those that depend on them."""
        gone = set(failed)
        kept: list[ir.Node] = []
        for node in self.nodes:
            if node in gone or any(v.producer() in gone for v in self.reads[node]):
                gone.add(node)
            else:
                kept.append(node)
        self.nodes = kept
        self.inside = {each for node in kept for each in _with_inner(node)}


def find(model: ir.Model, ctx: Context, *, quantization: bool, max_input: int) -> Candidates:
    """Find the nodes of a model that could be computed now, in one linear walk.

    Args:
        model: The model.
        ctx: Where to count what was declined.
        quantization: Whether QuantizeLinear and DequantizeLinear count.
        max_input: Most bytes of constants that they may read, in total.
    """
    found = Candidates()
    weights: set[ir.Value] = set()
    room = max_input
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        inner: list[ir.Graph] = []
        for node in graph:
            if not _is_candidate(node, found, quantization):
                inner.extend(ir.subgraphs(node))
                continue
            read = tuple(dict.fromkeys(reads(node)))
            new = [v for v in read if v.producer() not in found.stage and v not in weights]
            size = sum(t.nbytes for t in map(ir.const, new) if t is not None)
            large = any((expected_bytes(v) or 0) > max_input for v in node.outputs)
            if size > room or large:
                ctx.decline("fold-constant", f"more than {max_input:,} bytes would be read or made")
                continue
            room -= size
            weights.update(new)
            stage = max((found.stage.get(p, 0) for v in read if (p := v.producer())), default=0)
            if _divides_integers(node) and node.inputs[1] not in weights:
                stage += 1
            found.nodes.append(node)
            found.reads[node] = read
            found.inside.update(_with_inner(node))
            found.stage[node] = stage
        pending.extend(reversed(inner))
    return found


def _is_candidate(node: ir.Node, found: Candidates, quantization: bool) -> bool:
    def constant(value: ir.Value) -> bool:
        return value.producer() in found.stage or ir.const(value) is not None

    if not all(constant(v) for v in inputs(node)):
        return False
    op = node.op_type
    if node.domain not in _DOMAINS or op == "Constant":
        return False
    if op in _QUANTIZATION and not quantization:
        return False
    if op == "Identity" and node.outputs[0].is_graph_output():
        return False  # it gives a constant the name of an output
    if not ir.is_deterministic(node) or not all(constant(v) for v in captures(node)):
        return False
    if _divides_integers(node):
        divisor = ir.array(node.inputs[1])
        return divisor is None or divisor_is_safe(divisor)
    return all(
        not _divides_integers(each) or _is_safe_inside(each)
        for each in _with_inner(node)
        if each is not node
    )


def _is_safe_inside(node: ir.Node) -> bool:
    divisor = ir.array(node.inputs[1])
    return divisor is not None and divisor_is_safe(divisor)


def _divides_integers(node: ir.Node) -> bool:
    if node.op_type not in ("Div", "Mod") or node.domain != "" or len(node.inputs) != 2:
        return False
    kind = node.outputs[0].dtype
    return kind is None or kind.is_integer()


def divisor_is_safe(divisor: np.ndarray[Any, Any]) -> bool:
    """Whether integers can be divided by these: not by 0, nor by -1, which may overflow."""
    return not bool(np.isin(divisor, (0, -1)).any())


def _with_inner(node: ir.Node) -> Iterable[ir.Node]:
    pending = [node]
    while pending:
        each = pending.pop()
        yield each
        for graph in ir.subgraphs(each):
            pending.extend(graph)

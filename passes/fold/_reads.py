"""What nodes read: their inputs, and what their subgraphs capture."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt import ir

__all__ = ["captures", "inputs", "is_used", "reads"]


def captures(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values from outside of ``node`` that its subgraphs use, possibly more than once."""
    pending = list(ir.subgraphs(node))
    if not pending:
        return
    graphs: list[ir.Graph] = []
    inner: set[ir.Node] = set()
    while pending:
        graph = pending.pop()
        graphs.append(graph)
        for each in graph:
            inner.add(each)
            pending.extend(ir.subgraphs(each))
    own = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
    for graph in graphs:
        for each in graph:
            for value in each.inputs:
                if value is not None and value not in own and value.producer() not in inner:
                    yield value


def inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs whose data a node depends on: of CastLike's second one it takes the type only."""
    given = [v for v in node.inputs if v is not None]
    is_typed = (
        node.op_type == "CastLike" and node.domain == "" and node.outputs[0].dtype is not None
    )
    return given[:1] if is_typed else given


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield every value that ``node`` depends on, possibly more than once."""
    yield from inputs(node)
    yield from captures(node)


def is_used(value: ir.Value) -> bool:
    """Whether a node or the interface of a graph uses ``value``."""
    return value.is_graph_output() or bool(value.uses())

"""The graph as networkx sees it, for analyses: dominators, cuts, components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_ir import Graph, Model, Node

from graphopt.ir.graph import subgraphs

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["to_networkx"]


def to_networkx(model: Model) -> nx.DiGraph[Any]:
    """Data flow of the main graph.

    Returns:
        Directed graph whose vertices are the nodes of ``model.graph``, its inputs and its
        initializers, and whose edges carry ``value``. A value captured by a subgraph flows into the
        node that owns the subgraph.
    """
    import networkx as nx

    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(model.graph.inputs)
    graph.add_nodes_from(model.graph.initializers.values())
    graph.add_nodes_from(model.graph)
    for node in model.graph:
        for value in _reads(node):
            producer = value.producer()
            start = value if producer is None else producer
            if start in graph:
                graph.add_edge(start, node, value=value)
    return graph


def _reads(node: Node) -> list[Any]:
    found = [v for v in node.inputs if v is not None]
    pending: list[Graph] = list(subgraphs(node))
    while pending:
        for inner in pending.pop():
            found += (v for v in inner.inputs if v is not None)
            pending.extend(subgraphs(inner))
    return found

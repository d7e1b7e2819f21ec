"""Which operators to compute with the channels last: a minimum cut."""

from __future__ import annotations

import math
from collections.abc import Iterator

import networkx as nx

from graphopt import ir
from graphopt.passes.quantize._layouts import Form, form

__all__ = ["Island", "choose", "indifferent", "islands"]

Island = dict[ir.Node, Form]

# What a Transpose costs besides the bytes that it moves, in bytes.
_CALL = 4096
_FIRST, _LAST = "channels first", "channels last"


def islands(graph: ir.Graph) -> Iterator[Island]:
    """Connected operators that can have the channels last, where one of them wants them there."""
    ranks = _ranks(graph)
    # Values are among them: two that read the same one share its transposition.
    links: nx.Graph[ir.Node | ir.Value] = nx.Graph()
    forms: Island = {}
    for node in graph:
        rank = ranks.get(node.outputs[0], 0) if node.outputs else 0
        found = form(node, rank) if rank > 2 else None
        if found is None or any(_rank(node.inputs[i], ranks) != rank for i in found.reads):
            continue
        forms[node] = found
        links.add_edges_from((node.inputs[i], node) for i in found.reads)
        links.add_edge(node, node.outputs[0])
    order = {node: i for i, node in enumerate(forms)}
    for linked in nx.connected_components(links):
        nodes = sorted((n for n in linked if isinstance(n, ir.Node)), key=order.__getitem__)
        if any(forms[node].wants for node in nodes):
            yield {node: forms[node] for node in nodes}


def _rank(value: ir.Value | None, ranks: dict[ir.Value, int]) -> int | None:
    return None if value is None else ranks.get(value, ir.rank(value))


def _ranks(graph: ir.Graph) -> dict[ir.Value, int]:
    """Ranks of results; what ONNX Runtime's own operators compute has no inferred shape."""
    found: dict[ir.Value, int] = {}
    for node in graph:
        for out in node.outputs:
            known = ir.rank(out)
            if known is None:
                known = _unknown_rank(node, found)
            if known is not None:
                found[out] = known
    return found


def _unknown_rank(node: ir.Node, ranks: dict[ir.Value, int]) -> int | None:
    match node.op_type:
        case "QLinearConv":
            reads = [0, 3]
        case "QLinearAdd" | "QLinearMul":
            both = [_rank(node.inputs[i], ranks) for i in (0, 3)]
            return None if None in both else max(r for r in both if r is not None)
        case "QLinearConcat":
            reads = [2]
        case (
            "QuantizeLinear" | "DequantizeLinear" | "Clip" | "Identity" | "Concat" | "MaxPool"
            | "Slice" | "Pad" | "Resize" | "QLinearAveragePool" | "QLinearGlobalAveragePool"
            | "QLinearLeakyRelu" | "QLinearSigmoid"
        ):  # fmt: skip
            reads = [0]
        case _:
            return None
    return next((r for i in reads if (r := _rank(node.inputs[i], ranks)) is not None), None)


def choose(island: Island) -> set[ir.Node]:
    """The operators whose results shall have the channels last, so that the least is transposed.

    Convolutions do, since ONNX Runtime transposes before and behind those that do not. A value
    costs its size where one that reads it, or computes it, wants it otherwise than another.
    """
    cut: nx.DiGraph[object] = nx.DiGraph()
    cut.add_nodes_from((_FIRST, _LAST))
    for node, spelled in island.items():
        cut.add_node(node)
        if spelled.wants:
            cut.add_edge(_LAST, node)  # an edge without capacity cannot be cut
        for i in spelled.reads:
            value = node.inputs[i]
            assert value is not None
            maker = value.producer()
            _demand(cut, value, maker if maker in island else _FIRST, node)
        out = node.outputs[0]
        others = [use for use in out.uses() if not _reads(island, use.node, use.idx)]
        if out.is_graph_output() or any(not indifferent(use.node, use.idx) for use in others):
            _demand(cut, out, node, _FIRST)
    _, (last, _) = nx.minimum_cut(cut, _LAST, _FIRST)
    return {node for node in island if node in last}


def _reads(island: Island, node: ir.Node, position: int) -> bool:
    return node in island and position in island[node].reads


def _demand(cut: nx.DiGraph[object], value: ir.Value, maker: object, reader: object) -> None:
    """Let one value be transposed at most once each way, whoever reads it."""
    if maker is not _FIRST:
        cut.add_edge(maker, (value, _FIRST), capacity=_cost(value))
        cut.add_edge((value, _FIRST), reader)
    if reader is not _FIRST:
        cut.add_edge(reader, (value, _LAST))
        cut.add_edge((value, _LAST), maker, capacity=_cost(value))


def _cost(value: ir.Value) -> int:
    sizes = [d for d in ir.dims(value) or () if isinstance(d, int)]
    return _CALL + math.prod(sizes) * (4 if value.dtype == ir.DataType.FLOAT else 1)


def indifferent(node: ir.Node, position: int) -> bool:
    """Whether a node reads the same numbers in the same order, wherever the channels are."""
    if node.domain or position or node.op_type not in ("Flatten", "Reshape"):
        return False
    sizes = ir.dims(node.inputs[0])
    if sizes is None or len(sizes) < 3 or any(d != 1 for d in sizes[2:]):
        return False
    if node.op_type == "Flatten":
        return bool(ir.attr(node, "axis") == 1)
    target = ir.array(node.inputs[1])
    return target is not None and not (target[1:] == 0).any()

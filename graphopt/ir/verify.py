"""Structural invariants of the IR, checked in memory in time linear in its size."""

from __future__ import annotations

from onnx_ir import Graph, Model, Node, Value

from graphopt.errors import StructureError
from graphopt.ir.graph import all_nodes, subgraphs
from graphopt.ir.origin import opaque, origin
from graphopt.ir.schema import required

__all__ = ["verify"]


def verify(model: Model) -> None:
    """Check the invariants that every pass must leave in place.

    Definitions precede uses, names are unique over all scopes, links between values, nodes and
    graphs agree in both directions, initializers have data, operators have the inputs they need,
    the interface is the declared one.

    Raises:
        StructureError: The first violation, named.
    """
    if opaque(model) is not None:
        return
    _interface(model)
    nodes = set(all_nodes(model))
    _graph(model.graph, set(), set(), nodes)


def _interface(model: Model) -> None:
    source = origin(model)
    for kind, declared, values in (
        ("input", list(source.inputs), model.graph.inputs),
        ("output", source.output_names, model.graph.outputs),
    ):
        have = [v.name for v in values]
        if not declared or have == declared:
            continue
        missing = set(declared).difference(have)
        if missing:
            raise StructureError(f"graph {kind} %{min(missing)} of the source is gone")
        added = [name for name in have if name not in declared]
        if added:
            raise StructureError(f"graph {kind} %{added[0]} is not in the source")
        raise StructureError(f"the graph {kind}s are {have}, in the source they are {declared}")


def _graph(graph: Graph, visible: set[Value], names: set[str], nodes: set[Node]) -> None:
    # One set serves all scopes: what a graph adds, it removes again when it ends.
    local: list[Value] = []

    def define(value: Value, what: str) -> None:
        if not value.name:
            raise StructureError(f"{what} has no name")
        if value.name in names:
            raise StructureError(f"%{value.name} is defined twice ({what})")
        names.add(value.name)
        visible.add(value)
        local.append(value)
        for use in value.uses():
            if use.node not in nodes or use.node.inputs[use.idx] is not value:
                raise StructureError(f"%{value.name}: stale use by {use.node.op_type}")

    for value in graph.inputs:
        define(value, "graph input")
    for key, value in graph.initializers.items():
        if key != value.name:
            raise StructureError(f"initializer registered as {key!r} is named {value.name!r}")
        if value.const_value is None:
            raise StructureError(f"initializer %{key} has no data")
        if value not in visible:
            define(value, "initializer")
    for node in graph:
        if node.graph is not graph:
            raise StructureError(f"{node.op_type} {node.name!r} thinks it is in another graph")
        for i, used in enumerate(node.inputs):
            if used is not None and used not in visible:
                raise StructureError(
                    f"input {i} of {node.op_type} that makes %{_made(node.outputs)}: "
                    f"%{used.name} is used before or outside its definition"
                )
        for i in required(node.domain, node.op_type, graph.opset_imports.get(node.domain, 1)):
            if node.outputs and (i >= len(node.inputs) or node.inputs[i] is None):
                # Not only ONNX Runtime refuses that: onnx's shape inference crashes the process.
                raise StructureError(
                    f"{node.op_type} that makes %{_made(node.outputs)} lacks its input {i}"
                )
        for inner in subgraphs(node):
            _graph(inner, visible, names, nodes)
        for i, out in enumerate(node.outputs):
            if out.producer() is not node or out.index() != i:
                raise StructureError(f"%{out.name}: link to its producer is broken")
            if out.name or out.uses() or out.is_graph_output():
                define(out, f"output {i} of {node.op_type}")
    for value in graph.outputs:
        if value not in visible:
            raise StructureError(f"graph output %{value.name} has no definition")
        maker = value.producer()
        if maker is not None and maker.graph is not graph:
            raise StructureError(f"graph output %{value.name} is defined outside of the graph")
    visible.difference_update(local)


def _made(outputs: object) -> str:
    assert isinstance(outputs, tuple)
    return outputs[0].name if outputs else "nothing"

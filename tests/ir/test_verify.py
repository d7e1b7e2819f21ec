"""Each violation of the invariants is found and named."""

from __future__ import annotations

import sys
from collections.abc import Callable

import onnx_ir
import pytest

from graphopt import StructureError, ir

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[4] x, bool c) => (float[4] y, float[4] z) <float[4] w = {1,2,3,4}> {
    a = Add(x, w)
    b = If(c) <then_branch = t () => (float[4] p) { s = Neg(a) p = Exp(s) },
               else_branch = e () => (float[4] q) <float[4] v = {1,2,3,4}> { q = Mul(a, v) }>
    y = Abs(b)
    z = Clip(y, , )
}"""


@pytest.fixture
def model() -> ir.Model:
    return ir.parse_text(TEXT)


def value(model: ir.Model, name: str) -> ir.Value:
    for graph in ir.all_graphs(model):
        for found in (
            *graph.inputs,
            *graph.initializers.values(),
            *(v for n in graph for v in n.outputs),
        ):
            if found.name == name:
                return found
    raise KeyError(name)


def producer(model: ir.Model, name: str) -> ir.Node:
    node = value(model, name).producer()
    assert node is not None
    return node


Break = Callable[[ir.Model], object]


def _swap_first_nodes(m: ir.Model) -> None:
    first = m.graph[0]
    m.graph.remove(first)
    m.graph.insert_after(m.graph[0], first)


def _use_of_inner_value(m: ir.Model) -> None:
    producer(m, "y").replace_input_with(0, value(m, "s"))


def _remove_without_detaching(m: ir.Model) -> None:
    node = producer(m, "z")
    m.graph.outputs.pop()
    m.graph.remove(node)
    m.meta.clear()  # forget the interface, which would be the first complaint


def _remove_if_with_its_branches(m: ir.Model) -> None:
    node = producer(m, "b")
    producer(m, "y").replace_input_with(0, value(m, "x"))
    m.graph.remove(node, safe=True)


def _node_of_two_graphs(m: ir.Model) -> None:
    m.graph[0].graph = next(ir.subgraphs(m.graph[1]))


def _output_that_points_elsewhere(m: ir.Model) -> None:
    m.graph[0].outputs[0]._producer = m.graph[2]  # nothing public can do this


def _initializer_under_another_name(m: ir.Model) -> None:
    m.graph.initializers.data["other"] = m.graph.initializers.data.pop("w")


def _shared_subgraph(m: ir.Model) -> None:
    node = producer(m, "b")
    branch = node.attributes["else_branch"].as_graph()
    branch.outputs.clear()
    branch.remove(list(branch), safe=True)
    node.attributes["else_branch"] = ir.Attr(
        "else_branch", ir.AttributeType.GRAPH, node.attributes["then_branch"].as_graph()
    )


BREAKS: dict[str, tuple[Break, str]] = {
    "use before definition": (_swap_first_nodes, r"%a is used before or outside its definition"),
    "use outside its scope": (
        _use_of_inner_value,
        r"input 0 of Abs that makes %y: %s is used before",
    ),
    "foreign value": (
        lambda m: m.graph[0].replace_input_with(0, onnx_ir.Value(name="foreign")),
        r"input 0 of Add that makes %a: %foreign is used before",
    ),
    "missing name": (lambda m: setattr(value(m, "a"), "name", ""), r"output 0 of Add has no name"),
    "name twice": (
        lambda m: setattr(value(m, "a"), "name", "x"),
        r"%x is defined twice \(output 0 of Add",
    ),
    "name of an inner value": (
        lambda m: setattr(value(m, "s"), "name", "x"),
        r"%x is defined twice \(output 0 of Neg",
    ),
    "name in both branches": (
        lambda m: setattr(value(m, "q"), "name", "s"),
        r"%s is defined twice \(output 0 of Mul",
    ),
    "name of an initializer": (
        lambda m: setattr(value(m, "v"), "name", "a"),
        r"%a is defined twice \(initializer",
    ),
    "no data": (
        lambda m: setattr(value(m, "w"), "const_value", None),
        r"initializer %w has no data",
    ),
    "initializer under another name": (
        _initializer_under_another_name,
        "registered as 'other' is named 'w'",
    ),
    "missing input": (
        lambda m: m.graph[0].replace_input_with(1, None),
        r"Add that makes %a lacks its input 1",
    ),
    "missing last input": (
        lambda m: m.graph[0].resize_inputs(1),
        r"Add that makes %a lacks its input 1",
    ),
    "use by a removed node": (_remove_without_detaching, r"%y: stale use by Clip"),
    "use by a removed branch": (_remove_if_with_its_branches, r"%a: stale use by (Neg|Mul)"),
    "node of another graph": (_node_of_two_graphs, r"Add '.*' thinks it is in another graph"),
    "output of another node": (
        _output_that_points_elsewhere,
        r"%a: link to its producer is broken",
    ),
    "one subgraph in two places": (_shared_subgraph, r"%s is defined twice"),
    "output gone": (lambda m: m.graph.outputs.pop(), r"graph output %z of the source is gone"),
    "input gone": (lambda m: m.graph.inputs.pop(), r"graph input %c of the source is gone"),
    "input renamed": (
        lambda m: setattr(value(m, "x"), "name", "x2"),
        r"graph input %x of the source is gone",
    ),
    "output added": (
        lambda m: m.graph.outputs.append(value(m, "a")),
        r"graph output %a is not in the source",
    ),
    "input added": (
        lambda m: m.graph.inputs.append(onnx_ir.Value(name="more")),
        r"graph input %more is not in the",
    ),
    "outputs swapped": (
        lambda m: m.graph.outputs.append(m.graph.outputs.pop(0)),
        r"the graph outputs are \['z', 'y'\], in the source they are \['y', 'z'\]",
    ),
    "inputs swapped": (
        lambda m: m.graph.inputs.append(m.graph.inputs.pop(0)),
        r"the graph inputs are",
    ),
    "output repeated": (
        lambda m: m.graph.outputs.append(m.graph.outputs[0]),
        r"the graph outputs are \['y', 'z', 'y'\]",
    ),
}


def test_a_sound_model(model: ir.Model) -> None:
    ir.verify(model)
    ir.verify(ir.clone(model))


@pytest.mark.parametrize("name", BREAKS)
def test_a_violation(model: ir.Model, name: str) -> None:
    breaks, message = BREAKS[name]
    breaks(model)
    with pytest.raises(StructureError, match=message):
        ir.verify(model)


def test_output_without_a_definition(model: ir.Model) -> None:
    branch = next(ir.subgraphs(producer(model, "b")))
    branch.outputs[0] = onnx_ir.Value(name="nothing")
    with pytest.raises(StructureError, match="graph output %nothing has no definition"):
        ir.verify(model)


def test_branch_that_returns_an_outer_value(model: ir.Model) -> None:
    """ONNX Runtime wants an Identity there."""
    branch = next(ir.subgraphs(producer(model, "b")))
    branch.outputs[0] = value(model, "a")
    producer(model, "p").replace_input_with(0, value(model, "a"))
    with pytest.raises(StructureError, match="graph output %a is defined outside of the graph"):
        ir.verify(model)


def test_the_same_output_twice_counts_twice() -> None:
    proto = ir.to_proto(ir.parse_text(TEXT))
    doubled = type(proto)()
    doubled.CopyFrom(proto)
    doubled.graph.output.append(doubled.graph.output[0])
    model = ir.load(doubled)
    ir.verify(model)
    model.graph.outputs.pop()
    with pytest.raises(StructureError, match=r"in the source they are \['y', 'z', 'y'\]"):
        ir.verify(model)


def test_models_without_a_source_have_no_interface_to_keep() -> None:
    x = onnx_ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    node = onnx_ir.Node("", "Neg", [x])
    node.outputs[0].name = "y"
    graph = onnx_ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports={"": 17}, name="g")
    ir.verify(onnx_ir.Model(graph, ir_version=8))


def test_deep_nesting_costs_no_more_than_its_size() -> None:
    def calls(depth: int) -> int:
        graph = "p{0} = Neg(x)"
        body = graph.format(0)
        for i in range(1, depth):
            body = (
                f"p{i} = If(c) <then_branch = t () => (float[4] p{i - 1}) {{ {body} }},"
                f" else_branch = e () => (float[4] q{i}) {{ q{i} = Exp(x) }}>"
            )
        head = '<ir_version: 8, opset_import: ["": 17]>'
        model = ir.parse_text(
            f"{head} g (float[4] x, bool c) => (float[4] p{depth - 1}) {{ {body} }}"
        )
        count = 0

        def count_call(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(count_call)
        try:
            ir.verify(model)
        finally:
            sys.setprofile(None)
        return count

    calls(5)
    assert calls(20) <= 4.4 * calls(5)  # protobuf cannot nest much deeper

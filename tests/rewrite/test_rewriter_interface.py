"""Verbs of the Rewriter that concern the model as a whole: interface, optional outputs, opsets."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Rewriter, StructureError, ir

MODEL = """
    <ir_version: 8, opset_import: ["": 17, "mine": 1]>
    g (float[N] x, float w = {2}) => (float[N] y) <float k = {1}>
    { t, m = Dropout(x) u = Mul(t, w) y = Add(u, k) }
"""


@pytest.fixture
def rw() -> Rewriter:
    return Rewriter(ir.parse_text(MODEL))


def value(rw: Rewriter, name: str) -> ir.Value:
    graph = rw.model.graph
    found = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    return next(v for v in found if v.name == name)


def test_drop_inputs(rw: Rewriter) -> None:
    w = value(rw, "w")
    assert ir.const(w) is None
    rw.drop_inputs(w)
    assert rw.changed
    assert ir.const(w) is not None
    assert [v.name for v in rw.model.graph.inputs] == ["x"]
    ir.verify(rw.model)
    assert [i.name for i in ir.to_proto(rw.model).graph.input] == ["x"]


def test_drop_no_inputs(rw: Rewriter) -> None:
    rw.drop_inputs()
    assert not rw.changed


@pytest.mark.parametrize(
    ("name", "why"),
    [("x", "no default value"), ("k", "no input of the model"), ("u", "no input of the model")],
)
def test_drop_inputs_refuses(rw: Rewriter, name: str, why: str) -> None:
    with pytest.raises(StructureError, match=why):
        rw.drop_inputs(value(rw, name))
    assert not rw.changed


def test_a_clone_keeps_its_inputs(rw: Rewriter) -> None:
    copy = ir.clone(rw.model)
    rw.drop_inputs(value(rw, "w"))
    ir.verify(copy)
    assert [v.name for v in copy.graph.inputs] == ["x", "w"]


def test_drop_output(rw: Rewriter) -> None:
    node = rw.model.graph[0]
    touched: list[ir.Node] = []
    rw.on_touch = touched.append
    rw.drop_output(node, 1)
    assert len(node.outputs) == 1
    assert rw.changed
    assert touched == [node]
    ir.verify(rw.model)


def test_drop_output_in_the_middle() -> None:
    rw = Rewriter(
        ir.parse_text("""
            <ir_version: 8, opset_import: ["": 17]>
            g (float[N] x) => (int64[M] y) { a, b, c = Unique(x) y = Neg(c) }
        """)
    )
    node = rw.model.graph[0]
    rw.drop_output(node, 1)
    assert [v.name for v in node.outputs] == ["a", "", "c"]
    ir.verify(rw.model)
    assert list(ir.to_proto(rw.model).graph.node[0].output) == ["a", "", "c"]


def test_drop_output_refuses_what_is_used(rw: Rewriter) -> None:
    with pytest.raises(StructureError, match="%t is still used"):
        rw.drop_output(rw.model.graph[0], 0)
    with pytest.raises(StructureError, match="%y is still used"):
        rw.drop_output(rw.model.graph[2], 0)


def test_drop_opset(rw: Rewriter) -> None:
    rw.drop_opset("mine")
    assert rw.changed
    assert dict(rw.model.opset_imports) == {"": 17}
    with pytest.raises(StructureError, match="is needed"):
        rw.drop_opset("")


def test_drop_opset_refuses_what_is_used() -> None:
    rw = Rewriter(
        ir.parse_text("""
            <ir_version: 8, opset_import: ["": 17, "mine": 1]>
            g (float[N] x) => (float[N] y) { y = mine.Op(x) }
        """)
    )
    with pytest.raises(StructureError, match="is needed"):
        rw.drop_opset("mine")


def test_become(rw: Rewriter) -> None:
    other = ir.parse_text("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[M] x, float w = {5}) => (float[M] y) { y = Mul(x, w) }
    """)
    rw.become(other)
    assert rw.changed
    assert rw.model.ir_version == 9
    assert ir.opset(rw.model) == 18
    ir.verify(rw.model)
    assert rw.fresh("y") != "y"
    proto = ir.to_proto(rw.model)
    # The declared interface is that of the source.
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    node = rw.model.graph[0]
    with rw.at(node):
        rw.set_input(node, 1, rw.const(np.float32(7), "c"))
    ir.verify(rw.model)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (float[N] z, float w = {2}) => (float[N] y) { y = Mul(z, w) }", "graph inputs are"),
        ("g (float w = {2}, float[N] x) => (float[N] y) { y = Mul(x, w) }", "graph inputs are"),
        ("g (float[N] x, float w = {2}) => (float[N] z) { z = Mul(x, w) }", "graph outputs are"),
    ],
)
def test_become_refuses_another_interface(rw: Rewriter, text: str, why: str) -> None:
    other = ir.parse_text(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    with pytest.raises(StructureError, match=why):
        rw.become(other)
    assert not rw.changed


def test_declare_fixes_what_is_open(rw: Rewriter) -> None:
    rw.declare(value(rw, "x"), [4])
    rw.declare(value(rw, "y"), [4])
    assert rw.changed
    assert ir.static_shape(value(rw, "x")) == (4,)
    graph = ir.to_proto(rw.model).graph
    told = [v.type.tensor_type.shape.dim[0].dim_value for v in (graph.input[0], graph.output[0])]
    assert told == [4, 4]


def test_declare_what_is_known_changes_nothing(rw: Rewriter) -> None:
    rw.declare(value(rw, "x"), ["M"])
    rw.declare(value(rw, "w"), [])
    assert not rw.changed
    assert ir.dims(value(rw, "x")) == ("N",)


@pytest.mark.parametrize(
    ("name", "dims", "why"),
    [("k", [], "no input or output"), ("t", [2], "no input or output"), ("x", [1, 2], "1 dimens")],
)
def test_declare_refuses(rw: Rewriter, name: str, dims: list[int], why: str) -> None:
    with pytest.raises(StructureError, match=why):
        rw.declare(value(rw, name), dims)
    assert not rw.changed


def test_declare_refuses_another_size(rw: Rewriter) -> None:
    rw.declare(value(rw, "x"), [4])
    with pytest.raises(StructureError, match="is 4, not 5"):
        rw.declare(value(rw, "x"), [5])

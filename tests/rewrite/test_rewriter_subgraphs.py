"""Verbs of the Rewriter for subgraphs and for variadic calls."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Rewriter, StructureError, ir
from graphopt.runtime.session import open_session

BRANCH = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
      y, z, w = If (c) <
        then_branch = t () => (float[2] a, float[2] b, float[2] k) <float[2] k = {1, 2}> {
          a = Relu(x) b = Add(a, k)
        },
        else_branch = e () => (float[2] d, float[2] f, float[2] h) {
          d = Neg(x) f = Abs(x) h = Exp(x)
        }
      >
    }"""
LOOP = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[2] x, int64 m) => (float[2] y) {
      y, z = Loop (m, , x, x) <
        body = b (int64 i, bool ci, float[2] s, float[2] r) => (bool co, float[2] t, float[2] u) {
          co = Identity(ci) t = Add(s, s) u = Neg(r)
        }
      >
    }"""


def node_of(model: ir.Model) -> ir.Node:
    return next(iter(model.graph))


def run(model: ir.Model, **feeds: object) -> dict[str, object]:
    with open_session(model) as session:
        return session.run({k: np.asarray(v) for k, v in feeds.items()})


def test_splice() -> None:
    model = ir.parse_text(BRANCH)
    rw, node = Rewriter(model), node_of(model)
    then = node.attributes["then_branch"].as_graph()
    results = rw.splice(node, then)
    assert [v.name for v in results] == ["a", "b", "k"]
    assert not list(then)
    assert not then.outputs
    for old, new in zip(node.outputs[:2], results, strict=False):
        rw.replace(old, new)
    rw.erase(node)
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Add"]
    found = run(model, x=np.float32([-1, 1]), c=True)
    assert np.array_equal(found["z"], np.float32([1, 3]))  # type: ignore[arg-type]


def test_splice_needs_inputs_replaced() -> None:
    model = ir.parse_text(LOOP)
    node = node_of(model)
    (body,) = ir.subgraphs(node)
    with pytest.raises(StructureError, match="%ci is an input of the subgraph and still used"):
        Rewriter(model).splice(node, body)


def test_keep_outputs() -> None:
    model = ir.parse_text(BRANCH)
    rw, node = Rewriter(model), node_of(model)
    rw.replace(node.outputs[0], rw.op("Identity", model.graph.inputs[0]))
    for graph in ir.subgraphs(node):
        rw.set_interface(graph, outputs=[graph.outputs[1]])
    rw.keep_outputs(node, [1])
    model.graph.remove(node)
    model.graph.insert_before(node_of(model), node)
    ir.verify(model)
    assert [v.name for v in node.outputs] == ["z"]
    assert node.outputs[0] is model.graph.outputs[1]
    found = run(model, x=np.float32([-1, 1]), c=False)
    assert np.array_equal(found["z"], np.float32([1, 1]))  # type: ignore[arg-type]


def test_keep_outputs_keeps_what_is_used() -> None:
    model = ir.parse_text(BRANCH)
    with pytest.raises(StructureError, match="%y is still used"):
        Rewriter(model).keep_outputs(node_of(model), [1])


def test_set_interface_and_inputs() -> None:
    model = ir.parse_text(LOOP)
    rw, node = Rewriter(model), node_of(model)
    (body,) = ir.subgraphs(node)
    rw.set_interface(body, outputs=body.outputs[:2])
    with pytest.raises(StructureError, match="%r is still used"):
        rw.set_interface(body, inputs=body.inputs[:3])
    rw.erase(list(body)[-1])
    rw.set_interface(body, inputs=body.inputs[:3])
    rw.keep_outputs(node, [0])
    rw.set_inputs(node, node.inputs[:3])
    ir.verify(model)
    assert len(node.inputs) == 3
    found = run(model, x=np.float32([1, 2]), m=np.int64(3))
    assert np.array_equal(found["y"], np.float32([8, 16]))  # type: ignore[arg-type]


def test_the_interface_of_a_model_does_not_change() -> None:
    model = ir.parse_text(LOOP)
    with pytest.raises(StructureError, match="the interface of a model"):
        Rewriter(model).set_interface(model.graph, outputs=[])

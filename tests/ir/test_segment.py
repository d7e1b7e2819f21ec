from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graphopt import ir
from graphopt.runtime import open_session

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
m (float[2,3] x, float[2,3] z) => (float[2,3] y) <float[3] w = {1.0, 2.0, 3.0}> {
  a = Relu(x)
  b = Mul(a, w)
  c = Add(b, z)
  y = Tanh(c)
}
"""
BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
m (float[2] x, float[2] z, bool c) => (float[2] y) <float[2] w = {1.0, 2.0}> {
  a = Relu(x)
  y = If(c) <
    then_branch = t () => (float[2] p) { p = Add(a, w) },
    else_branch = e () => (float[2] q) { q = Mul(a, z) }
  >
}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
m (float[2] x) => (float[2] y) <int64 n = {3}, float[2] w = {1.0, 2.0}> {
  a = Relu(x)
  y = Loop(n, , a) <body = b (int64 i, bool go, float[] s) => (bool again, float[] next) {
    again = Identity(go)
    next = Add(s, w)
  }>
}
"""


def cut(text: str, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    model = ir.parse_text(text)
    made = [v for node in model.graph for v in node.outputs]
    found = {v.name: v for v in (*model.graph.inputs, *made, *model.graph.initializers.values())}
    return ir.segment(model, [found[n] for n in inputs], [found[n] for n in outputs])


def test_nodes_between_values() -> None:
    part = cut(CHAIN, ["a", "z"], ["c"])
    assert [node.op_type for node in part.graph] == ["Mul", "Add"]
    assert ir.dims(part.graph.inputs[0]) == (2, 3)
    a, z = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    with open_session(part) as session:
        found = session.run({"a": a, "z": z})
    np.testing.assert_array_equal(found["c"], [[6, 7, 8]] * 2)


def test_weights_are_shared_and_the_model_stays_as_it_is() -> None:
    model = ir.parse_text(CHAIN)
    before = ir.dump(model)
    nodes = list(model.graph)
    part = ir.segment(model, [nodes[0].outputs[0]], [nodes[1].outputs[0]])
    assert part.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert ir.dump(model) == before
    assert list(model.graph) == nodes


def test_bodies_capture_what_is_given_and_what_is_constant() -> None:
    part = cut(BRANCH, ["a", "z", "c"], ["y"])
    a, z = np.ones(2, np.float32), np.full(2, 5, np.float32)
    with open_session(part) as session:
        np.testing.assert_array_equal(session.run({"a": a, "z": z, "c": True})["y"], [2, 3])
        np.testing.assert_array_equal(session.run({"a": a, "z": z, "c": False})["y"], [5, 5])


def test_bodies_stay_declared_as_onnx_runtime_wants_them() -> None:
    # Without the declared shape of i the loop does not start.
    with open_session(cut(LOOP, ["a"], ["y"])) as session:
        np.testing.assert_array_equal(session.run({"a": np.ones(2, np.float32)})["y"], [4, 7])


def test_an_output_may_be_given_or_constant() -> None:
    part = cut(CHAIN, ["a"], ["a", "w", "b"])
    a = np.ones((2, 3), np.float32)
    with open_session(part) as session:
        found = session.run({"a": a})
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["w"], [1, 2, 3])


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [(CHAIN, ["x"], ["c"]), (CHAIN, [], ["a"]), (BRANCH, ["a", "c"], ["y"]), (CHAIN, ["x"], [])],
    ids=["input", "all", "captured", "no output"],
)
def test_what_is_not_given(text: str, inputs: list[str], outputs: list[str]) -> None:
    with pytest.raises(ValueError, match=r"not provided|not given|[Aa]t least one"):
        cut(text, inputs, outputs)

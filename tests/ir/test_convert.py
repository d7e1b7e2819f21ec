"""Operators by their definitions; other opsets are tested with the pass that goes there."""

from __future__ import annotations

import pytest

from graphopt import ir


def only(body: str, opset: int = 18) -> ir.Node:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": {opset}, "mine": 1]> g {body}')
    (node,) = model.graph
    return node


def test_definition_with_defaults_of_attributes() -> None:
    body = ir.function_body(only("(float[2] x) => (float[2] y) { y = HardSigmoid(x) }"))
    assert body is not None
    assert [v.name for v in body.graph.inputs] == ["i0"]
    assert [v.name for v in body.graph.outputs] == ["o0"]
    alpha = body.graph.initializers["Alpha__1"]
    assert alpha.const_value is not None
    assert alpha.const_value.numpy() == pytest.approx(0.2)


@pytest.mark.parametrize(("opset", "axes"), [(13, 1), (17, 1), (18, 2)])
def test_definition_at_the_opset_of_the_model(opset: int, axes: int) -> None:
    """Reductions take axes as an input since opset 18, whatever the definition is written in."""
    node = only("(float[2,3] x) => (float[2,3] y) { y = LogSoftmax(x) }", opset)
    body = ir.function_body(node)
    assert body is not None
    assert ir.opset(body) == opset
    reduction = next(n for n in body.graph if n.op_type == "ReduceMax")
    assert len(reduction.inputs) == axes


def test_definition_that_depends_on_what_is_given() -> None:
    low = ir.function_body(only("(float[2] x, float a) => (float[2] y) { y = Clip(x, a) }"))
    high = ir.function_body(only("(float[2] x, float b) => (float[2] y) { y = Clip(x, , b) }"))
    assert low is not None
    assert high is not None
    assert [v.name for v in low.graph.inputs] == ["i0", "i1"]
    assert [v.name for v in high.graph.inputs] == ["i0", "i2"]


def test_only_outputs_that_are_there() -> None:
    text = "(float[2,3] x, float[3] s) => (float[2,3] y) { y = LayerNormalization(x, s) }"
    body = ir.function_body(only(text, 17))
    assert body is not None
    assert [v.name for v in body.graph.outputs] == ["o0"]


@pytest.mark.parametrize("call", ["y = Erf(x)", "y = mine.Op(x)", "y = Flatten(x)"])
def test_operators_without_a_definition(call: str) -> None:
    assert ir.function_body(only(f"(float[2,2] x) => (float[2,2] y) {{ {call} }}")) is None


def test_what_is_known_of_foreign_operators_survives_another_opset() -> None:
    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[2,3] x) => (float[2] y) <float[2,3] t>
        { t = mine.Op(x) y = ReduceMax<axes=[1],keepdims=0>(t) }
    """)
    got = ir.convert_opset(model, 18)
    first = next(iter(got.graph))
    assert first.op_type == "Op"
    assert ir.static_shape(first.outputs[0]) == (2, 3)

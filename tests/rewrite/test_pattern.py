"""What patterns match, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Const, Op, Var, ir
from graphopt.rewrite.pattern import match

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def last(body: str, *, weights: str = "", outs: str = "float[2,3] y") -> ir.Node:
    inits = f"<{weights}>" if weights else ""
    model = ir.parse_text(f"{HEAD}g (float[2,3] a, float[2,3] b) => ({outs}) {inits} {{ {body} }}")
    return list(model.graph)[-1]


def test_captures_are_values_arrays_and_nodes() -> None:
    x, c = Var(), Const()
    relu = Op("Relu", x)
    root = Op("Mul", relu, c)
    node = last("r = Relu(a)  y = Mul(r, w)", weights="float[3] w = {1,2,3}")
    m = match(root, node)
    assert m is not None
    assert m[x].name == "a"
    np.testing.assert_array_equal(m[c], np.array([1, 2, 3], np.float32))
    assert m[relu].op_type == "Relu"
    assert m[root] is m.root is node
    assert m.value(c).name == "w"


def test_commutative_operands_match_both_ways_round_and_others_do_not() -> None:
    x, c = Var(), Const()
    weights = "float[3] w = {1,2,3}"
    assert match(Op("Mul", x, c), last("y = Mul(w, a)", weights=weights)) is not None
    assert match(Op("Sub", x, c), last("y = Sub(w, a)", weights=weights)) is None


def test_a_failed_order_leaves_no_bindings_behind() -> None:
    x, c = Var(), Const()
    m = match(Op("Mul", x, Op("Add", x, c)), last(
        "s = Add(w, a)  y = Mul(s, a)", weights="float[3] w = {1,2,3}"
    ))  # fmt: skip
    assert m is not None
    assert m[x].name == "a"
    assert m.value(c).name == "w"


def test_a_var_used_twice_wants_the_same_value() -> None:
    x = Var()
    assert match(Op("Add", x, x), last("y = Add(a, a)")) is not None
    assert match(Op("Add", x, x), last("y = Add(a, b)")) is None


def test_interior_nodes_must_not_be_used_elsewhere() -> None:
    x = Var()
    pattern = Op("Tanh", Op("Relu", x))
    body = "r = Relu(a)  z = Neg(r)  y = Tanh(r)"
    assert match(pattern, last(body, outs="float[2,3] y, float[2,3] z")) is None
    shared = Op("Tanh", Op("Relu", x, shared=True))
    assert match(shared, last(body, outs="float[2,3] y, float[2,3] z")) is not None


def test_interior_nodes_must_not_be_graph_outputs() -> None:
    x = Var()
    node = last("r = Relu(a)  y = Tanh(r)", outs="float[2,3] y, float[2,3] r")
    assert match(Op("Tanh", Op("Relu", x)), node) is None


def test_interior_nodes_must_be_in_the_same_graph() -> None:
    model = ir.parse_text(
        HEAD
        + """g (bool c, float[2] a) => (float[2] y) {
          r = Relu(a)
          y = If(c) <then_branch = t () => (float[2] u) { u = Tanh(r) },
                     else_branch = e () => (float[2] v) { v = Neg(a) }>
        }"""
    )
    tanh = next(n for n in ir.all_nodes(model) if n.op_type == "Tanh")
    assert match(Op("Tanh", Op("Relu", Var())), tanh) is None
    assert match(Op("Tanh", Var()), tanh) is not None


def test_attributes_compare_with_schema_defaults() -> None:
    x = Var()
    assert match(Op("Softmax", x, axis=-1), last("y = Softmax(a)")) is not None
    assert match(Op("Softmax", x, axis=1), last("y = Softmax(a)")) is None
    assert match(Op("Transpose", x, perm=(1, 0)), last("y = Transpose<perm=[1,0]>(a)")) is not None
    assert match(Op("Transpose", x, perm=(0, 1)), last("y = Transpose<perm=[1,0]>(a)")) is None


def test_optional_inputs() -> None:
    x, low, high = Var(), Const(optional=True), Const(optional=True)
    pattern = Op("Clip", x, low, high)
    weights = "float six = {6}"
    m = match(pattern, last("y = Clip(a, , six)", weights=weights))
    assert m is not None
    assert m.get(low) is None
    assert m.find(low) is None
    assert m.get(high) == 6
    with pytest.raises(KeyError):
        m[low]
    assert match(Op("Clip", x, Const(), high), last("y = Clip(a, , six)", weights=weights)) is None
    assert match(Op("Clip", x, None, high), last("y = Clip(a, , six)", weights=weights)) is not None


def test_extra_inputs_need_variadic() -> None:
    x = Var()
    assert match(Op("Concat", x), last("y = Concat<axis=0>(a, b)", outs="float[4,3] y")) is None
    node = last("y = Concat<axis=0>(a, b)", outs="float[4,3] y")
    assert match(Op("Concat", x, variadic=True), node) is not None


def test_a_default_that_callers_may_override_is_not_constant() -> None:
    model = ir.parse_text(
        HEAD + "g (float[2] a, float[2] w = {1,2}) => (float[2] y) { y = Mul(a, w) }"
    )
    assert match(Op("Mul", Var(), Const()), next(iter(model.graph))) is None


def test_which_output_leads_here() -> None:
    x = Var()
    body = "p, q = Split<axis=1>(a, s)  y = Relu(q)"
    node = last(body, weights="int64[2] s = {1,2}", outs="float[2,2] y")
    assert match(Op("Relu", Op("Split", x, Const(), output=1)), node) is not None
    assert match(Op("Relu", Op("Split", x, Const(), output=0)), node) is None


def test_domains_differ() -> None:
    assert match(Op("Relu", Var(), domain="com.example"), last("y = Relu(a)")) is None

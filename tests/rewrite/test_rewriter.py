"""The Rewriter keeps the invariants."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Rewriter, ir
from graphopt.errors import StructureError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
TWO = HEAD + "g (float[2] x) => (float[2] y) { r = Relu(x)  y = Tanh(r) }"
BRANCHES = (
    HEAD
    + """g (bool c, float[2] x) => (float[2] y) {
      r = Relu(x)
      y = If(c) <then_branch = t () => (float[2] u) { u = Tanh(r) },
                 else_branch = e () => (float[2] v) { v = Neg(x) }>
    }"""
)


def nodes(model: ir.Model) -> list[ir.Node]:
    return list(model.graph)


def test_names_are_fresh_over_all_scopes() -> None:
    model = ir.parse_text(BRANCHES)
    rw = Rewriter(model)
    assert rw.fresh("u") != "u"
    assert rw.fresh("v") != "v"
    assert rw.fresh("brand_new") == "brand_new"
    assert rw.fresh("brand_new") != "brand_new"


def test_a_node_in_a_branch_cannot_shadow_an_outer_name() -> None:
    model = ir.parse_text(BRANCHES)
    tanh = next(n for n in ir.all_nodes(model) if n.op_type == "Tanh")
    rw = Rewriter(model)
    with rw.at(tanh):
        made = rw.op("Relu", tanh.inputs[0])
    rw.set_input(tanh, 0, made)
    assert made.name not in {"r", "u", "v", "x", "y"}
    ir.verify(model)


def test_replace_keeps_the_name_of_a_graph_output() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    tanh = nodes(model)[1]
    with rw.at(tanh):
        new = rw.op("Sigmoid", tanh.inputs[0])
    rw.replace(tanh.outputs[0], new)
    rw.erase(tanh)
    ir.verify(model)
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0] is new
    assert ir.static_shape(new) == (2,)


def test_replace_by_an_input_keeps_a_producer_for_the_output() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    tanh = nodes(model)[1]
    assert not rw.can_replace(tanh.outputs[0], model.graph.inputs[0])
    rw.replace(tanh.outputs[0], model.graph.inputs[0])
    rw.erase(tanh)
    ir.verify(model)
    producer = model.graph.outputs[0].producer()
    assert producer is not None
    assert producer.op_type == "Identity"


def test_replace_never_makes_a_cycle() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    relu, tanh = nodes(model)
    with rw.at(tanh):
        after = rw.op("Neg", relu.outputs[0])
    rw.replace(relu.outputs[0], after)  # "insert after": Neg goes on reading Relu
    ir.verify(model)
    assert after.producer().inputs[0] is relu.outputs[0]  # type: ignore[union-attr]
    assert tanh.inputs[0] is after


def test_types_are_never_shared() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    relu, tanh = nodes(model)
    with rw.at(tanh):
        new = rw.op("Abs", model.graph.inputs[0])
    rw.replace(relu.outputs[0], new)
    assert new.type == relu.outputs[0].type
    assert new.type is not relu.outputs[0].type
    new.dtype = ir.DataType.FLOAT16
    assert relu.outputs[0].dtype == ir.DataType.FLOAT


def test_calls_are_checked_against_the_schema() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    x = model.graph.inputs[0]
    with pytest.raises(StructureError, match="opset 17 has no operator Gelu"):
        rw.op("Gelu", x)
    with pytest.raises(StructureError, match="no attribute 'alpah'"):
        rw.op("Elu", x, alpah=1.0)
    with pytest.raises(StructureError, match="takes 1 to 1 inputs, not 2"):
        rw.op("Relu", x, x)
    rw.op("Anything", x, domain="com.example", whatever=1)


def test_erase_refuses_what_is_used() -> None:
    model = ir.parse_text(TWO)
    with pytest.raises(StructureError, match="%r is still used"):
        Rewriter(model).erase(nodes(model)[0])


def test_erasing_a_node_frees_what_its_subgraphs_used() -> None:
    model = ir.parse_text(BRANCHES)
    rw = Rewriter(model)
    relu, branch = nodes(model)
    with rw.at(branch):
        new = rw.op("Neg", model.graph.inputs[1])
    rw.replace(branch.outputs[0], new)
    rw.erase(branch)
    assert not relu.outputs[0].uses()
    ir.verify(model)


def test_constants_keep_their_dtype_and_scalars_stay_scalars() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    value = rw.const(np.float16(2.5), "k")
    tensor = ir.const(value)
    assert tensor is not None
    assert tensor.dtype == ir.DataType.FLOAT16
    assert tensor.numpy().shape == ()
    transposed = rw.const(np.arange(6, dtype=np.int64).reshape(2, 3).T, "k")
    assert transposed.name != "k"
    np.testing.assert_array_equal(ir.array(transposed), [[0, 3], [1, 4], [2, 5]])


def test_insert_after_serves_users_and_outputs() -> None:
    text = HEAD + "g (float[2] x) => (float[2] r, float[2] y) { r = Relu(x)  y = Tanh(r) }"
    model = ir.parse_text(text)
    rw = Rewriter(model)
    relu, tanh = nodes(model)
    new = rw.insert_after(relu.outputs[0], lambda v: rw.op("Neg", rw.op("Abs", v)))
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Abs", "Neg", "Tanh"]
    assert tanh.inputs[0] is new
    assert [v.name for v in model.graph.outputs] == ["r", "y"]
    assert model.graph.outputs[0] is new


def test_insert_after_an_input() -> None:
    model = ir.parse_text(TWO)
    rw = Rewriter(model)
    rw.insert_after(model.graph.inputs[0], lambda v: rw.op("Neg", v))
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["Neg", "Relu", "Tanh"]


def test_insert_after_serves_chosen_uses_only() -> None:
    model = ir.parse_text(
        HEAD + "g (float[2] x) => (float[2] y, float[2] r) "
        "{ r = Relu(x) a = Add(r, r) b = Mul(r, a) y = Sub(b, r) }"
    )
    rw = Rewriter(model)
    relu, add, mul, sub = nodes(model)
    r = relu.outputs[0]
    new = rw.insert_after(r, lambda v: rw.op("Abs", rw.op("Neg", v)), [(add, 1), (sub, 1)])
    ir.verify(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Neg", "Abs", "Add", "Mul", "Sub"]
    assert add.inputs == (r, new)
    assert mul.inputs[0] is r
    assert sub.inputs[1] is new
    # The graph output is not among the uses.
    assert model.graph.outputs[1] is r
    assert r.name == "r"
    assert rw.changed


def test_insert_after_an_input_for_some_and_for_none() -> None:
    model = ir.parse_text(HEAD + "g (float[2] x) => (float[2] y) { a = Neg(x) y = Add(a, x) }")
    rw = Rewriter(model)
    x = model.graph.inputs[0]
    neg, add = nodes(model)
    new = rw.insert_after(x, lambda v: rw.op("Abs", v), [(add, 1)])
    unused = rw.insert_after(x, lambda v: rw.op("Exp", v), [])
    ir.verify(model)
    assert neg.inputs == (x,)
    assert add.inputs[1] is new
    assert not unused.uses()
    assert {n.op_type for n in nodes(model)[:2]} == {"Abs", "Exp"}


def test_insert_after_serves_a_use_in_a_subgraph() -> None:
    model = ir.parse_text(BRANCHES)
    rw = Rewriter(model)
    relu, _ = nodes(model)
    tanh = next(n for n in ir.all_nodes(model) if n.op_type == "Tanh")
    new = rw.insert_after(relu.outputs[0], lambda v: rw.op("Abs", v), [(tanh, 0)])
    ir.verify(model)
    assert tanh.inputs == (new,)
    assert new.producer() is nodes(model)[1]


def test_undo_removes_what_nothing_uses() -> None:
    model = ir.parse_text(TWO)
    before = ir.dump(model)
    rw = Rewriter(model)
    mark = rw.mark()
    rw.op("Add", model.graph.inputs[0], rw.const(np.ones(2, np.float32)))
    rw.undo(mark)
    assert ir.dump(model) == before


def test_attributes_are_set_and_removed() -> None:
    model = ir.parse_text(HEAD + "g (float[2] x) => (float[2] y) { y = Elu<alpha=2.0>(x) }")
    rw = Rewriter(model)
    (node,) = nodes(model)
    rw.set_attr(node, alpha=3.0)
    assert ir.attr(node, "alpha") == 3.0
    rw.set_attr(node, alpha=None)
    assert ir.attr(node, "alpha") == 1.0
    assert rw.changed


@pytest.mark.parametrize(("version", "opset"), [(4, 9), (8, 15), (10, 21)])
def test_the_default_domain_is_imported_when_it_is_needed(version: int, opset: int) -> None:
    model = ir.parse_text(
        f"""<ir_version: {version}, opset_import: ["ai.onnx.ml": 1]>
        g (float[2] x) => (float[2] y) {{ y = ai.onnx.ml.Scaler<scale=[2.0],offset=[1.0]>(x) }}"""
    )
    rw = Rewriter(model)
    (y,) = model.graph.outputs
    with rw.at_end(model.graph):
        rw.op("Scaler", y, domain="ai.onnx.ml")
        assert "" not in model.graph.opset_imports
        rw.replace(y, rw.op("Relu", y))
    assert model.graph.opset_imports[""] == opset

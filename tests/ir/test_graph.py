"""What passes read off the IR: traversal, constants, attributes, shapes, what may be removed."""

from __future__ import annotations

import gc

import networkx as nx
import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import FrontendError, ir

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "private": 1, "ai.onnx.ml": 3]>'


def parse(graph: str) -> ir.Model:
    return ir.parse_text(HEAD + graph)


def node(call: str, inputs: str = "float[2,3] x") -> ir.Node:
    return parse(f"g ({inputs}) => (y) {{ y = {call} }}").graph[0]


NESTED = """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1,2}> {
    a = Neg(x)
    y = If(c) <then_branch = t () => (float[2] p) { b = Abs(a) p = If(c) <
                   then_branch = u () => (float[2] q) { q = Exp(b) },
                   else_branch = v () => (float[2] r) { r = Sqrt(b) }> },
               else_branch = e () => (float[2] s) <float[2] k = {3,4}> { s = Mul(a, k) }>
}"""


def test_traversal_is_outer_first_and_in_program_order() -> None:
    model = parse(NESTED)
    assert [g.name for g in ir.all_graphs(model)] == ["g", "t", "u", "v", "e"]
    ops = [n.op_type for n in ir.all_nodes(model)]
    assert ops == ["Neg", "If", "Abs", "If", "Exp", "Sqrt", "Mul"]
    assert [g.name for g in ir.subgraphs(model.graph[1])] == ["t", "e"]
    assert list(ir.subgraphs(model.graph[0])) == []


def test_constants() -> None:
    model = parse(NESTED)
    inner = [g.initializers["k"] for g in ir.all_graphs(model) if "k" in g.initializers]
    assert ir.array(inner[0]).tolist() == [3.0, 4.0]
    assert ir.array(model.graph.initializers["w"]).tolist() == [1.0, 2.0]
    tensor = ir.const(model.graph.initializers["w"])
    assert tensor is not None
    assert (tensor.nbytes, tensor.dtype, tuple(tensor.shape)) == (8, ir.DataType.FLOAT, (2,))
    for value in (None, model.graph.inputs[0], model.graph[0].outputs[0]):
        assert ir.const(value) is None
        assert ir.array(value) is None


def test_attributes_with_their_defaults() -> None:
    model = parse("""g (float[1,1,4,4] x) => (y, z) <float[1,1,3,3] w = {1,1,1,1,1,1,1,1,1}> {
        y = Conv<pads = [1,1,1,1], auto_pad = "NOTSET">(x, w) z = LeakyRelu(y) }""")
    conv, leaky = model.graph
    assert ir.attr(conv, "pads") == (1, 1, 1, 1)
    assert ir.attr(conv, "group") == 1
    assert ir.attr(conv, "auto_pad") == "NOTSET"
    assert ir.attr(conv, "strides") is None  # its default depends on the rank
    assert ir.attr(conv, "strides", (1, 1)) == (1, 1)
    assert ir.attr(leaky, "alpha") == pytest.approx(0.01)
    assert ir.attr(leaky, "unknown", 3) == 3


def test_defaults_follow_the_opset() -> None:
    for opset, axis in ((12, 1), (13, -1)):
        head = f'<ir_version: 7, opset_import: ["": {opset}]>'
        text = f"{head} g (float[2,3] x) => (float[2,3] y) {{ y = Softmax(x) }}"
        assert ir.attr(ir.parse_text(text).graph[0], "axis") == axis


def test_making_attributes() -> None:
    kinds = ir.AttributeType
    for value, kind in (
        (True, kinds.INT),
        (3, kinds.INT),
        (0.5, kinds.FLOAT),
        ("a", kinds.STRING),
        ([], kinds.INTS),
        ([1, 2], kinds.INTS),
        ((0.5,), kinds.FLOATS),
        (["a"], kinds.STRINGS),
        (ir.tensor(np.ones(2)), kinds.TENSOR),
    ):
        assert ir.make_attr("name", value).type == kind
    ready = ir.make_attr("name", 1)
    assert ir.make_attr("other", ready) is ready


def test_opsets() -> None:
    model = parse(NESTED)
    assert ir.opset(model) == ir.opset(model.graph) == ir.opset(model.graph[0]) == 17
    assert {ir.opset(n) for n in ir.all_nodes(model)} == {17}
    assert ir.opset(model, "com.microsoft") == 1
    assert ir.opset(model, "nowhere") == 1
    assert ir.opset(onnx_ir.Node("", "Neg", [None])) == 1


def test_shapes() -> None:
    model = parse(
        "g (float[N,3,-1] a, float[2,3] b, float c, float[] d) => (float[2,3] y) { y = Neg(b) }"
    )
    a, b, c, d = model.graph.inputs
    assert [ir.dims(v) for v in (a, b, c, None)] == [("N", 3, None), (2, 3), (), None]
    assert [ir.rank(v) for v in (a, b, c, None)] == [3, 2, 0, None]
    assert [ir.static_shape(v) for v in (a, b, c, None)] == [None, (2, 3), (), None]
    assert ir.dims(d) is None or ir.dims(d) == ()
    unknown = onnx_ir.Value(name="v")
    assert (ir.dims(unknown), ir.rank(unknown), ir.static_shape(unknown)) == (None, None, None)


@pytest.mark.parametrize(
    ("call", "deterministic", "pure"),
    [
        ("Neg(x)", True, True),
        ("RandomNormal<shape=[2]>()", False, True),
        ("RandomUniformLike(x)", False, True),
        ("Bernoulli(x)", False, True),
        ("Multinomial(x)", False, True),
        ("Dropout(x)", True, True),
        ("com.microsoft.Gelu(x)", True, True),
        ("com.microsoft.BitmaskDropout(x)", False, True),
        ("ai.onnx.ml.Normalizer(x)", True, True),
        ("private.Anything(x)", False, False),
        ("NoSuchOperator(x)", False, True),
    ],
)
def test_what_is_deterministic_and_what_is_pure(call: str, deterministic: bool, pure: bool) -> None:
    found = node(call)
    assert ir.is_deterministic(found) is deterministic
    assert ir.is_pure(found) is pure


def test_subgraphs_count() -> None:
    for inner, deterministic, pure in (
        ("RandomUniformLike(x)", False, True),
        ("private.Anything(x)", False, False),
        ("Exp(x)", True, True),
    ):  # fmt: skip
        model = parse(f"""g (float[2] x, bool c) => (float[2] y) {{
            y = If(c) <then_branch = t () => (float[2] p) {{ p = {inner} }},
                       else_branch = e () => (float[2] q) {{ q = Neg(x) }}> }}""")
        assert ir.is_deterministic(model.graph[0]) is deterministic
        assert ir.is_pure(model.graph[0]) is pure


@pytest.mark.parametrize(
    ("opset", "call", "deterministic"),
    [
        (6, "Dropout(x)", False),
        (6, "Dropout<is_test = 1>(x)", True),
        (10, "Dropout(x)", True),
        (13, "Dropout(x, ratio)", True),
        (13, "Dropout(x, ratio, no)", True),
        (13, "Dropout(x, ratio, yes)", False),
        (13, "Dropout(x, ratio, c)", False),
    ],
)
def test_dropout_draws_in_training_only(opset: int, call: str, deterministic: bool) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    infos.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    name, _, rest = call.partition("(")
    attributes = {"is_test": 1} if "is_test" in name else {}
    arguments = [a.strip() for a in rest.rstrip(")").split(",")]
    nodes.append(helper.make_node("Dropout", arguments, ["z"], **attributes))
    constants = {"ratio": np.float32(0.5), "yes": np.bool_(True), "no": np.bool_(False)}
    graph = helper.make_graph(
        nodes, "g", infos, [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=4))
    assert ir.is_deterministic(model.graph[1]) is deterministic


def test_schemas() -> None:
    relu = ir.schema("", "Relu", 17)
    assert relu is not None
    assert relu.since_version == 14
    assert ir.schema("", "Relu", 17) is relu
    assert ir.schema("private", "Relu", 17) is None
    assert ir.schema("", "NoSuchOperator", 17) is None


def test_networkx_view() -> None:
    model = parse(NESTED)
    graph = ir.to_networkx(model)
    neg, branch = model.graph
    x, c = model.graph.inputs
    assert set(graph) == {neg, branch, x, c, model.graph.initializers["w"]}
    # What a branch captures flows into the node that owns it, from any depth.
    assert set(graph.edges) == {(x, neg), (c, branch), (neg, branch)}
    assert graph.edges[neg, branch]["value"] is neg.outputs[0]
    assert list(nx.topological_sort(graph)).index(neg) < list(nx.topological_sort(graph)).index(
        branch
    )


def test_garbage_collection_is_paused_and_resumes() -> None:
    assert gc.isenabled()
    with ir.gc_paused():
        assert not gc.isenabled()
        with ir.gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with ir.gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_loading_leaves_garbage_collection_as_it_was() -> None:
    with pytest.raises(FrontendError):
        ir.load(b"")
    assert gc.isenabled()

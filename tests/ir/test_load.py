"""Whatever ONNX Runtime accepts loads, keeps its interface and computes the same when written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt import ir
from graphopt.ir.origin import origin

X = np.arange(4, dtype=np.float32) - 1.5
HEAD = '<ir_version: 8, opset_import: ["": 17]>'

Check = Callable[..., ir.Model]


def info(name: str, shape: Any = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: dict[str, Any] | None = None,
    *,
    opsets: dict[str, int] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(a), k) for k, a in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid(d, v) for d, v in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def text(graph: str, head: str = HEAD) -> onnx.ModelProto:
    return parser.parse_model(head + graph)


# Order, scopes and names ------------------------------------------------------------------------


def test_nodes_out_of_order(roundtrip: Check) -> None:
    proto = text("g (float[4] x) => (float[4] y) { y = Neg(b) b = Exp(a) a = Abs(x) }")
    model = roundtrip(proto, {"x": X})
    assert [n.op_type for n in model.graph] == ["Abs", "Exp", "Neg"]


def test_branch_captures_a_value_that_a_later_node_makes(roundtrip: Check) -> None:
    proto = text("""g (float[4] x, bool c) => (float[4] y) {
        y = If(c) <then_branch = t () => (float[4] p) { p = Add(late, x) },
                   else_branch = e () => (float[4] q) { q = Mul(late, x) }>
        late = Neg(x)
    }""")
    feeds = [{"x": X, "c": np.array(c)} for c in (True, False)]
    model = roundtrip(proto, *feeds)
    assert [n.op_type for n in model.graph] == ["Neg", "If"]


def test_capture_over_two_levels(roundtrip: Check) -> None:
    proto = text("""g (float[4] x, bool c, bool d) => (float[4] y) {
        outer = Neg(x)
        y = If(c) <
            then_branch = t () => (float[4] p) {
                middle = Abs(x)
                p = If(d) <then_branch = tt () => (float[4] u) { u = Sub(outer, middle) },
                           else_branch = te () => (float[4] v) { v = Mul(outer, x) }>
            },
            else_branch = e () => (float[4] q) { q = Identity(x) }>
    }""")
    roundtrip(proto, *({"x": X, "c": np.array(c), "d": np.array(c)} for c in (True, False)))


def test_siblings_use_the_same_names(roundtrip: Check) -> None:
    proto = text("""g (float[4] x, bool c) => (float[4] y) {
        y = If(c) <
            then_branch = b () => (float[4] y) <float[1] w = {2}> { t = Mul(x, w) y = Neg(t) },
            else_branch = b () => (float[4] y) <float[1] w = {3}> { t = Add(x, w) y = Exp(t) }>
    }""")
    model = roundtrip(proto, *({"x": X, "c": np.array(c)} for c in (True, False)))
    names = [v.name for g in ir.all_graphs(model) for n in g for v in n.outputs]
    names += [k for g in ir.all_graphs(model) for k in g.initializers]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("outer", ["input", "node output", "initializer"])
def test_parameter_of_a_body_hides_an_outer_name(roundtrip: Check, outer: str) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["n"])],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v")],
        [info("on", [], TensorProto.BOOL), info("n")],
    )
    nodes = [helper.make_node("Loop", ["k", "", "v"], ["y"], body=body)]
    inputs, constants = [info("x", [4])], {"k": np.int64(2)}
    if outer == "input":
        inputs = [info("v", [4])]
    elif outer == "node output":
        nodes.insert(0, helper.make_node("Neg", ["x"], ["v"]))
    else:
        nodes.append(helper.make_node("Add", ["x", "y"], ["z"]))
        constants["v"] = X
    outputs = [info(nodes[-1].output[0])]
    roundtrip(model_of(nodes, inputs, outputs, constants), {inputs[0].name: X})


def test_value_info_stays_only_where_nobody_can_infer_it() -> None:
    proto = text("""g (float[4] x, bool c) => (float[4] y) <float[4] known> {
        known = Abs(x)
        y = If(c) <
            then_branch = b () => (float[4] p) <float[4] t> { t = private.Op(known) p = Neg(t) },
            else_branch = b () => (float[4] q) <float[4] t> { t = private.Op(x) q = Exp(t) }>
    }""")
    proto.opset_import.add(domain="private", version=1)
    written = ir.to_proto(ir.load(proto), external=lambda _v, _p: False).graph
    assert not written.value_info
    branches = [a.g for n in written.node for a in n.attribute]
    assert [[v.name for v in g.value_info] for g in branches] == [["t"], ["t.1"]]


def test_contrib_operator_that_goes_by_names_of_its_subgraph() -> None:
    """BeamSearch and its like check the names of inputs and outputs of their subgraphs."""

    def decoder(hint: str) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node("Neg", ["input_ids"], [hint]),
                helper.make_node("Abs", [hint], ["logits"]),
            ],
            hint,
            [info("input_ids", [1])],
            [info("logits", [1])],
        )

    node = helper.make_node(
        "Search", ["input_ids"], ["y"], domain="private", encoder=decoder("a"), decoder=decoder("b")
    )
    proto = model_of([node], [info("input_ids", [1])], [info("y")], opsets={"": 17, "private": 1})
    model = ir.load(proto)
    inner = [v.name for g in ir.all_graphs(model) for v in g.inputs]
    assert inner == ["input_ids", "input_ids.1", "input_ids.2"]
    anew = ir.to_proto(model, external=lambda _v, _p: False)
    graphs = [a.g for a in anew.graph.node[0].attribute]
    assert [g.input[0].name for g in graphs] == ["input_ids", "input_ids"]
    assert [g.output[0].name for g in graphs] == ["logits", "logits"]
    assert [list(g.node[0].input) for g in graphs] == [["input_ids"], ["input_ids"]]
    assert anew.graph.node[0].input[0] == "input_ids"


def test_such_a_name_is_not_restored_where_it_would_hide_a_captured_value() -> None:
    inner = helper.make_graph(
        [helper.make_node("Neg", ["v"], ["t"])], "inner", [info("v", [4])], [info("t", [4])]
    )
    node = helper.make_node("Call", ["x"], ["y"], domain="private", body=inner)
    proto = model_of(
        [helper.make_node("Abs", ["x"], ["v"]), node, helper.make_node("Add", ["v", "y"], ["z"])],
        [info("x", [4])],
        [info("z")],
        opsets={"": 17, "private": 1},
    )
    model = ir.load(proto)
    (body,) = ir.subgraphs(model.graph[1])
    body[0].replace_input_with(0, model.graph[0].outputs[0])  # now the body captures the outer v
    out = ir.to_proto(model).graph.node[1].attribute[0].g
    assert out.input[0].name == "v.1"
    assert list(out.node[0].input) == ["v"]


def test_loop_with_trip_count_condition_state_capture_and_scan_output(roundtrip: Check) -> None:
    proto = text("""g (float[4] x, int64 k, bool go) => (float[4] y, float[n,4] z) {
        w = Neg(x)
        y, z = Loop(k, go, x) <body =
            b (int64 i, bool c, float[4] s) => (bool on, float[4] r, float[4] o) {
            on = Identity(c) r = Add(s, w) o = Abs(r)
        }>
    }""")
    feeds = [
        {"x": X, "k": np.array(k), "go": np.array(g)} for k, g in ((3, True), (0, True), (2, False))
    ]
    roundtrip(proto, *feeds)


def test_scan_with_an_outer_value(roundtrip: Check) -> None:
    proto = text("""g (float[4] s, float[3,4] x) => (float[4] y, float[3,4] z) {
        w = Neg(s)
        y, z = Scan(s, x) <num_scan_inputs = 1, body =
            b (float[4] p, float[4] q) => (float[4] r, float[4] o) {
            t = Add(p, q) r = Add(t, w) o = Abs(r)
        }>
    }""")
    roundtrip(proto, {"s": X, "x": np.arange(12, dtype=np.float32).reshape(3, 4)})


# Interfaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [[-1], [""], [None], ["N"], ["N + 1"], [-1, -1], None])
def test_dims_as_exporters_write_them(roundtrip: Check, dims: Any) -> None:
    x = X.reshape([4] + [1] * (len(dims or [0]) - 1))
    proto = model_of([helper.make_node("Neg", ["x"], ["y"])], [info("x", dims)], [info("y", dims)])
    model = roundtrip(proto, {"x": x})
    expected = None if dims is None else tuple(d if d not in (-1, "") else None for d in dims)
    assert ir.dims(model.graph.inputs[0]) == expected


def test_denotations_and_documentation_of_the_interface(roundtrip: Check) -> None:
    proto = text("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    x = proto.graph.input[0]
    x.doc_string, x.type.denotation = "what it is", "IMAGE"
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    roundtrip(proto, {"x": X})


def test_output_that_is_an_input(roundtrip: Check) -> None:
    roundtrip(model_of([], [info("x", [4])], [info("x", [4])]), {"x": X})


def test_output_that_is_an_initializer(roundtrip: Check) -> None:
    roundtrip(model_of([], [], [info("w", [4])], {"w": X}), {})


def test_value_listed_twice_as_output(roundtrip: Check) -> None:
    proto = model_of([helper.make_node("Neg", ["x"], ["y"])], [info("x", [4])], [info("y")] * 2)
    model = roundtrip(proto, {"x": X})
    assert [v.name for v in model.graph.outputs] == ["y", "y"]


def test_graphs_that_compute_nothing() -> None:
    for proto in (model_of([], [], []), model_of([], [info("x", [4])], [])):
        model = ir.load(proto)  # ONNX Runtime refuses to run it, but it is a model
        assert ir.opaque(model) is None
        assert ir.to_proto(model, external=lambda _v, _p: False) == proto


def test_ir_version_3_lists_initializers_as_inputs(roundtrip: Check) -> None:
    proto = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [info("x", [4]), info("w", [4])],
        [info("y", [4])],
        {"w": X},
        opsets={"": 8},
        ir_version=3,
    )
    model = roundtrip(proto, {"x": X})
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert ir.const(model.graph.initializers["w"]) is not None
    assert ir.remarks(model) == []


def test_ir_version_4_lets_callers_override_initializers(roundtrip: Check) -> None:
    proto = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [info("x", [4]), info("w", [4])],
        [info("y", [4])],
        {"w": X},
    )
    model = roundtrip(proto, {"x": X}, {"x": X, "w": X * 3})
    assert [v.name for v in model.graph.inputs] == ["x", "w"]
    assert [v.name for v in ir.inputs(model)] == ["x"]
    assert ir.const(model.graph.initializers["w"]) is None
    assert "1 inputs have default values" in ir.remarks(model)[0]


def test_version_without_opsets(roundtrip: Check) -> None:
    proto = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [4])], [info("y", [4])])
    proto.ir_version = 2
    del proto.opset_import[:]
    model = ir.load(proto)
    assert ir.opset(model) == 1
    anew = ir.to_proto(model, external=lambda _v, _p: False)
    assert [(o.domain, o.version) for o in anew.opset_import] == [("", 1)]


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_old_opsets_are_left_as_they_are(opset: int) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], broadcast=1, axis=0)]
    proto = model_of(
        nodes, [info("x", [4, 4]), info("w", [4])], [info("y", [4, 4])], {"w": X},
        opsets={"": opset}, ir_version=3,
    )  # fmt: skip
    model = ir.load(proto)
    assert ir.opaque(model) is None
    assert ir.to_proto(model, external=lambda _v, _p: False).graph.node == proto.graph.node


# Operators and domains --------------------------------------------------------------------------


def test_domain_by_its_long_name(roundtrip: Check) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], domain="ai.onnx")
    proto = model_of([node], [info("x", [4])], [info("y", [4])], opsets={"ai.onnx": 17})
    model = roundtrip(proto, {"x": X})
    assert model.graph[0].domain == ""
    assert ir.opset(model) == 17


def test_contrib_operator_without_an_import(roundtrip: Check) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    roundtrip(model_of([node], [info("x", [4])], [info("y", [4])]), {"x": X})


def test_operator_that_nobody_knows() -> None:
    node = helper.make_node("Mystery", ["x", ""], ["y", ""], domain="private", level=3, names=["a"])
    proto = model_of([node], [info("x", ["N"])], [info("y", ["N"])])
    model = ir.load(proto)
    assert ir.opaque(model) is None
    (kept,) = model.graph
    assert (kept.domain, kept.op_type, ir.attr(kept, "level")) == ("private", "Mystery", 3)
    assert ir.dims(kept.outputs[0]) == ("N",)
    anew = ir.to_proto(model, external=lambda _v, _p: False)
    assert anew.graph.node[0].attribute == proto.graph.node[0].attribute
    assert anew.graph.output == proto.graph.output


def test_a_node_that_makes_nothing() -> None:
    """ONNX Runtime does not even ask whether it has the inputs it needs."""
    branch = helper.make_graph([], "b", [], [info("w", [1])])
    branch.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    proto = text("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    proto.graph.node.append(helper.make_node("If", [], [], then_branch=branch, else_branch=branch))
    model = ir.load(proto)
    assert ir.opaque(model) is None
    assert [n.op_type for n in model.graph] == ["Neg", "If"]


def test_default_of_an_input_with_a_symbolic_dim(roundtrip: Check) -> None:
    inputs = [info("x", [4]), info("w", ["N"])]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    proto = model_of([node], inputs, [info("y", [4])], {"w": X[:1]})
    model = roundtrip(proto, {"x": X}, {"x": X, "w": X})
    assert ir.dims(model.graph.inputs[1]) == ("N",)


def test_absent_outputs_of_operators_that_count_them_get_names() -> None:
    """Split into two halves of which one is unused stays a Split into two halves."""
    proto = model_of(
        [helper.make_node("Split", ["x"], ["a", ""])],
        [info("x", [4])],
        [info("a")],
        opsets={"": 13},
    )
    model = ir.load(proto)
    (node,) = ir.to_proto(model, external=lambda _v, _p: False).graph.node
    assert node.output[0] == "a"
    assert node.output[1]
    assert ir.static_shape(model.graph.outputs[0]) == (2,)


def test_absent_optional_outputs_stay_absent(roundtrip: Check) -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", ""]),
        helper.make_node("RNN", ["d", "w", "r"], ["", "h"], hidden_size=1),
    ]
    weights = {"w": np.ones((1, 1, 4), np.float32), "r": np.ones((1, 1, 1), np.float32)}
    proto = model_of(nodes, [info("x", [1, 1, 4])], [info("h")], weights)
    model = roundtrip(proto, {"x": X.reshape(1, 1, 4)})
    assert not model.graph[0].outputs[1].name
    assert not model.graph[1].outputs[0].name


def test_optional_inputs_in_the_middle(roundtrip: Check) -> None:
    proto = text("""g (float[4] x) => (float[4] y) <float hi = {0.5}> { y = Clip(x, , hi) }""")
    model = roundtrip(proto, {"x": X})
    assert model.graph[0].inputs[1] is None


# Types ------------------------------------------------------------------------------------------


def test_sequences_and_optionals(roundtrip: Check) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["N"])
    grown = helper.make_tensor_sequence_value_info("t", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceInsert", ["s", "x"], ["t"])
    roundtrip(model_of([node], [sequence, info("x", [4])], [grown]), {"s": [X, X[:2]], "x": X})
    optional = helper.make_value_info(
        "o", helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    )
    node = helper.make_node("OptionalHasElement", ["o"], ["y"])
    has = model_of([node], [optional], [info("y", [], TensorProto.BOOL)], opsets={"": 18})
    roundtrip(has, {"o": X}, {"o": None})


def test_map_as_output(roundtrip: Check) -> None:
    """What classifiers of scikit-learn end with."""
    maps = helper.make_value_info(
        "m",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            )
        ),
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("ZipMap", ["a"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[7, 9]),
    ]
    proto = model_of(nodes, [info("x", ["N", 2])], [maps], opsets={"": 17, "ai.onnx.ml": 1})
    model = roundtrip(proto, {"x": X.reshape(2, 2)})
    assert ir.dims(model.graph[0].outputs[0]) == ("N", 2)
    ir.infer_shapes(model)
    ir.dump(model)


def test_strings(roundtrip: Check) -> None:
    proto = model_of(
        [helper.make_node("Concat", ["x", "w"], ["y"], axis=0)],
        [info("x", ["N"], TensorProto.STRING)],
        [info("y", None, TensorProto.STRING)],
        {"w": np.array(["ä", "", "long enough"], object)},
    )
    model = roundtrip(proto, {"x": np.array(["a", "b"], object)})
    assert ir.array(model.graph.initializers["w"]).tolist() == [b"\xc3\xa4", b"", b"long enough"]


SMALL_TYPES = [
    ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn,
    ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16,
    np.float16, np.bool_, np.complex64, np.uint64,
]  # fmt: skip


@pytest.mark.parametrize("count", [0, 3, 4])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", SMALL_TYPES, ids=lambda d: np.dtype(d).name)
def test_initializers_of_rare_types(dtype: Any, raw: bool, count: int) -> None:
    data = np.array([1, 0, 1, 1][:count]).astype(dtype)
    kind = int(ir.DataType.from_numpy(data.dtype))
    if raw:
        tensor = onnx_ir.to_proto(ir.tensor(data, name="w"))
    else:
        wide = data.astype(np.complex64 if data.dtype.kind == "c" else np.float32)
        try:
            tensor = helper.make_tensor("w", kind, [count], wide.tolist())
        except (KeyError, TypeError, ValueError):
            pytest.skip("this version of onnx cannot make such a tensor")
    node = helper.make_node("Identity", ["w"], ["y"])
    proto = model_of([node], [], [info("y", [count], kind)], opsets={"": 21}, ir_version=10)
    proto.graph.initializer.append(tensor)
    model = ir.load(proto)
    assert ir.opaque(model) is None
    (got,) = ir.to_proto(model, external=lambda _v, _p: False).graph.initializer
    assert (got.data_type, list(got.dims)) == (kind, [count])
    assert onnx_ir.from_proto(got).numpy().tobytes() == data.tobytes()
    read = ir.array(model.graph.initializers["w"])
    assert (read.dtype, read.tobytes()) == (data.dtype, data.tobytes())


# Constants --------------------------------------------------------------------------------------

CONSTANTS: list[tuple[str, Any, Any]] = [
    ("value", numpy_helper.from_array(X), X),
    ("value_float", 1.5, np.float32(1.5)),
    ("value_floats", [1.5, 2.5], np.array([1.5, 2.5], np.float32)),
    ("value_floats", [], np.array([], np.float32)),
    ("value_int", 3, np.int64(3)),
    ("value_ints", [3, -4], np.array([3, -4])),
    ("value_ints", [], np.array([], np.int64)),
    ("value_string", "ab", np.array(b"ab", object)),
    ("value_strings", ["a", ""], np.array([b"a", b""], object)),
]


@pytest.mark.parametrize(
    ("name", "value", "expected"), CONSTANTS, ids=lambda v: str(v)[:14].strip()
)
def test_every_form_of_constant(roundtrip: Check, name: str, value: Any, expected: Any) -> None:
    kinds = {"value_floats": onnx.AttributeProto.FLOATS, "value_ints": onnx.AttributeProto.INTS}
    node = helper.make_node("Constant", [], ["k"])
    node.attribute.append(helper.make_attribute(name, value, attr_type=kinds.get(name)))
    kind = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "O": TensorProto.STRING}[
        expected.dtype.kind
    ]
    proto = model_of(
        [node, helper.make_node("Identity", ["k"], ["y"])], [], [info("y", None, kind)]
    )
    model = roundtrip(proto, {})
    assert [n.op_type for n in model.graph] == ["Identity"]
    got = ir.array(model.graph.initializers["k"])
    assert (got.shape, got.tolist()) == (expected.shape, expected.tolist())


def test_constant_as_graph_output_stays_a_node(roundtrip: Check) -> None:
    proto = text(
        "g () => (float[2] k, float[2] y) { k = Constant<value_floats=[1.0, 2.0]>() y = Neg(k) }"
    )
    model = roundtrip(proto, {})
    assert [n.op_type for n in model.graph] == ["Constant", "Neg"]
    assert ir.array(model.graph.outputs[0]).tolist() == [1.0, 2.0]


def test_constant_as_output_of_a_branch(roundtrip: Check) -> None:
    proto = text("""g (bool c) => (float[N] y) {
        y = If(c) <then_branch = t () => (float[2] p) { p = Constant<value_floats=[1.0, 2.0]>() },
                   else_branch = e () => (float[1] q) <float[1] q = {3}> {}>
    }""")
    roundtrip(proto, *({"c": np.array(c)} for c in (True, False)))


def test_constant_that_a_branch_captures(roundtrip: Check) -> None:
    proto = text("""g (float[2] x, bool c) => (float[2] y) {
        k = Constant<value_floats=[1.0, 2.0]>()
        y = If(c) <then_branch = t () => (float[2] p) { p = Add(x, k) },
                   else_branch = e () => (float[2] q) { q = Mul(x, k) }>
    }""")
    roundtrip(proto, *({"x": X[:2], "c": np.array(c)} for c in (True, False)))


def test_initializers_of_one_name(roundtrip: Check) -> None:
    """ONNX Runtime warns and takes the last."""
    proto = text(
        "g (float[1] x) => (float[1] y) <float[1] w = {1}, float[1] w = {2}> { y = Add(x, w) }"
    )
    model = roundtrip(proto, {"x": X[:1]})
    assert ir.array(model.graph.initializers["w"]).tolist() == [2.0]


def test_initializer_that_nothing_uses(roundtrip: Check) -> None:
    proto = text("g (float[1] x) => (float[1] y) <float[1] w = {1}> { y = Neg(x) }")
    assert "w" in roundtrip(proto, {"x": X[:1]}).graph.initializers


# What is not computed ---------------------------------------------------------------------------


def test_annotations_survive_being_written(roundtrip: Check) -> None:
    proto = model_of(
        [helper.make_node("Neg", ["x"], ["y"], name="n", doc_string="of node")],
        [info("x", [4])], [info("y", [4])], {"w": X}, opsets={"": 21}, ir_version=10,
    )  # fmt: skip
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string, proto.graph.doc_string = 7, "of model", "of graph"
    proto.graph.initializer[0].doc_string = "of tensor"
    for holder in (proto, proto.graph, proto.graph.node[0]):
        holder.metadata_props.add(key="key", value=type(holder).__name__)
    note = proto.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    if "configuration" in onnx.ModelProto.DESCRIPTOR.fields_by_name:  # since onnx 1.18
        proto.ir_version = 11
        proto.configuration.add(name="two", num_devices=2)
        proto.graph.node[0].device_configurations.add(configuration_id="two")
    model = roundtrip(proto, {"x": X})
    for same in (model, ir.clone(model)):
        assert ir.to_proto(same, external=lambda _v, _p: False) == proto


def test_clone_shares_weights_and_nothing_else() -> None:
    model = ir.parse_text(
        HEAD + "g (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }"
    )
    copy = ir.clone(model)
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert ir.to_proto(copy) is ir.to_proto(model)
    copy.graph[0].replace_input_with(1, copy.graph.inputs[0])
    origin(copy).remarks.append("only here")
    origin(copy).inputs.clear()
    assert ir.dump(model) != ir.dump(copy)
    assert ir.remarks(model) == []
    assert list(origin(model).inputs) == ["x"]


@pytest.mark.parametrize("change", ["domain", "op_type", "output", "input", "weight", "attribute"])
def test_a_changed_model_is_not_taken_for_its_source(change: str) -> None:
    model = ir.parse_text(
        HEAD + "g (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }"
    )
    source = ir.to_proto(model)
    node = model.graph[0]
    if change == "input":
        node.replace_input_with(1, model.graph.inputs[0])
    elif change == "weight":
        model.graph.initializers["w"].const_value = ir.tensor(X)
    elif change == "output":
        node.outputs[0].name = "z"
    elif change == "attribute":
        node.attributes["axis"] = ir.make_attr("axis", 0)
    else:
        setattr(node, change, "other")
    assert ir.to_proto(model) is not source
    assert ir.to_proto(model) != source


def test_sources(tmp_path: Any) -> None:
    proto = text("g (float[4] x) => (float[4] y) { t = Abs(x) y = Neg(t) }")
    data = proto.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    loaded = ir.load(path)
    for source in (str(path), data, bytearray(data), memoryview(data), proto, loaded):
        assert ir.dump(ir.load(source)) == ir.dump(loaded)
    assert ir.load(loaded) is not loaded


def test_an_onnx_ir_model_is_copied_and_keeps_its_interface() -> None:
    """Here with its nodes out of order, which onnx_ir cannot clone."""
    proto = text("""g (float[N] x) => (float[k] y) {
        y = Neg(b) b = Mul(x, a) a = Constant<value_float=2.0>() }""")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch size"
    source = onnx_ir.from_proto(proto)
    before = onnx_ir.to_proto(source).SerializeToString(deterministic=True)
    model = ir.load(source)
    assert [n.op_type for n in model.graph] == ["Mul", "Neg"]
    assert onnx_ir.to_proto(source).SerializeToString(deterministic=True) == before
    out = ir.to_proto(model)
    assert out.graph.input == onnx_ir.to_proto(source).graph.input
    assert out.graph.output == onnx_ir.to_proto(source).graph.output


def test_absent_inputs_at_the_end_are_dropped() -> None:
    proto = ir.to_proto(
        ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[2] x, int64[2] pads) => (float[4] y, float[2] z, float[2] w)
        { y = Pad(x, pads) z = Clip(x) w = mine.Op(x) }
        """)
    )
    for node in proto.graph.node:
        node.input.append("")
    model = ir.load(proto)
    assert [len(node.inputs) for node in model.graph] == [2, 1, 2]
    assert ir.to_proto(model).graph.node[0].input[-1] == ""  # as it was read
    ir.verify(model)

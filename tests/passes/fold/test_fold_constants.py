from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt.passes.fold._evaluate as evaluate
from graphopt import Exactness, PassManager, ir
from graphopt.errors import RuntimeUnavailable
from graphopt.passes.fold import FoldConstants
from graphopt.testing import assert_equivalent, check_pass

HEAD = '<ir_version: 9, opset_import: ["": 19]>\n'
LARGER = "fold-constant: the result is larger than what computes it"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of nodes of each evaluation."""
    seen: list[int] = []
    original = evaluate.open_session

    def counting(model: ir.Model) -> Any:
        seen.append(sum(1 for _ in model.graph))
        return original(model)

    monkeypatch.setattr(evaluate, "open_session", counting)
    return seen


def test_everything_in_one_session(sessions: list[int]) -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y)
        <float[1] a = {2}, float[1] b = {3}, int64[1] i = {5}, float[1] k = {7}> {
          c = Mul(a, b)
          d = Exp(c)
          e = Cast<to = 1>(i)
          s = Add(x, d)
          t = Mul(s, e)
          y = Sub(t, k)
        }""",
        """
        graph(%x: float[N]) {
          const %d.1: float[1]
          const %e.2: float[1]
          const %k: float[1]
          %s = Add(%x, %d.1)
          %t = Mul(%s, %e.2)
          %y = Sub(%t, %k)
          return %y
        }""",
    )
    assert sessions == [3]


def test_no_session_where_there_is_nothing_to_do(sessions: list[int]) -> None:
    text = "g (float[N] x) => (float[N] y) <float[1] a = {2}> { s = Add(x, a) y = Exp(s) }"
    check_pass(FoldConstants(), HEAD + text, None)
    assert sessions == []


def test_a_graph_output_becomes_a_constant_node() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y, float[1] z)
        <float[1] a_rather_long_name = {2}, float[1] another_rather_long_name = {3}> {
          z = Mul(a_rather_long_name, another_rather_long_name)
          y = Add(x, z)
        }""",
        """
        graph(%x: float[N]) {
          %z = Constant() {value=<float[1]>}
          %y = Add(%x, %z)
          return %y, %z
        }""",
    )


def test_an_identity_that_names_an_output_stays() -> None:
    text = "g (float[N] x) => (float[N] y, float[1] z) <float[1] a = {2}>"
    check_pass(FoldConstants(), HEAD + text + "{ z = Identity(a) y = Add(x, z) }", None)


def test_growth_is_declined() -> None:
    for text in (
        "<float[1] a = {2}, int64[1] n = {9999}> { c = Expand(a, n) d = Exp(c) y = Add(x, d) }",
        "<float[1] a = {2}, int64[1] n = {9999}> { d = Tile(a, n) y = Add(x, d) }",
        "<int64[1] n = {9999}> { d = ConstantOfShape(n) y = Add(x, d) }",
        "<float a = {0}, float b = {9999}, float c = {1}> { d = Range(a, b, c) y = Add(x, d) }",
    ):
        model = HEAD + "g (float[1] x) => (float[9999] y)" + text
        result = check_pass(FoldConstants(), model, None)
        assert set(result.report.passes[0].declined) == {LARGER}


def test_growth_on_request() -> None:
    check_pass(
        FoldConstants(max_growth=40_000),
        HEAD
        + """
        g (float[1] x) => (float[9999] y) <float[1] a = {2}, int64[1] n = {9999}> {
          c = Expand(a, n)
          d = Exp(c)
          y = Add(x, d)
        }""",
        """
        graph(%x: float[1]) {
          const %d.1: float[9999]
          %y = Add(%x, %d.1)
          return %y
        }""",
    )


def test_what_grows_and_shrinks_again() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] a = {2}, int64[1] n = {9999}> {
          c = Expand(a, n)
          d = ReduceMean<keepdims = 1>(c)
          y = Add(x, d)
        }""",
        """
        graph(%x: float[N]) {
          const %d.1: float[1]
          %y = Add(%x, %d.1)
          return %y
        }""",
    )


def test_the_cut_is_where_the_chain_is_smallest() -> None:
    # Neg(Exp(a)) is one number; what is made of it is not.
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[1] x) => (float[9999] y) <float[1] a = {2}, int64[1] n = {9999}> {
          b = Exp(a)
          c = Neg(b)
          d = Expand(c, n)
          e = Sin(d)
          y = Add(x, e)
        }""",
        """
        graph(%x: float[1]) {
          const %c.1: float[1]
          const %n: int64[1] = [9999]
          %d = Expand(%c.1, %n)
          %e = Sin(%d)
          %y = Add(%x, %e)
          return %y
        }""",
    )


def weights(*names: str) -> list[TensorProto]:
    rng = np.random.default_rng(0)
    return [numpy_helper.from_array(rng.random((64, 64), np.float32), n) for n in names]


def with_weights(names: list[str], nodes: list[onnx.NodeProto], *more: TensorProto) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])],
        [*weights(*names), *more],
    )
    imports = [helper.make_opsetid("", 17)]
    return ir.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def folded(model: ir.Model, **options: Any) -> list[str]:
    """Operators that are left."""
    before = ir.nbytes(model)
    result = PassManager(FoldConstants(**options), objective=None, on_mismatch="raise").run(model)
    assert_equivalent(model, result.model, Exactness.BITWISE)
    if not options:
        assert ir.nbytes(result.model) <= before
    return [node.op_type for node in result.model.graph]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def test_weight_that_is_used_elsewhere_too() -> None:
    transpose = node("Transpose", "w", "t")
    assert folded(with_weights(["w"], [transpose, node("MatMul", "x t", "y")])) == ["MatMul"]
    shared = [transpose, node("MatMul", "x t", "z"), node("MatMul", "z w", "y")]
    assert folded(with_weights(["w"], shared)) == ["Transpose", "MatMul", "MatMul"]
    # Growing is all right where something else shrinks, but not by a whole weight.
    more = [
        node("Reshape", "v first", "u"),
        node("Gather", "u zero", "g"),
        node("Add", "y0 g", "y"),
    ]
    shared[-1] = node("MatMul", "z w", "y0")
    rows = numpy_helper.from_array(np.int64([64 * 64]), "first")
    zero = numpy_helper.from_array(np.int64([0]), "zero")
    left = folded(with_weights(["w", "v"], [*shared, *more], rows, zero))
    assert left == ["Transpose", "MatMul", "MatMul", "Add"]


def test_weight_in_parts() -> None:
    # As exporters reorder the gates of an LSTM: no part alone is worth storing, all together are.
    bounds = [numpy_helper.from_array(np.int64([n]), f"n{n}") for n in (0, 16, 48, 64)]
    nodes = [
        node("Slice", "w n0 n16 n0", "a"),
        node("Slice", "w n48 n64 n0", "b"),
        node("Slice", "w n16 n48 n0", "c"),
        node("Concat", "a b c", "d", axis=0),
        node("MatMul", "x d", "y"),
    ]
    assert folded(with_weights(["w"], nodes, *bounds)) == ["MatMul"]


def test_weight_of_which_two_parts_are_used_and_the_rest_stays() -> None:
    # The weight cannot go, since Tile of it would be larger, so parts of it are no gain.
    repeats = numpy_helper.from_array(np.int64([1, 9]), "nine")
    bounds = [numpy_helper.from_array(np.int64([n]), f"n{n}") for n in (0, 32)]
    nodes = [
        node("Tile", "w nine", "t"),
        node("MatMul", "x t", "m"),
        node("Slice", "w n0 n32 n0", "a"),
        node("Concat", "a a", "b", axis=0),
        node("MatMul", "x b", "z"),
        node("Concat", "m z", "y", axis=1),
    ]
    left = folded(with_weights(["w"], nodes, repeats, *bounds))
    assert left == [n.op_type for n in nodes]


def test_cast_to_a_wider_type_would_double_the_file() -> None:
    half = numpy_helper.from_array(np.ones((64, 64), np.float16), "h")
    nodes = [node("Cast", "h", "f", to=1), node("MatMul", "x f", "y")]
    assert folded(with_weights([], nodes, half)) == ["Cast", "MatMul"]
    assert folded(with_weights([], nodes, half), max_growth=10_000) == ["MatMul"]


def test_too_much_to_read() -> None:
    nodes = [node("Transpose", "w", "t"), node("MatMul", "x t", "y")]
    assert folded(with_weights(["w"], nodes), max_input=64 * 64 * 4 + 100) == ["MatMul"]
    assert folded(with_weights(["w"], nodes), max_input=64 * 64 * 4 - 1) == ["Transpose", "MatMul"]


def test_sizes_that_only_computing_tells(sessions: list[int]) -> None:
    # NonZero has as many columns as there are non-zero elements.
    model = (
        HEAD
        + """
        g (int64[1] x) => (int64[M,K] y)
        <float[1] a = {2}, int64[1] n = {9999}, int64[1] few = {3}> {
          b = Expand(a, n)
          c = NonZero(b)
          d = Expand(a, few)
          e = NonZero(d)
          f = Add(x, c)
          g = Add(x, e)
          y = Concat<axis = 1>(f, g)
        }"""
    )
    result = PassManager(FoldConstants(), on_mismatch="raise").run(ir.parse_text(model))
    assert [n.op_type for n in result.model.graph] == ["Expand", "NonZero", "Add", "Add", "Concat"]
    assert len(sessions) <= 2


def test_subgraphs() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) <float[1] outer = {5}> {
          k = Exp(outer)
          z = If (c) <
            then_branch = t () => (float[N] a) { m = Neg(k) a = Add(x, m) },
            else_branch = e () => (float[N] b) <float[1] inner = {1}> {
              d = Neg(inner)
              b = Add(x, d)
            }
          >
          y = Add(z, k)
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          const %k.1: float[1]
          %z = If(%c)
            else_branch:
              graph() {
                const %d.3: float[1]
                %b = Add(%x, %d.3)
                return %b
              }
            then_branch:
              graph() {
                const %m.2: float[1]
                %a = Add(%x, %m.2)
                return %a
              }
          %y = Add(%z, %k.1)
          return %y
        }""",
        data=[{"x": np.ones(3, np.float32), "c": np.bool_(c)} for c in (False, True)],
    )


def test_control_flow_that_depends_on_constants_only() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] k = {1}, bool c = {1}, int64 m = {3}> {
          z = If (c) <
            then_branch = t () => (float[1] a) { a = Exp(k) },
            else_branch = e () => (float[1] b) <float[1] j = {1}> { d = Neg(j) b = Add(k, d) }
          >
          w = Loop (m, , z) <
            body = l (int64 i, bool ci, float[1] s) => (bool co, float[1] t) {
              co = Identity(ci) t = Add(s, k)
            }
          >
          y = Add(x, w)
        }""",
        """
        graph(%x: float[N]) {
          const %w.1: float[1]
          %y = Add(%x, %w.1)
          return %y
        }""",
    )


def test_a_loop_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_SECONDS", 0.2)
    model = (
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] k = {1}, bool yes = {1}> {
          w = Loop ( , yes, k) <
            body = l (int64 i, bool ci, float[1] s) => (bool co, float[1] t) {
              co = Identity(ci) t = Add(s, k)
            }
          >
          y = Add(x, w)
        }"""
    )
    result = check_pass(FoldConstants(), model, None, numbers=False)
    assert result.report.passes[0].declined == {"fold-constant: onnxruntime refuses Loop": 1}


def test_division_by_zero() -> None:
    # It kills the process. One divisor is a constant, another one has to be computed first.
    model = (
        HEAD
        + """
        g (int64[N] x) => (int64[N] y, int64[N] z, int64[N] w)
        <int64[1] k = {7}, int64[1] zero = {0}, int64[1] two = {2}> {
          a = Neg(zero)
          b = Div(k, a)
          y = Add(x, b)
          c = Mod(k, zero)
          z = Add(x, c)
          d = Add(two, two)
          e = Div(k, d)
          w = Add(x, e)
        }"""
    )
    result = PassManager(FoldConstants(), on_mismatch="raise").run(ir.parse_text(model))
    assert [n.op_type for n in result.model.graph if n.op_type in ("Div", "Mod")] == ["Div", "Mod"]
    assert result.report.passes[0].declined["fold-constant: it would divide by zero"] == 1
    w = result.model.graph.outputs[2].producer()
    assert w is not None
    assert np.array_equal(ir.array(w.inputs[1]), [1])  # type: ignore[arg-type]


def test_division_by_zero_in_a_branch() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (int64[1] x) => (int64[1] y) <int64[1] k = {7}, int64[1] zero = {0}, bool c = {1}> {
          a = If (c) <
            then_branch = t () => (int64[1] p) { p = Div(k, zero) },
            else_branch = e () => (int64[1] q) { q = Neg(k) }
          >
          y = Add(x, a)
        }""",
        None,
        numbers=False,
    )


def test_quantization_stays() -> None:
    text = (
        HEAD
        + """
        g (float[N] x) => (float[N] y) <int8[4] w = {1, 2, 3, 4}, float s = {2}> {
          d = DequantizeLinear(w, s)
          y = Add(x, d)
        }"""
    )
    check_pass(FoldConstants(), text, None)
    check_pass(
        FoldConstants(quantization=True),
        text,
        """
        graph(%x: float[N]) {
          const %d.1: float[4]
          %y = Add(%x, %d.1)
          return %y
        }""",
    )


def test_random_and_training_operators_stay() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] a = {2}, float r = {0.5}, bool on = {1}> {
          b = RandomNormalLike(a)
          c = Dropout(a, r, on)
          d = Bernoulli(a)
          e = Add(b, c)
          f = Add(e, d)
          y = Add(x, f)
        }""",
        None,
        numbers=False,
    )


def test_default_values_of_inputs_stay() -> None:
    text = "g (float[N] x, float[1] a = {2}) => (float[N] y) { b = Exp(a) y = Add(x, b) }"
    check_pass(FoldConstants(), HEAD + text, None)


def test_unknown_operators_stay() -> None:
    check_pass(
        FoldConstants(),
        """
        <ir_version: 9, opset_import: ["": 19, "custom": 1]>
        g (float[N] x) => (float[N] y) <float[1] a = {2}> {
          b = custom.Mystery(a)
          c = Exp(b)
          y = Add(x, c)
        }""",
        None,
        numbers=False,
    )


def test_sequences_inside() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] a = {2}, int64 zero = {0}> {
          s = SequenceConstruct(a, a)
          b = SequenceAt(s, zero)
          y = Add(x, b)
        }""",
        """
        graph(%x: float[N]) {
          const %b.1: float[1]
          %y = Add(%x, %b.1)
          return %y
        }""",
    )


def test_a_sequence_is_no_constant() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (int64 i) => (float[1] y) <float[1] a = {2}, float[1] b = {3}> {
          s = SequenceConstruct(a, b)
          y = SequenceAt(s, i)
        }""",
        None,
        data=[{"i": np.int64(1)}],
        seeds=(),
    )


def test_strings() -> None:
    text = '<ir_version: 9, opset_import: ["": 21]> g (string[N] x) => (string[K] y)'
    text += '<string[2] a = {"é", "ho"}> { b = StringConcat(a, a) y = Concat<axis = 0>(x, b) }'
    result = PassManager(FoldConstants(), on_mismatch="raise").run(ir.parse_text(text))
    (last,) = result.model.graph
    tensor = ir.const(last.inputs[1])
    assert isinstance(tensor, ir.StringTensor)
    assert list(tensor.string_data()) == ["éé".encode(), b"hoho"]


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "UINT8", "BOOL", "DOUBLE"])
def test_types(kind: str) -> None:
    to = int(TensorProto.DataType.Value(kind))
    nodes = [
        node("Cast", "a", "b", to=to),
        node("Reshape", "b minus", "c"),
        node("Cast", "c", "d", to=1),
        node("Add", "x d", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.float32([[1, 2, 3]]), "a"),
            numpy_helper.from_array(np.int64([-1]), "minus"),
        ],
    )
    imports = [helper.make_opsetid("", 21)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    assert folded(model) == ["Add"]


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "INT4"])
def test_results_of_types_that_numpy_lacks(kind: str) -> None:
    to = int(TensorProto.DataType.Value(kind))
    graph = helper.make_graph(
        [node("Cast", "a", "b", to=to), node("Concat", "x b", "y", axis=0)],
        "g",
        [helper.make_tensor_value_info("x", to, ["N"])],
        [helper.make_tensor_value_info("y", to, ["M"])],
        [numpy_helper.from_array(np.float32([1, 2, 3, 4, 5, 6, 7, -8]), "a")],
    )
    imports = [helper.make_opsetid("", 21)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    result = PassManager(FoldConstants(), on_mismatch="raise").run(model).model
    (last,) = result.graph
    tensor = ir.const(last.inputs[1])
    assert tensor is not None
    assert tensor.dtype == ir.DataType(to)
    assert tensor.numpy().astype(np.float32).tolist() == [1, 2, 3, 4, 5, 6, 7, -8]


@pytest.mark.parametrize(("number", "stored"), [(0.25, True), (0.1, False)])
def test_half_precision(number: float, stored: bool, sessions: list[int]) -> None:
    # Mul takes the square root in 32 bits, whatever type the model says it has.
    text = f"""
        g (float16[N] x) => (float16[N] y) <float[1] a = {{{number}}}> {{
          b = Cast<to = 10>(a)
          c = Sqrt(b)
          y = Mul(x, c)
        }}"""
    result = PassManager(FoldConstants(), on_mismatch="raise").run(ir.parse_text(HEAD + text))
    assert (result.report.after.nodes == 1) is stored
    assert_equivalent(ir.parse_text(HEAD + text), result.model, Exactness.BITWISE)
    assert len(sessions) <= 4


def test_one_bad_node_does_not_lose_the_others(sessions: list[int]) -> None:
    # No kernel: Sin of float8 has none. No name in the message: a Reshape that does not fit.
    model = ir.parse_text(
        HEAD
        + """
        g (float[N] x) => (float[N] y, float[N] z)
        <float[1] a = {2}, float[6] b = {1, 2, 3, 4, 5, 6}, int64[1] four = {4}> {
          c = Exp(a)
          bad = Reshape(b, four)
          worse = Exp(bad)
          d = Neg(a)
          e = Add(c, d)
          y = Add(x, e)
          z = Add(x, worse)
        }"""
    )
    result = PassManager(FoldConstants(), on_mismatch="raise").run(model)
    assert [n.op_type for n in result.model.graph] == ["Reshape", "Exp", "Add", "Add"]
    declined = result.report.passes[0].declined
    assert declined["fold-constant: onnxruntime refuses Reshape"] == 1
    assert declined["fold-constant: an input could not be computed"] == 1
    assert len(sessions) <= 8


def test_an_operator_without_a_kernel_is_dropped_by_name(sessions: list[int]) -> None:
    bf16 = numpy_helper.from_array(np.float32([1, 2]), "a")
    nodes = [
        node("Cast", "a", "b", to=int(TensorProto.BFLOAT16)),
        node("Sin", "b", "c"),
        node("Cos", "b", "d"),
        node("Cast", "c", "e", to=1),
        node("Exp", "a", "f", name="exponential_of_a"),
        node("Add", "x e", "z"),
        node("Add", "z f", "w"),
        node("Cast", "d", "g", to=1),
        node("Add", "w g", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [bf16],
    )
    imports = [helper.make_opsetid("", 23)]
    model = ir.load(helper.make_model(graph, opset_imports=imports, ir_version=11))
    result = PassManager(FoldConstants(), on_mismatch="raise").run(model)
    declined = result.report.passes[0].declined
    assert declined["fold-constant: onnxruntime refuses Sin"] == 1
    assert declined["fold-constant: onnxruntime refuses Cos"] == 1
    assert "Exp" not in [n.op_type for n in result.model.graph]
    assert len(sessions) <= 4


def test_a_type_is_all_that_is_taken_of_an_input() -> None:
    check_pass(
        FoldConstants(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <int64[1] a = {2}> { b = CastLike(a, x) y = Add(x, b) }""",
        """
        graph(%x: float[N]) {
          const %b.1: float[1]
          %y = Add(%x, %b.1)
          return %y
        }""",
    )


def test_fuel_stops_between_two_constants() -> None:
    text = (
        HEAD
        + """
        g (float[N] x) => (float[N] y) <float[1] a = {2}> {
          b = Exp(a)
          c = Neg(a)
          d = Add(x, b)
          y = Add(d, c)
        }"""
    )
    model = ir.parse_text(text)
    result = PassManager(FoldConstants(), fuel=2).run(model)  # the pass, and one rewrite
    assert result.report.passes[0].rewrites["fold-constant"] == 1
    assert_equivalent(model, result.model, Exactness.BITWISE)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: ir.Model) -> None:
        raise RuntimeUnavailable("onnxruntime is not installed")

    monkeypatch.setattr(evaluate, "open_session", missing)
    text = "g (float[N] x) => (float[N] y) <float[1] a = {2}> { b = Exp(a) y = Add(x, b) }"
    result = PassManager(FoldConstants()).run(ir.parse_text(HEAD + text))
    assert result.report.passes[0].status == "not-applicable"

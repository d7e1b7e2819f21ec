"""What is a unit and why not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.quant.units import Unit, Units, clip_bounds, outputs
from graphopt.targets import get

X64 = get("cpu-x64").scheme
assert X64 is not None


def units(graph: str, *, target: str = "cpu-x64", opset: int = 17, skip: Any = ()) -> Units:
    model = ir.parse_text(f'<ir_version: 8, opset_import: ["": {opset}]>\ng {graph}')
    ir.infer_shapes(model)
    scheme = get(target).scheme
    assert scheme is not None
    return Units(model, scheme, skip=skip)


def only(found: Units) -> Unit:
    (unit,) = found
    return unit


def names(values: Any) -> list[str | None]:
    return [None if v is None else v.name for v in values]


def why(found: Units) -> dict[str, str]:
    return {node.op_type: reason for node, reason in found.reasons.items()}


CONV = "<float[2,1,1,1] w = {1, 2}, float[2] b = {3, 4}>"


def test_a_convolution() -> None:
    unit = only(
        units(f"(float[1,1,3,3] x) => (float[1,2,3,3] y) {CONV} {{ c = Conv(x, w, b) y = Elu(c) }}")
    )
    assert unit.name == "c"
    assert names(unit.inputs) == ["x"]
    assert names([unit.output, unit.weight, unit.bias]) == ["c", "w", "b"]
    assert unit.activation is None
    assert not unit.moves


@pytest.mark.parametrize(
    "clip",
    ["y = Relu(c)", "y = Clip(c, zero, six)", "y = Clip(c, , six)", "y = Clip(c, zero)"],
)
def test_activations_that_ranges_make_redundant(clip: str) -> None:
    found = units(
        "(float[1,1,3,3] x) => (float[1,2,3,3] y) <float[2,1,1,1] w = {1, 2}, float zero = {0}, "
        f"float six = {{6}}> {{ c = Conv(x, w) {clip} }}"
    )
    unit = only(found)
    assert unit.activation is not None
    assert (unit.name, unit.output.name) == ("c", "y")
    assert not found.reasons  # neither is it a node for itself


@pytest.mark.parametrize(
    ("rest", "options"),
    [
        ("y = Clip(c, one, six)", {}),  # 0 is not within the bounds
        ("y = Clip(c, low, six)", {"inputs": ", float low"}),  # bounds that are computed
        ("r = Relu(c) y = Add(r, c)", {}),  # c is used by others
        ("y = Relu(c)", {"skip": ["Relu"]}),
        ("y = Relu(c)", {"skip": ["y"]}),
        ("y = Relu(c)", {"outputs": ", float[1,2,3,3] c"}),  # c is an output
        ("y = Relu(c)", {"target": "tensorrt"}),  # symmetric: there is no lowest integer to clip at
        ("y = LeakyRelu(c)", {}),
    ],
)
def test_activations_that_stay(rest: str, options: dict[str, Any]) -> None:
    more, outs = options.pop("inputs", ""), options.pop("outputs", "")
    found = units(
        f"(float[1,1,3,3] x{more}) => (float[1,2,3,3] y{outs}) <float[2,1,1,1] w = {{1, 2}}, "
        f"float one = {{1}}, float six = {{6}}> {{ c = Conv(x, w) {rest} }}",
        **options,
    )
    conv = next(u for u in found if u.node.op_type == "Conv")
    assert conv.activation is None
    assert conv.output.name == "c"


def test_an_activation_inside_of_a_subgraph_stays() -> None:
    found = units(
        "(float[1,1,3,3] x, bool p) => (float[1,2,3,3] y) <float[2,1,1,1] w = {1, 2}> { "
        "c = Conv(x, w) y = If(p) <then_branch = t () => (float[1,2,3,3] a) { a = Relu(c) }, "
        "else_branch = e () => (float[1,2,3,3] a2) { a2 = Conv(x, w) }> }"
    )
    unit = only(found)  # and the Conv of the subgraph is left alone
    assert unit.activation is None
    assert unit.name == "c"


@pytest.mark.parametrize("pattern", ["Conv", "c", "n*", "[cd]"])
def test_what_is_to_be_skipped(pattern: str) -> None:
    graph = f"(float[1,1,3,3] x) => (float[1,2,3,3] c) {CONV} {{ [n1] c = Conv(x, w, b) }}"
    found = units(graph, skip=[pattern])
    assert not len(found)
    assert why(found) == {"Conv": "it is among those to skip"}
    assert len(units(graph, skip=["conv", "C", "n"])) == 1  # case counts, and so does all of a name


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("(float[2,2] x) => (float[2,2] y) { y = Tanh(x) }", "u8s8 has no static integer kernel"),
        ("(float[1,1,3] x, float[2] b) => (float[1,2,3] y) <float[2,1,1] w = {1, 2}> "
         "{ y = Conv(x, w, b) }", "its bias is computed"),
        ("(float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> "
         "{ y = Gemm<alpha=2.0>(x, w) }", "alpha"),
        ("(float[2,2,2] x) => (float[2,2,2] y) <float[1,2,2] w = {1, 2, 3, 4}> "
         "{ y = MatMul(x, w) }", "its weight has 3 dimensions, not 2"),
        ("(int64[2] i) => (float[2,2] y) <float[3,2] t = {1, 2, 3, 4, 5, 6}> "
         "{ y = Gather(t, i) }", "it reads constants only"),
        ("(double[1,1,3] x) => (double[1,2,3] y) <double[2,1,1] w = {1, 2}> { y = Conv(x, w) }",
         None),
        ("(float16[1,1,3] x) => (float16[1,2,3] y) <float16[2,1,1] w = {1, 2}> { y = Conv(x, w) }",
         None),
        ("(int64[2] x) => (int64[2] y) { y = Add(x, x) }", None),
    ],
)  # fmt: skip
def test_what_is_no_unit(graph: str, reason: str | None) -> None:
    found = units(graph)
    assert not len(found)
    if reason is None:  # nothing in it is a 32-bit floating-point number
        assert not found.reasons
    else:
        assert reason in next(iter(found.reasons.values()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    w = model.graph.initializers["w"]
    w.const_value = ir.Tensor(np.full((2, 2), value, np.float32), name="w")
    ir.infer_shapes(model)
    assert X64 is not None
    found = Units(model, X64)
    assert why(found) == {"MatMul": "its weight holds NaN or infinity"}


def test_constants_as_operands() -> None:
    found = units(
        "(float[1,2] x) => (float[1,2] y) <float[2] k = {1, 2}, float[2,2] m = {1, 2, 3, 4}> "
        "{ a = Add(k, x) y = MatMul(a, m) }"
    )
    add, product = found
    assert names(add.inputs) == ["k", "x"]
    assert add.weight is None
    assert names([product.weight]) == ["m"]
    assert names(found.tensors()) == ["k", "x", "a", "y"]


def test_a_product_of_activations_and_of_a_constant_on_the_left() -> None:
    found = units(
        "(float[2,2] x) => (float[2,2] y) <float[2,2] m = {1, 2, 3, 4}> "
        "{ a = MatMul(x, x) y = MatMul(m, a) }"
    )
    square, left = found
    assert names(square.inputs) == ["x"]
    assert square.weight is left.weight is None
    assert names(left.inputs) == ["m", "a"]


def test_one_weight_of_two_units() -> None:
    a, b = units(
        "(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> "
        "{ a = MatMul(x, w) y = MatMul(a, w) }"
    )
    assert a.weight is b.weight is not None


def test_moves_share_parameters() -> None:
    found = units(
        "(float[2,4] x) => (float[4,1] s, float[4,1] u, float[4,2] v) "
        "{ t = Transpose<perm=[1,0]>(x) s, u = Split<axis=1>(t) v = Add(t, t) }"
    )
    by_name = {v.name: v for v in found.tensors()}
    assert {found.root(by_name[n]).name for n in "xtsu"} == {"x"}
    assert found.root(by_name["v"]).name == "v"
    assert sorted(v.name or "" for v in found.group(by_name["u"])) == ["s", "t", "u", "x"]
    assert names(found.group(by_name["v"])) == ["v"]
    split = next(u for u in found if u.node.op_type == "Split")
    assert split.moves
    assert names(outputs(split)) == ["s", "u"]


def test_indices_of_a_pooling_are_no_activation() -> None:
    found = units(
        "(float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) "
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }"
    )
    assert names(outputs(only(found))) == ["y"]
    assert names(found.tensors()) == ["x", "y"]


INWARD = (
    "(float[2,2] x, bool p) => (float[?,?] y) {{ {body} "
    "y = If(p) <then_branch = t () => (float[?,?] a) {{ a = Neg(d) }}, "
    "else_branch = e () => (float[?,?] b) {{ b = Abs(d) }}> }}"
)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("d = Add(x, x)", ["d"]),  # the subgraph may read it from DequantizeLinear
        ("c = Add(x, x) d = Transpose(c)", []),
        ("c = Add(x, x) r = Relu(c) d = Transpose(r)", []),
        ("c = Add(x, x) t = Transpose(c) d = Transpose(t)", []),
        ("c = Add(x, x) t = Transpose(c) d = Tanh(t)", ["c", "t"]),
        ("c = Add(x, x) e = Mul(c, c) d = Transpose(c)", ["e"]),
    ],
)
def test_what_is_moved_into_a_subgraph_stays(body: str, kept: list[str]) -> None:
    found = units(INWARD.format(body=body), opset=18)
    assert [u.name for u in found] == kept
    stay = [r for n, r in found.reasons.items() if n.op_type in ("Add", "Transpose")]
    if not kept:
        assert stay
        assert all("ONNX Runtime would abort" in r for r in stay)


def test_bounds_of_clips() -> None:
    def bounds(text: str, opset: int = 17) -> tuple[float, float]:
        model = ir.parse_text(
            f'<ir_version: 8, opset_import: ["": {opset}]>\ng (float[2] x, float m) => (float[2] y)'
            f" <float a = {{-1}}, float[1] b = {{2}}> {{ {text} }}"
        )
        return clip_bounds(next(iter(model.graph)))

    assert bounds("y = Relu(x)") == (0, np.inf)
    assert bounds("y = Clip(x, a, b)") == (-1, 2)
    assert bounds("y = Clip(x)") == (-np.inf, np.inf)
    assert bounds("y = Clip<min=-3.0, max=6.0>(x)", opset=10) == (-3, 6)
    low, high = bounds("y = Clip(x, a, m)")
    assert low == -1
    assert np.isnan(high)


def test_patterns() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[2] x) => (float[2] y) { h = Relu(x) y = Tanh(h) }"
    )
    relu, tanh = model.graph
    relu.name = "enc/0/act"
    assert ir.matches(relu, ["enc/*"])
    assert ir.matches(relu, ["nothing", "h"])
    assert not ir.matches(relu, ["enc", "relu", ""])
    assert ir.matches(tanh, ["Tan?"])
    assert not ir.matches(tanh, [])


def test_a_kernel_that_fixes_its_output() -> None:
    unit = only(units("(float[1,3] x) => (float[1,3] y) { y = Softmax(x) }"))
    assert unit.kernel.output == (1 / 256, 0)


def test_a_scheme_that_keeps_relu() -> None:
    assert X64 is not None
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\ng (float[1,1,3] x) => (float[1,2,3] y) '
        "<float[2,1,1] w = {1, 2}> { c = Conv(x, w) y = Relu(c) }"
    )
    ir.infer_shapes(model)
    unit = only(Units(model, dataclasses.replace(X64, drops_relu=False)))
    assert unit.activation is None


def test_a_known_range_is_no_bound_of_another() -> None:
    for op in ("Sigmoid", "Softmax"):
        found = units(
            f"(float[4,4] x) => (float[4,4] y) <float half = {{0.5}}> "
            f"{{ s = {op}(x) y = Clip(s, , half) }}"
        )
        assert only(found).activation is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_constants_that_are_not_finite(value: str) -> None:
    found = units(
        "(float[1,1,3,3] x) => (float[1,2,3,3] y, float[1,1,3,3] z) "
        f"<float[2,1,1,1] w = {{1, 2}}, float[2] b = {{3, {value}}}, float m = {{{value}}}> "
        "{ y = Conv(x, w, b) z = Add(x, m) }"
    )
    assert not len(found)
    assert set(why(found).values()) == {"a constant that it reads holds NaN or infinity"}


@pytest.mark.parametrize("shape", ["3,1", "3,2", "1,3,1"])
def test_biases_that_are_not_by_channel(shape: str) -> None:
    count = 6 if shape == "3,2" else 3
    numbers = ", ".join(map(str, range(count)))
    found = units(
        "(float[3,2] x) => (float[3,3] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, "
        f"float[{shape}] b = {{{numbers}}}> {{ y = Gemm(x, w, b) }}",
        target="qnn",
    )
    assert "is not one number per channel" in why(found)["Gemm"]


@pytest.mark.parametrize("shape", ["", "1", "3", "1,3", "1,1"])
def test_biases_by_channel(shape: str) -> None:
    numbers = "1, 2, 3" if "3" in shape else "1"
    found = units(
        "(float[3,2] x) => (float[3,3] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, "
        f"float[{shape}] b = {{{numbers}}}> {{ y = Gemm(x, w, b) }}".replace("float[]", "float"),
        target="qnn",
    )
    assert only(found).bias is not None


@pytest.mark.parametrize(("shape", "out"), [("2", "3"), ("1,2,1", "1,3,1")])
def test_weights_that_are_no_matrices(shape: str, out: str) -> None:
    found = units(
        f"(float[3,2] x) => (float[{out}] y) <float[{shape}] w = {{1, 2}}> {{ y = MatMul(x, w) }}",
        target="tensorrt",
    )
    assert why(found) == {"MatMul": "its weight is no matrix"}


def test_empty_weights() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[2,4] x) => (float[2,0] y) <float[1] w = {0}> { y = MatMul(x, w) }"
    )
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(np.zeros((4, 0), np.float32), name="w")
    value.shape = ir.Shape((4, 0))
    assert X64 is not None
    assert why(Units(model, X64)) == {"MatMul": "its weight is empty"}

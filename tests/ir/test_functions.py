"""Model-local functions load inlined and compute what ONNX Runtime computes with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import pytest

from graphopt import FrontendError, PassManager, ir
from graphopt.runtime.session import ModelSource, open_session

HEAD = '<ir_version: 10, opset_import: ["": 17, "local": 1]>'
BODY = '<domain: "local", opset_import: ["": 17, "local": 1, "com.microsoft": 1]>'

CALLS = {
    "one call": f"""{HEAD} g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
        {BODY} f (v) => (w) {{ t = Neg(v) w = Exp(t) }}""",
    "nested calls, attributes handed on": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ a = local.outer<gain=3.0>(x) y = local.inner<s=0.2>(a) }}
        {BODY} inner <s>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}
        {BODY} outer <gain>(p) => (q)
        {{
            k = Constant<value_float: float = @gain>()
            t = Mul(p, k)
            u = local.inner<s: float = @gain>(t)
            q = local.inner<s = 0.25>(u)
        }}""",
    # onnx's own inliner forgets these.
    "default of an attribute": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ a = local.f(x) b = local.f<s=0.25>(x) y = Add(a, b) }}
        {BODY} f <s: float = 0.5>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}""",
    "default in a nested call": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = local.outer(x) }}
        {BODY} outer <s: float = 0.5>(v) => (w)
            {{ a = local.f(v) b = local.f<s: float = @s>(v) w = Sub(a, b) }}
        {BODY} f <s: float = 0.25>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}""",
    "default that is a list": f"""{HEAD}
        g (float[N] x) => (float[1,M] y) {{ y = local.f(x) }}
        {BODY} f <k: ints = [1, -1]>(v) => (w)
            {{ s = Constant<value_ints: ints = @k>() w = Reshape(v, s) }}""",
    "attribute without default or value": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
        {BODY} f <s>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}""",
    "attribute that is a tensor": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = local.f<t = float[1] {{3}}>(x) }}
        {BODY} f <t>(v) => (w) {{ k = Constant<value: tensor = @t>() w = Mul(v, k) }}""",
    "call in a branch": f"""{HEAD}
        g (float[N] x) => (float[N] y)
        {{
            t = Neg(x)
            s = ReduceSum<keepdims = 0>(x)
            z = Constant<value_float = 0.0>()
            c = Less(s, z)
            y = If(c) <
                then_branch = a () => (p) {{ q = local.f(t) p = local.f(q) }},
                else_branch = b () => (r) {{ r = local.f<s=2.0>(x) }}
            >
        }}
        {BODY} f <s: float = 0.5>(v) => (w) {{ t = Elu<alpha: float = @s>(v) w = Neg(t) }}""",
    "branches in a function": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ a = local.f(x) y = local.f<s=0.1>(a) }}
        {BODY} f <s: float = 0.5>(v) => (w)
        {{
            t = ReduceMax<keepdims = 0>(v)
            z = Constant<value_float = 1.0>()
            c = Less(t, z)
            w = If(c) <
                then_branch = a () => (p) {{ p = LeakyRelu<alpha: float = @s>(v) }},
                else_branch = b () => (r) {{ r = local.h<s: float = @s>(v) }}
            >
        }}
        {BODY} h <s: float = 0.7>(v) => (w) {{ w = Elu<alpha: float = @s>(v) }}""",
    "loop in a function": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
        {BODY} f (v) => (w)
        {{
            n = Constant<value_int = 3>()
            c = Constant<value = bool {{1}}>()
            w = Loop(n, c, v) <
                body = b (int64 i, bool g, float[N] s) => (bool h, float[N] o)
                {{ h = Identity(g) t = local.h(s) o = Add(t, v) }}
            >
        }}
        {BODY} h <s: float = 0.5>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}""",
    "absent inputs": f"""{HEAD}
        g (float[N] x) => (float[N] y) <float k = {{1}}>
        {{ a = local.f(x) b = local.f(x, , k) y = Add(a, b) }}
        {BODY} f (v, lo, hi) => (w) {{ w = Clip(v, lo, hi) }}""",
    "absent output": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ , y = local.f(x) }}
        {BODY} f (v) => (w, u) {{ w = Relu(v) u = Neg(v) }}""",
    "names that clash": f"""{HEAD}
        g (float[N] x) => (float[N] y)
        {{ w__1 = Neg(x) a = local.f(w__1) t = local.f(a) y = Add(w__1, t) }}
        {BODY} f (v) => (w) {{ t__1 = Neg(v) w = Exp(t__1) }}""",
    "a domain of its own": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
        {BODY} f (v) => (w) {{ w = com.microsoft.Gelu(v) }}""",
    "an unused function": f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ y = Neg(x) }}
        {BODY} f (v) => (w) {{ w = Exp(v) }}""",
}

FEEDS = [
    {"x": np.array([-1.0, 2.0, 0.5, -0.25], np.float32)},
    {"x": np.array([-1.0, 0.75, -3.0], np.float32)},
]


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def assert_equal(proto: onnx.ModelProto, model: ir.Model) -> None:
    def run(source: ModelSource) -> list[bytes]:
        with open_session(source) as session:
            return [session.run(feeds)["y"].tobytes() for feeds in FEEDS]

    assert run(model) == run(proto)


def assert_inlined(model: ir.Model) -> None:
    assert ir.opaque(model) is None
    assert not model.functions
    assert all(node.domain != "local" for node in ir.all_nodes(model))
    ir.verify(model)


@pytest.fixture(params=["proto", "onnx_ir"])
def load(request: pytest.FixtureRequest) -> Callable[[onnx.ModelProto], ir.Model]:
    """The two ways in: by protobuf, and by an onnx_ir model."""
    if request.param == "proto":
        return ir.load
    return lambda proto: ir.load(onnx_ir.from_proto(proto))


@pytest.mark.parametrize("name", CALLS)
def test_computes_the_same(name: str, load: Callable[[onnx.ModelProto], ir.Model]) -> None:
    proto = parse(CALLS[name])
    before = proto.SerializeToString()
    model = load(proto)
    assert proto.SerializeToString() == before
    assert_inlined(model)
    assert_equal(proto, model)


@pytest.mark.parametrize("name", CALLS)
def test_written_again_it_computes_the_same(name: str) -> None:
    proto = parse(CALLS[name])
    model = ir.load(proto)
    # Untouched, the model is written as it came, functions included.
    assert ir.to_proto(model) == proto
    inlined = ir.to_proto(model, external=lambda _value, _proto: False)
    assert not inlined.functions
    assert_equal(inlined, ir.load(inlined))
    assert_equal(proto, ir.load(inlined))


def test_overloads(load: Callable[[onnx.ModelProto], ir.Model]) -> None:
    proto = parse(f"""{HEAD}
        g (float[N] x) => (float[N] y) {{ a = local.f(x) y = local.f(a) }}
        {BODY} f <s: float = 0.1>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}
        {BODY} f <s: float = 0.7>(v) => (w) {{ w = Elu<alpha: float = @s>(v) }}""")
    proto.functions[1].overload = proto.graph.node[1].overload = "smooth"
    model = load(proto)
    assert_inlined(model)
    assert [node.op_type for node in model.graph] == ["LeakyRelu", "Elu"]
    assert_equal(proto, model)


def test_optimized_it_computes_the_same() -> None:
    proto = parse(CALLS["nested calls, attributes handed on"])
    manager = PassManager("cleanup", oracle="end", on_mismatch="raise")
    assert_equal(proto, manager.run(ir.load(proto)).model)


def test_initializers_of_the_model_are_not_copied_into_calls() -> None:
    model = ir.load(
        parse(f"""{HEAD} g (float[N] x) => (float[N] y) <float[1] k = {{2}}>
            {{ a = local.f(x, k) y = local.f(a, k) }}
            {BODY} f (v, k) => (w) {{ w = Mul(v, k) }}""")
    )
    assert list(model.graph.initializers) == ["k"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            # The default axis of Softmax is another one since opset 13.
            f"""{HEAD} g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
            <domain: "local", opset_import: ["": 12]> f (v) => (w) {{ w = Softmax(v) }}""",
            "needs another opset",
        ),
        (
            f"""{HEAD} g (float[N] x) => (float[N] y) {{ a = local.f(x) y = Neg(a) }}
            {BODY} f (v) => (v) {{ u = Neg(v) }}""",
            "one of its inputs",
        ),
        (
            # Whether the default applies depends on who calls f.
            f"""{HEAD} g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
            {BODY} f <s>(v) => (w) {{ w = local.h<s: float = @s>(v) }}
            {BODY} h <s: float = 0.5>(v) => (w) {{ w = LeakyRelu<alpha: float = @s>(v) }}""",
            "which a call may lack",
        ),
    ],
)
def test_what_cannot_be_inlined_passes_through(text: str, why: str) -> None:
    proto = parse(text)
    model = ir.load(proto)
    assert why in (ir.opaque(model) or "")
    assert any(why in remark for remark in ir.remarks(model))
    result = PassManager("cleanup").run(model)
    assert ir.to_proto(result.model) == proto


def test_another_opset_without_a_difference() -> None:
    proto = parse(f"""{HEAD} g (float[N] x) => (float[N] y) {{ y = local.f(x) }}
        <domain: "local", opset_import: ["": 16]> f (v) => (w) {{ t = Neg(v) w = Exp(t) }}""")
    model = ir.load(proto)
    assert_inlined(model)
    assert_equal(proto, model)


def test_an_onnx_ir_model_that_cannot_be_inlined() -> None:
    proto = parse(f"""{HEAD} g (float[N] x) => (float[N] y) {{ a = local.f(x) y = Neg(a) }}
        {BODY} f (v) => (v) {{ u = Neg(v) }}""")
    with pytest.raises(FrontendError, match="one of its inputs"):
        ir.load(onnx_ir.from_proto(proto))

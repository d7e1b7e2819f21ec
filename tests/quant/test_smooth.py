from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest
from written import written

from graphopt import ir
from graphopt.calibration import ChannelStats, collect
from graphopt.calibration.gram import BatchRanges
from graphopt.quant.constants import add_to_output
from graphopt.quant.smooth import (
    Channels,
    choose_factor,
    expected_error,
    fold_factor,
    fold_shift,
    insert_factor,
    smooth,
)
from graphopt.rewrite import Rewriter
from graphopt.testing import assert_equivalent

Array = np.ndarray[Any, Any]

SHIFT = np.array([3.0, -2.0, 0.5, 7.0])
FACTOR = np.array([0.5, 3.0, 1.5, 0.1])
NORM = {"s": (4,), "b": (4,)}


def build(graph: str, opset: int = 17, **weights: Any) -> ir.Model:
    """Make a model of ONNX text and weights: arrays, or shapes of random float32."""
    model = written(graph, opset=opset, **weights)
    Rewriter(model).remove_initializers()
    return model


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for n in model.graph for v in n.outputs if v.name == name)


def changed(model: ir.Model, change: Any) -> tuple[ir.Model, Any]:
    """A copy of a model after ``change(rewriter, copy)``, and what that returned."""
    copy = ir.clone(model)
    rw = Rewriter(copy)
    found = change(rw, copy)
    rw.remove_initializers()
    ir.verify(copy)
    return copy, found


def exact(model: ir.Model, change: Any, name: str, make: Any) -> ir.Model:
    """Check that a change was made, keeps the outputs, and makes of a value what it should."""
    copy, why = changed(model, change)
    assert why is None
    assert_equivalent(model, copy)
    feeds = [{v.name: np.random.default_rng(5).normal(size=[
        2 if not isinstance(d, int) else d for d in v.shape]).astype(np.float32)
        for v in ir.inputs(model)}]  # fmt: skip
    seen = [collect(m, {name: [Keep()]}, feeds)[name][0].array for m in (model, copy)]  # type: ignore[attr-defined,dict-item]
    np.testing.assert_allclose(seen[1], make(seen[0]), rtol=1e-4, atol=1e-5)
    return copy


class Keep(ChannelStats):
    """The value itself."""

    array: Array = np.empty(0)

    def update(self, array: Array) -> None:
        self.array = array

    def merge(self, other: Any) -> None:
        self.array = other.array


def unchanged(model: ir.Model, change: Any, why: str) -> None:
    copy, found = changed(model, change)
    assert why in (found or "it was changed")
    assert ir.dump(copy) == ir.dump(model)


def shifting(name: str) -> Any:
    return lambda rw, m: fold_shift(rw, value(m, name), SHIFT)


def dividing(name: str, axis: int = -1) -> Any:
    return lambda rw, m: fold_factor(rw, value(m, name), FACTOR, axis)


# Shifts


def test_shift_of_a_normalization_that_a_product_and_a_residual_read() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] y) {
            n = LayerNormalization(x, s, b)
            p = MatMul(n, w) h = Add(c, p) r = Relu(h)
            q = MatMul(r, v) o = Add(q, d)
            y = Add(o, n)
        }""",
        **NORM, w=(4, 6), c=(6,), v=(6, 4), d=(4,),
    )  # fmt: skip
    copy = exact(model, shifting("n"), "n", lambda n: n - SHIFT)
    assert [n.op_type for n in copy.graph] == [n.op_type for n in model.graph]
    assert ir.dump(copy) == textwrap.dedent(
        """\
        graph(%x: float[N,4]) {
          const %b.1: float[4]
          const %c.2: float[6]
          const %d.3: float[4]
          const %s: float[4]
          const %v: float[6,4]
          const %w: float[4,6]
          %n = LayerNormalization(%x, %s, %b.1)
          %p = MatMul(%n, %w)
          %h = Add(%c.2, %p)
          %r = Relu(%h)
          %q = MatMul(%r, %v)
          %o = Add(%q, %d.3)
          %y = Add(%o, %n)
          return %y
        }
        """
    )


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("n = LayerNormalization(x, s) y = Gemm(n, w)", {"s": (4,), "w": (4, 3)}),
        ("n = Gemm(x, k) y = Gemm<transB=1, alpha=0.5>(n, w, c)",
         {"k": (4, 4), "w": (3, 4), "c": (3,)}),
        ("n = Gemm<beta=0.5>(x, k, c) y = Gemm<beta=2.0>(n, w, d)",
         {"k": (4, 4), "c": (1, 4), "w": (4, 3), "d": (3,)}),
        ("n = Add(x, c) p = MatMul(n, w) y = Add(p, d)",
         {"c": np.float32(2), "w": (4, 3), "d": np.float32(1)}),
        ("h = Add(x, c) n = Add(x, h) p = MatMul(n, w) y = Add(p, d)",
         {"c": (4,), "w": (4, 3), "d": (3,)}),
        ("n = Add(x, c) z = Add(n, e) p = MatMul(n, w) y = Add(p, d) k = Shape(n)",
         {"c": (4,), "e": (4,), "w": (4, 3), "d": (3,)}),
    ],
)  # fmt: skip
def test_every_way_to_shift(body: str, weights: dict[str, Any]) -> None:
    outputs = "float y, float z" if " z = " in body else "float y"
    model = build(f"g (float[2,4] x) => ({outputs}) {{ {body} }}", **weights)
    exact(model, shifting("n"), "n", lambda n: n - SHIFT)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("n = Relu(x) y = Gemm(n, w, c)", "Relu adds no constant"),
        ("n = MatMul(x, k) y = Gemm(n, w, c)", "MatMul adds no constant"),
        ("n = LayerNormalization<axis=0>(x, k, k) y = Gemm(n, w, c)", "not over the last axis"),
        ("n = LayerNormalization(x, s, b) y = MatMul(n, w)", "no bias is added to what MatMul"),
        ("n = LayerNormalization(x, s, b) p = MatMul(n, w) q = Relu(p) y = Add(p, c)",
         "no bias is added"),
        ("n = LayerNormalization(x, s, b) y = Relu(n)", "Relu reads it"),
        ("n = LayerNormalization(x, s, b) y = Add(n, n)", "other input cannot make up"),
        ("n = LayerNormalization(x, s, b) y = Add(n, x)", "other input cannot make up"),
        ("n = LayerNormalization(x, s, b) r = Relu(x) y = Add(n, r)", "Relu adds no constant"),
        ("n = LayerNormalization(x, s, b) y = MatMul(k, n)", "otherwise than as rows"),
        ("n = LayerNormalization(x, s, b) y = Gemm<transA=1>(n, e)", "otherwise than as rows"),
        ("n = LayerNormalization(x, s, b) y = MatMul(n, x4)", "input 1 of MatMul is not constant"),
        ("n = Gemm<beta=0.0>(x, k, s) y = Gemm(n, w, c)", "ignores its bias"),
        ("r = Relu(x) n = Add(x, r) y = Gemm(n, w, c)", "Relu adds no constant"),
    ],
)  # fmt: skip
def test_no_shift(body: str, why: str) -> None:
    model = build(
        f"g (float[2,4] x, float[4,4] x4) => (float y) {{ {body} }}",
        **NORM, k=(4, 4) if "axis=0" not in body else (2, 4), w=(4, 3), c=(3,), e=(2, 3),
    )  # fmt: skip
    unchanged(model, shifting("n"), why)


def test_no_shift_of_outputs_and_unknown_shapes() -> None:
    model = build(
        """g (float[2,4] x) => (float[2,4] n, float y) {
            n = LayerNormalization(x, s, b) y = Gemm(n, w)
        }""",
        **NORM, w=(4, 3),
    )  # fmt: skip
    unchanged(model, shifting("n"), "it is an output of the model")
    open_ended = build(
        "g (float x) => (float y) { n = Add(x, b) p = MatMul(n, w) y = Add(p, c) }",
        b=(4,), w=(4, 3), c=(3,),
    )  # fmt: skip
    for node in open_ended.graph:
        for out in node.outputs:
            out.shape = None
    unchanged(open_ended, shifting("n"), "number of its channels")


def test_a_constant_that_others_use_stays() -> None:
    model = build(
        """g (float[2,4] x) => (float y, float z) {
            n = Add(x, c) y = Gemm(n, w) t = Relu(x) z = Add(t, c)
        }""",
        c=(4,), w=(4, 3),
    )  # fmt: skip
    exact(model, shifting("n"), "n", lambda n: n - SHIFT)


def test_half_precision_that_overflows() -> None:
    model = build(
        "g (float16[2,4] x) => (float16 y) { n = Add(x, c) y = Gemm(n, w, d) }",
        c=np.full(4, 6e4, np.float16), w=np.full((4, 3), 1, np.float16), d=np.zeros(3, np.float16),
    )  # fmt: skip
    unchanged(
        model,
        lambda rw, m: fold_shift(rw, value(m, "n"), np.full(4, -6e4)),
        "would not be finite",
    )


# Factors


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("n = LayerNormalization(x, s, b) p = MatMul(n, w) y = Add(p, d) z = Gemm<transB=1>(n, v)",
         {**NORM, "w": (4, 3), "d": (3,), "v": (5, 4)}),
        ("n = LayerNormalization(x, s) y = MatMul(n, w)", {"s": (4,), "w": (4, 3)}),
        ("h = Mul(x, s) n = Add(h, b) y = MatMul(n, w)", {**NORM, "w": (4, 3)}),
        ("n = Gemm(x, k, b) y = Gemm<alpha=0.5>(n, w, d)",
         {"k": (4, 4), "b": (1, 4), "w": (4, 3), "d": (3,)}),
        ("n = Gemm<transB=1>(x, k) y = MatMul(n, w)", {"k": (4, 4), "w": (4, 3)}),
        ("p = MatMul(x, k) h = Add(b, p) n = Relu(h) y = MatMul(n, w) c = Shape(n)",
         {"k": (4, 4), "b": (4,), "w": (4, 3)}),
    ],
)  # fmt: skip
def test_every_way_to_divide(body: str, weights: dict[str, Any]) -> None:
    outputs = "float y, float z" if " z = " in body else "float y"
    model = build(f"g (float[2,4] x) => ({outputs}) {{ {body} }}", **weights)
    copy = exact(model, dividing("n"), "n", lambda n: n / FACTOR)
    assert [n.op_type for n in copy.graph] == [n.op_type for n in model.graph]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_factors_between_convolutions(group: int) -> None:
    model = build(
        f"""g (float[2,3,5,5] x) => (float y) {{
            c = Conv(x, k, b) m = BatchNormalization(c, s, b, b, one) n = LeakyRelu(m)
            y = Conv<group={group}, pads=[1,1,1,1]>(n, w)
        }}""",
        k=(4, 3, 1, 1), **NORM, one=np.ones(4, np.float32), w=(8, 4 // group, 3, 3),
    )  # fmt: skip
    exact(model, dividing("n", 1), "n", lambda n: n / FACTOR.reshape(-1, 1, 1))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("n = LayerNormalization(x, s, b) p = MatMul(n, w) y = Add(n, x)", "Add reads it"),
        ("n = Sigmoid(x) y = MatMul(n, w)", "Sigmoid has no constant to divide"),
        ("n = Mul(x, half) y = MatMul(n, w)", "one constant for all channels"),
        ("n = Mul(x, x) y = MatMul(n, w)", "Mul has no constant input"),
        ("h = Mul(x, s) n = Add(h, b) g = Neg(h) y = MatMul(n, w)", "others read what"),
        ("h = Sigmoid(x) n = Add(h, b) y = MatMul(n, w)", "Sigmoid has no constant"),
        ("n = LayerNormalization<axis=0>(x, k, k) y = MatMul(n, w)", "not over the last axis"),
        ("n = LayerNormalization(x, s, b) y = MatMul(k, n)", "otherwise than as rows"),
        ("n = Abs(x) y = MatMul(n, w)", "has no constant to divide"),
    ],
)
def test_no_factor(body: str, why: str) -> None:
    model = build(
        f"g (float[4,4] x) => (float y) {{ {body} }}",
        **NORM, k=(4, 4), w=(4, 3), half=np.float32(0.5),
    )  # fmt: skip
    unchanged(model, dividing("n"), why)


def test_no_factor_of_inputs_and_outputs() -> None:
    model = build(
        "g (float[2,4] x) => (float[2,4] n, float y) { n = Mul(x, s) y = MatMul(n, w) }",
        s=(4,), w=(4, 3),
    )  # fmt: skip
    unchanged(model, dividing("n"), "it is an output of the model")
    unchanged(
        model,
        lambda rw, m: fold_factor(rw, m.graph.inputs[0], FACTOR),
        "it is an input of the model",
    )


def test_inserted_factor() -> None:
    model = build(
        """g (float[2,4] x) => (float y, float z, float r) {
            n = Sigmoid(x) y = MatMul(n, w) z = Gemm<transB=1>(n, v) r = Relu(n)
        }""",
        w=(4, 3), v=(5, 4),
    )  # fmt: skip
    copy, why = changed(
        model, lambda rw, m: insert_factor(rw, value(m, "n"), list(m.graph)[1:3], FACTOR)
    )
    assert why is None
    assert_equivalent(model, copy)
    assert [n.op_type for n in copy.graph] == ["Sigmoid", "Mul", "MatMul", "Gemm", "Relu"]
    assert copy.graph[2].inputs[0] is copy.graph[3].inputs[0] is copy.graph[1].outputs[0]


def test_no_inserted_factor() -> None:
    model = build("g (float[2,4] x, float[4,3] w) => (float y) { n = Sigmoid(x) y = MatMul(n, w) }")
    unchanged(
        model,
        lambda rw, m: insert_factor(rw, value(m, "n"), [m.graph[1]], FACTOR),
        "input 1 of MatMul is not constant",
    )


def test_bias_corrections() -> None:
    model = build(
        "g (float[2,4] x) => (float y, float z) { p = MatMul(x, w) y = Add(p, c) z = Gemm(x, w) }",
        w=(4, 3), c=(3,),
    )  # fmt: skip
    amount = np.array([1.0, 2.0, 3.0])
    for i, out in ((0, "y"), (2, "z")):
        copy, why = changed(model, lambda rw, m, i=i: add_to_output(rw, m.graph[i], amount))
        assert why is None
        feeds = [{"x": np.ones((2, 4), np.float32)}]
        a, b = (collect(m, {out: [Keep()]}, feeds)[out][0].array for m in (model, copy))  # type: ignore[attr-defined,dict-item]
        np.testing.assert_allclose(b - a, np.broadcast_to(amount, a.shape), rtol=1e-5)
    bare = build("g (float[2,4] x) => (float y) { y = MatMul(x, w) }", w=(4, 3))
    unchanged(bare, lambda rw, m: add_to_output(rw, m.graph[0], amount), "no bias is added")


# Choosing


def quantized_error(x: Array, w: Array, factor: Array) -> float:
    """Mean squared error of products with a batch and weights rounded to 8 bits."""
    total = 0.0
    ws = w * factor[:, None]
    scale = np.abs(ws).max(axis=0) / 127
    wq = np.rint(ws / scale) * scale
    for batch in x:
        b = batch / factor
        low, high = min(b.min(), 0), max(b.max(), 0)
        step = (high - low) / 255
        zero = np.rint(-low / step)
        q = (np.clip(np.rint(b / step) + zero, 0, 255) - zero) * step
        total += float(((q @ wq - batch @ w) ** 2).sum(axis=1).mean())
    return total / len(x)


def outliers(seed: int) -> tuple[Array, Array, Channels]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 30, 32)) * np.exp(0.5 * rng.normal(size=32))
    x[3, :2, 5] *= 40  # large in one batch
    x[:, :, 9] *= 12  # large in all
    w = rng.normal(size=(32, 24))
    rows = x.reshape(-1, 32)
    channels = Channels(x.min(axis=1), x.max(axis=1), (rows**2).mean(axis=0), rows.mean(axis=0))
    return x, w, channels


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_error_is_what_happens(seed: int) -> None:
    x, w, channels = outliers(seed)
    one = np.ones(32)
    factor, error = choose_factor(channels, w)
    np.testing.assert_allclose(expected_error(channels, w), quantized_error(x, w, one), rtol=0.3)
    np.testing.assert_allclose(error, quantized_error(x, w, factor), rtol=0.3)
    assert quantized_error(x, w, factor) < 0.5 * quantized_error(x, w, one)


def test_no_factor_where_channels_are_alike() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (4, 2000, 8))
    w = np.tile(np.eye(8), 2)
    rows = x.reshape(-1, 8)
    channels = Channels(x.min(axis=1), x.max(axis=1), (rows**2).mean(axis=0), rows.mean(axis=0))
    factor, error = choose_factor(channels, w)
    assert error <= expected_error(channels, w)
    np.testing.assert_allclose(factor / factor.mean(), 1, atol=0.02)


def test_statistics_of_changed_channels() -> None:
    x, _, channels = outliers(0)
    shift, factor = channels.middle, np.exp(np.linspace(-1, 1, 32))
    moved = (x - shift) / factor
    got = channels.changed(shift, factor)
    np.testing.assert_allclose(got.low, moved.min(axis=1))
    np.testing.assert_allclose(got.squares, (moved.reshape(-1, 32) ** 2).mean(axis=0))
    np.testing.assert_allclose(got.mean, moved.reshape(-1, 32).mean(axis=0), atol=1e-12)


BLOCK = """g (float[N,8] x) => (float[N,8] y) {
    n = LayerNormalization(x, s, b)
    p = MatMul(n, w1) h = Add(p, c1) r = Sigmoid(h)
    q = MatMul(r, w2) o = Add(q, c2)
    t = Add(o, n)
    m = LayerNormalization(t, s2, b2)
    e = MatMul(m, w3) y = Add(e, c2)
}"""


def block() -> tuple[ir.Model, dict[ir.Value, Channels], list[ir.Node]]:
    spread = np.array([1, 1, 30, 1, 1, 2, 1, 0.1], np.float32)
    model = build(
        BLOCK, s=spread, b=5 * spread, w1=(8, 16), c1=(16,), w2=(16, 8), c2=(8,),
        s2=spread, b2=(8,), w3=(8, 8),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    data = [{"x": rng.normal(size=(k, 8)).astype(np.float32)} for k in (3, 5, 9, 4)]
    nodes = [n for n in model.graph if n.op_type == "MatMul"]
    seen = collect(
        model, {n.inputs[0].name: [ChannelStats(-1), BatchRanges()] for n in nodes}, data
    )
    return model, {n.inputs[0]: Channels.of(*seen[n.inputs[0].name]) for n in nodes}, nodes  # type: ignore[arg-type]


def test_smoothing_of_a_block() -> None:
    model, channels, nodes = block()
    before = ir.clone(model)
    rw = Rewriter(model)
    done = {v.name: d for v, d in smooth(rw, nodes, channels).items()}
    ir.verify(model)
    assert_equivalent(before, model)
    assert done["n"].shift
    assert done["n"].factor == "inserted"  # the residual reads it too
    assert done["n"].reasons == ("no factor in constants: Add reads it",)
    assert done["m"].factor == "folded"
    assert done["r"].factor is None
    assert any("Sigmoid" in r for r in done["r"].reasons)
    assert all(d.gain >= 1 for d in done.values())
    assert done["n"].gain > 10
    assert [n.op_type for n in model.graph].count("Mul") == 1


def test_smoothing_without_a_mul() -> None:
    model, channels, nodes = block()
    ops = [n.op_type for n in model.graph]
    done = {v.name: d for v, d in smooth(Rewriter(model), nodes, channels, least=1e9).items()}
    assert [n.op_type for n in model.graph] == ops
    assert any(r.startswith("no Mul: it would divide the error by") for r in done["n"].reasons)


def test_smoothing_leaves_others_alone() -> None:
    model, channels, nodes = block()
    before = ir.dump(model)
    wrong = {v: Channels(*(a[..., :3] for a in vars(c).values())) for v, c in channels.items()}
    done = smooth(Rewriter(model), nodes, wrong)
    assert {d.reasons for d in done.values()} == {("weights and statistics differ in channels",)}
    assert smooth(Rewriter(model), nodes, {}) == {}
    others = [n for n in model.graph if n.op_type == "LayerNormalization"]
    assert (
        smooth(
            Rewriter(model),
            others,
            dict.fromkeys([others[0].inputs[0]], next(iter(channels.values()))),
        )
        == {}
    )  # type: ignore[list-item]
    assert ir.dump(model) == before

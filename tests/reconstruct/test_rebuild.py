from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruct.single import Array, network, normal, run

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.reconstruct import Fit, Problem, Walk, layers, rebuild
from graphopt.reconstruct import problem as problems
from graphopt.rewrite import Rewriter
from graphopt.runtime import probe_feeds
from graphopt.testing import random_model

Change = Callable[[Problem], "Array | None"]


def convolutions() -> ir.Model:
    """Four convolutions in a row."""
    return network(
        """
        a = Conv<pads = [1, 1, 1, 1]>(x, u, p) b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, v, q) d = Relu(c)
        e = Conv<strides = [2, 2]>(d, w) f = Relu(e)
        y = Conv(f, k, l)
        """,
        "N,3,8,8",
        u=normal(8, 3, 3, 3, seed=1) / 5,
        p=normal(8, seed=2) / 5,
        v=normal(8, 8, 3, 3, seed=3) / 8,
        q=normal(8, seed=4) / 5,
        w=normal(6, 8, 3, 3, seed=5) / 8,
        k=normal(4, 6, 1, 1, seed=6),
        l=normal(4, seed=7),
    )


RESIDUAL = """
    a = Conv<pads = [1, 1, 1, 1]>(x, u, p) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, v, q)
    d = Add(c, x) e = Relu(d)
    f = Conv<pads = [1, 1, 1, 1]>(e, w, r)
    g = Add(e, f) y = Relu(g)
"""
PROJECTED = """
    a = Conv<pads = [1, 1, 1, 1]>(x, u, p) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, v, q)
    d = Conv(b, s)
    e = Add(c, d) y = Relu(e)
"""
LATE = """
    a = Conv<pads = [1, 1, 1, 1]>(x, u, p) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, v, q)
    t = Sigmoid(b)
    d = Add(c, t) y = Relu(d)
"""


def block(body: str) -> ir.Model:
    known = {
        "u": normal(6, 6, 3, 3, seed=1) / 7,
        "p": normal(6, seed=2) / 3,
        "v": normal(6, 6, 3, 3, seed=3) / 7,
        "q": normal(6, seed=4) / 3,
        "w": normal(6, 6, 3, 3, seed=5) / 7,
        "r": normal(6, seed=6) / 3,
        "s": normal(6, 6, 1, 1, seed=7) / 2,
    }
    return network(body, "N,6,8,8", **{k: v for k, v in known.items() if f" {k}" in body})


def batches(*sizes: int, channels: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    return [{"x": normal(n, channels, 8, 8, seed=seed + i)} for i, n in enumerate(sizes)]


def best(problem: Problem) -> Array:
    return problem.optimum


def named(*names: str) -> Callable[[Any], bool]:
    return lambda layer: layer.name in names


def damage(model: ir.Model, name: str, amount: float = 0.5) -> ir.Model:
    """A copy in which random numbers are added to the weights of a layer."""
    copy = ir.clone(model)
    rw = Rewriter(copy)
    (layer,) = (each for each in layers(copy) if each.name == name)
    matrix = layer.matrix()
    layer.write(rw, matrix + amount * matrix.std() * normal(*matrix.shape, seed=11), None)
    rw.remove_initializers()
    return copy


def off(original: ir.Model, model: ir.Model, channels: int = 3) -> float:
    """Energy of the difference at the output in units of its own, on other samples."""
    x = batches(32, channels=channels, seed=100)[0]["x"]
    reference = run(original, x).astype(np.float64)
    return float(np.mean((run(model, x) - reference) ** 2) / np.mean(reference**2))


def value_of(model: ir.Model, name: str, x: Array) -> Array:
    """What a model computes somewhere within."""
    walk = Walk(model, [{"x": x}], threads=1)
    walk.to(len(list(model.graph)), keep=[name])
    return walk.values(name)[0]


def names(fits: list[Fit]) -> list[str]:
    return [fit.name for fit in fits]


def weights(model: ir.Model) -> dict[str, tuple[Array, Array]]:
    return {each.name: (each.matrix(), each.bias()) for each in layers(model)}


def same_weights(a: ir.Model, b: ir.Model, but: Collection[str] = ()) -> None:
    one, other = weights(a), weights(b)
    for name in one.keys() - set(but):
        np.testing.assert_array_equal(one[name][0], other[name][0])
        np.testing.assert_array_equal(one[name][1], other[name][1])


def test_without_a_change_nothing_is_due() -> None:
    original = convolutions()
    model = ir.clone(original)
    assert rebuild(original, model, batches(4), best) == []
    assert ir.dump(model) == ir.dump(original)


def test_an_unchanged_model_keeps_its_weights() -> None:
    original = convolutions()
    model = ir.clone(original)
    fits = rebuild(original, model, batches(16, 7), best, wanted=lambda _: True)
    assert names(fits) == ["a", "c", "e", "y"]
    for name, (matrix, bias) in weights(model).items():
        np.testing.assert_allclose(matrix, weights(original)[name][0], atol=1e-3)
        np.testing.assert_allclose(bias, weights(original)[name][1], atol=1e-3)
    assert all(fit.residual < 1e-5 and fit.error == 0 and fit.reason is None for fit in fits)
    assert fits[0].rows == 23 * 64
    assert fits[-1].rows == 23 * 9
    assert off(original, model) < 1e-8


def test_the_original_is_not_changed() -> None:
    original = convolutions()
    before = ir.clone(original)
    rebuild(original, damage(original, "a"), batches(8), best, wanted=named("c"))
    same_weights(original, before)


def without_channels(problem: Problem) -> Array:
    """The best weights of c that read neither channel 1 nor 5; of other layers all."""
    if problem.layer.name != "c":
        return problem.optimum
    keep = np.ones((1, 8, 9), bool)
    keep[:, [1, 5]] = False
    return problem.restricted(keep.reshape(1, -1))


def test_what_follows_makes_up_for_channels_that_went() -> None:
    original, samples = convolutions(), batches(*[64] * 4)
    model = ir.clone(original)
    fits = rebuild(original, model, samples, without_channels, wanted=named("c"))
    assert names(fits) == ["c", "e", "y"]
    assert fits[0].error > 0
    c = weights(model)["c"][0].reshape(8, 8, 9)
    assert not c[:, [1, 5]].any()
    same_weights(original, model, but=["c", "e", "y"])

    zeroed = ir.clone(original)
    (layer,) = (each for each in layers(zeroed) if each.name == "c")
    matrix = layer.matrix().reshape(8, 8, 9)
    matrix[:, [1, 5]] = 0
    layer.write(Rewriter(zeroed), matrix.reshape(1, 8, -1), None)
    alone = ir.clone(original)
    only_c = lambda p: without_channels(p) if p.layer.name == "c" else None  # noqa: E731
    assert names(rebuild(original, alone, samples, only_c, wanted=named("c"))) == ["c"]
    assert off(original, model) < 0.9 * off(original, alone)
    assert off(original, alone) < 0.6 * off(original, zeroed)


def test_layers_are_asked_in_order_about_what_changed_and_what_is_wanted() -> None:
    original = convolutions()
    asked: list[str] = []

    def note(problem: Problem) -> None:
        asked.append(problem.layer.name)

    assert rebuild(original, ir.clone(original), batches(4), note, wanted=named("c")) == []
    assert asked == ["c"]
    asked.clear()
    change = lambda p: p.optimum * 1.01 if p.layer.name == "c" else note(p)  # noqa: E731
    rebuild(original, ir.clone(original), batches(4), change, wanted=named("c"))
    assert asked == ["e", "y"]


def test_a_block_makes_up_for_the_error_of_its_shortcut() -> None:
    original = block(RESIDUAL)
    damaged = damage(original, "c")
    fitted = ir.clone(damaged)
    fits = rebuild(original, fitted, batches(32, channels=6), best, wanted=named("f"))
    assert names(fits) == ["f"]
    assert off(original, fitted, 6) < 0.7 * off(original, damaged, 6)

    # What f has to compute is what its sum was, less the shortcut as it is now.
    (layer,) = (each for each in layers(fitted) if each.name == "f")
    assert layer.patches is not None
    x = batches(32, channels=6)[0]["x"]
    shortcut = value_of(damaged, "e", x)
    wanted = np.moveaxis(value_of(original, "g", x) - shortcut, 1, -1).reshape(-1, 6)
    rows = layer.patches.cut(shortcut, 1 << 30)[:, 0]
    expected = np.linalg.lstsq(np.hstack([rows, np.ones((len(rows), 1))]), wanted)[0]
    np.testing.assert_allclose(layer.matrix()[0].T, expected[:-1], atol=2e-3)
    np.testing.assert_allclose(layer.bias()[0], expected[-1], atol=2e-3)


@pytest.mark.parametrize("name", ["c", "d"])
def test_of_two_layers_in_one_sum_one_makes_up_for_the_other(name: str) -> None:
    original = block(PROJECTED)
    model = ir.clone(original)

    def change(problem: Problem) -> Array:
        if problem.layer.name == name:  # a quarter of its inputs are gone
            keep = np.arange(problem.layer.columns) % 4 != 0
            return problem.restricted(keep[None])
        return problem.optimum

    fits = rebuild(original, model, batches(32, channels=6), change, wanted=named("c", "d"))
    assert names(fits) == ["c", "d"]
    alone = ir.clone(original)
    rebuild(
        original, alone, batches(32, channels=6),
        lambda p: change(p) if p.layer.name == name else None, wanted=named(name),
    )  # fmt: skip
    if name == "c":  # d comes later, and knows what c lost
        assert off(original, model, 6) < 0.95 * off(original, alone, 6)
    else:
        same_weights(original, model, but=["c", "d"])
        assert off(original, model, 6) <= 1.001 * off(original, alone, 6)


def test_a_shortcut_that_comes_later_in_the_graph_counts() -> None:
    original = block(LATE)
    damaged = damage(original, "a")
    fitted = ir.clone(damaged)
    (fit,) = rebuild(original, fitted, batches(48, channels=6), best, wanted=named("c"))
    assert fit.name == "c"
    # The same model with the shortcut before the convolution.
    line = "    c = Conv<pads = [1, 1, 1, 1]>(b, v, q)\n"
    early = LATE.replace(line, "").replace("t = Sigmoid(b)\n", "t = Sigmoid(b)\n" + line)
    first = block(early)
    (other,) = rebuild(
        first, moved := damage(first, "a"), batches(48, channels=6), best, wanted=named("c")
    )
    assert [n.op_type for n in moved.graph] != [n.op_type for n in fitted.graph]
    assert fit.residual == pytest.approx(other.residual, rel=1e-4)
    np.testing.assert_allclose(weights(fitted)["c"][0], weights(moved)["c"][0], atol=1e-4)


def test_layers_that_share_weights_keep_them() -> None:
    original = network(
        "a = MatMul(x, w) b = Tanh(a) c = MatMul(b, w) y = Tanh(c)", "N,6", w=normal(6, 6) / 2
    )
    samples = [{"x": normal(200, 6, seed=1)}]
    model = ir.clone(original)

    def change(problem: Problem) -> Array:
        raise AssertionError(problem.layer.name)

    (fit,) = rebuild(original, model, samples, change, wanted=named("a"))
    assert (fit.name, fit.reason) == ("a", "its weights are used elsewhere, too")
    assert ir.dump(model) == ir.dump(original)


def test_a_layer_within_a_branch_stays_and_what_reads_it_is_fitted() -> None:
    body = """
    a = MatMul(x, w)
    s = ReduceSum<keepdims = 0>(a)
    c = Greater(s, k)
    b = If(c) <
      then_branch = t () => (float[N, 4] p) { p = Tanh(a) },
      else_branch = e () => (float[N, 4] q) { q = MatMul(a, v) }
    >
    y = Gemm(b, u, r)
    """
    known = {"w": normal(4, 4), "v": normal(4, 4, seed=1), "u": normal(4, 3, seed=2)}
    original = network(body, "N,4", k=np.float32(0), r=normal(3, seed=3), **known)
    model = ir.clone(original)
    samples = [{"x": normal(30, 4, seed=i)} for i in range(4)]
    change = lambda p: p.optimum * 0.9  # noqa: E731
    assert names(rebuild(original, model, samples, change, wanted=named("a"))) == ["a", "y"]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_random_models_keep_their_outputs(seed: int) -> None:
    original = random_model(seed, nodes=16)
    samples = [dict(each) for each in probe_feeds(original, seeds=(0, 1, 2), settings=1)]
    model = ir.clone(original)
    fits = rebuild(original, model, samples, best, wanted=lambda _: True, threads=1)
    assert names(fits) == [each.name for each in layers(original)]
    ir.verify(model)
    assert all(fit.residual < 1e-3 for fit in fits)


def test_models_that_only_agree_in_names() -> None:
    original = convolutions()
    model = ir.clone(original)
    node = next(iter(model.graph))
    rw = Rewriter(model)
    with rw.at(node):
        rw.set_input(node, 0, rw.op("Identity", model.graph.inputs[0]))
    ir.infer_shapes(model)
    fits = rebuild(original, model, batches(32), best, wanted=named("a"))
    assert names(fits) == ["a", "c", "e", "y"]
    assert off(original, model) < 1e-8


def test_a_layer_that_the_original_does_not_have() -> None:
    original, model = convolutions(), convolutions()
    next(iter(model.graph)).outputs[0].name = "other"
    with pytest.raises(ValueError, match="the original does not compute 'other'"):
        rebuild(original, model, batches(4), best, wanted=lambda _: True)


def test_too_large_layers_are_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_MOST", 40)
    original = convolutions()
    model = damage(original, "a")
    fits = rebuild(original, model, batches(8), best, wanted=lambda _: True)
    assert [(fit.name, fit.reason is None) for fit in fits] == [
        ("a", True), ("c", False), ("e", False), ("y", True),
    ]  # fmt: skip
    assert "72 columns" in (fits[1].reason or "")
    assert fits[1].rows == 0
    same_weights(original, model, but=["a", "y"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite(bad: float) -> None:
    original = convolutions()
    samples = batches(4, 4)
    samples[1]["x"][2, 0, 3, 3] = bad
    with pytest.raises(CalibrationError, match="'a' cannot be fitted"):
        rebuild(original, ir.clone(original), samples, best, wanted=lambda _: True)


def test_no_samples() -> None:
    original = convolutions()
    with pytest.raises(CalibrationError, match="no samples"):
        rebuild(original, ir.clone(original), [], best, wanted=lambda _: True)


def test_empty_batches() -> None:
    original = convolutions()
    one, two = ir.clone(original), ir.clone(original)
    rebuild(original, one, batches(8), without_channels, wanted=named("c"))
    rebuild(original, two, [*batches(8), *batches(0)], without_channels, wanted=named("c"))
    same_weights(one, two)
    with pytest.raises(CalibrationError, match="no samples"):
        rebuild(original, two, batches(0), best, wanted=named("c"))


def test_a_batch_without_an_input() -> None:
    original = convolutions()
    with pytest.raises(CalibrationError, match="lacks the input 'x'"):
        rebuild(original, ir.clone(original), [*batches(4), {}], best, wanted=lambda _: True)

"""What layers may become, what that saves, and what it adds to the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pruning.test_noise import images, residual
from reconstruct.single import network, normal

from graphopt import ir
from graphopt.decompose import KINDS, Kind
from graphopt.decompose.parts import Part, dense, find_parts, measure_noise, products
from graphopt.decompose.timing import changed
from graphopt.measure import Trial
from graphopt.pruning.sizes import MEASURES, totals
from graphopt.reconstruct import layers, observe
from graphopt.runtime import open_session

Case = tuple[ir.Model, tuple[int, ...]]


def conv(
    weight: tuple[int, ...], *sides: int, op: str = "Conv", bias: int = 0, **attributes: Any
) -> Case:
    """A model of one convolution, and the sizes of its input."""
    given = ", ".join(f"{k} = {v}" for k, v in attributes.items())
    constants = {"w": normal(*weight)} | ({"b": normal(bias)} if bias else {})
    inputs = ", ".join(["x", *constants])
    group = attributes.get("group", 1)
    channels = weight[0] if op == "ConvTranspose" else weight[1] * group
    head = f"{op}<{given}>" if given else op
    shape = ",".join(map(str, ["N", channels, *sides]))
    return network(f"y = {head}({inputs})", shape, **constants), (channels, *sides)


CASES = {
    "plain": conv((8, 6, 3, 3), 6, 6, pads=[1, 1, 1, 1]),
    "bias": conv((8, 6, 3, 3), 6, 6, bias=8),
    "strided and dilated": conv((8, 6, 3, 3), 9, 9, strides=[2, 1], dilations=[1, 2], bias=8),
    "grouped": conv((12, 4, 3, 3), 6, 6, group=3, pads=[1, 1, 1, 1]),
    "one axis": conv((8, 6, 5), 12, strides=[2], bias=8),
    "three axes": conv((6, 4, 3, 2, 3), 5, 5, 5, pads=[1, 0, 1, 1, 1, 1]),
    "of the same size": conv((8, 6, 3, 3), 6, 6, auto_pad='"SAME_UPPER"', strides=[2, 2]),
    "transposed": conv((6, 8, 3, 3), 4, 4, op="ConvTranspose", strides=[2, 2], bias=8),
    "pointwise": conv((12, 10, 1, 1), 4, 4),
    "product": (network("y = MatMul(x, w)", "N,10", w=normal(10, 12)), (10,)),
    "product of a sequence": (
        network("a = MatMul(x, w) y = Add(a, b)", "N,5,10", w=normal(10, 12), b=normal(12)),
        (5, 10),
    ),
    "Gemm": (
        network(
            "y = Gemm<transB = 1, alpha = 0.5>(x, w, b)", "N,10", w=normal(12, 10), b=normal(12)
        ),
        (10,),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def only(model: ir.Model, kinds: Any = KINDS) -> Part:
    (part,) = find_parts(model, kinds, ())[0]
    return part


def batches(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    return [{"x": normal(16, *sizes, seed=i)} for i in range(4)]


def low_rank(rank: int, n: int = 10) -> ir.Model:
    """A product of two factors, multiplied out."""
    return network("y = MatMul(x, w)", f"N,{n}", w=normal(n, rank) @ normal(rank, n, seed=1))


def test_sizes_saved_are_those_of_the_model_that_is_made(case: Case) -> None:
    model, sizes = case
    before, part = totals(model), only(model)
    assert len(part.forms) > 3
    assert part.forms[0] is None
    assert all(part.saved[what][0] == 0 for what in MEASURES)
    for i, form in enumerate(part.forms):
        found = changed(model, {part.name: form})
        assert totals(found) == {what: before[what] - part.saved[what][i] for what in MEASURES}
        if i in (1, len(part.forms) - 1):
            with open_session(found) as session, open_session(model) as original:
                feeds = {"x": normal(2, *sizes)}
                shapes = [s.run(feeds)["y"].shape for s in (session, original)]
            assert shapes[0] == shapes[1]


def test_noise_is_what_forms_add(case: Case) -> None:
    model, sizes = case
    part, data = only(model), batches(sizes)
    measure_noise(model, [part], data, 1)
    count = len(part.forms)
    assert part.forms[0] is None
    for array in (part.errors, part.noise, part.faster, *part.saved.values()):
        assert array.shape == (count,)
        assert np.isfinite(array).all()
    assert part.errors[0] == part.noise[0] == 0.0
    assert (part.errors[1:] > 1e-6).all()
    # The layer's output is the model's, but for the mean that a bias makes up for.
    ratios = part.noise[1:] / part.errors[1:]
    np.testing.assert_allclose(ratios, ratios[0])
    assert 0.5 < ratios[0] < 2


def test_noise_is_measured_with_one_form_of_the_layer_in_the_model() -> None:
    model, data = residual(), images(*[8] * 8)
    parts = find_parts(model, ["output"], ())[0]
    measure_noise(model, parts, data, 1)
    for part in parts:
        noises: list[float] = []
        # A quarter of the batches is what nothing was fitted to.
        (problem,) = observe(model, data[:6], {part.name}).values()
        for form in part.forms[1:]:
            assert form is not None
            weights = products(problem, form, 1)[1].astype(np.float32)
            noises.append(Trial(model, data[6:]).noise(dense(model, part.name, weights)))
        ratios = part.noise[1:] / noises
        assert np.isclose(ratios, 1.0, rtol=1e-3).any()
        # Those of others are in proportion to what they do to the layer.
        np.testing.assert_allclose(part.noise[1:] / part.errors[1:], part.noise[1] / part.errors[1])


@pytest.mark.parametrize("kind", ["output", "input", "spatial"])
def test_more_channels_are_less_noise(kind: Kind) -> None:
    model, data = residual(), images(*[8] * 8)
    parts = find_parts(model, [kind], ())[0]
    measure_noise(model, parts, data, 1)
    assert len(parts) >= 3
    for part in parts:
        ranks = [form.ranks[0] for form in part.forms if form is not None]
        assert ranks == sorted(ranks, reverse=True)
        assert (np.diff(part.noise[1:]) >= 0).all()


def test_what_is_of_low_rank_has_no_noise() -> None:
    model = low_rank(3)
    part = only(model)
    measure_noise(model, [part], batches((10,)), 1)
    ranks = [form.ranks[0] for form in part.forms if form is not None]
    assert min(ranks) < 3 <= max(ranks)
    for form, noise in zip(part.forms[1:], part.noise[1:], strict=True):
        assert form is not None
        assert (noise < 1e-9) == (form.ranks[0] >= 3)


def test_nothing_is_to_be_made_up_for_where_the_layer_reads_zeros() -> None:
    model = low_rank(3)
    part = only(model)
    measure_noise(model, [part], [{"x": np.zeros((4, 10), np.float32)}] * 4, 1)
    assert np.isfinite(part.noise).all()
    assert part.noise.max() < 1e-6


def worse(part: Part, i: int, j: int) -> bool:
    """Whether form i is in nothing better than j, and in something worse."""
    one, other = part.forms[i], part.forms[j]
    if one and other and (one.kind, one.ranks) == (other.kind, other.ranks):
        return False  # summands one by one, or joined: the clock tells
    pairs = [
        (part.noise[i], part.noise[j]),
        *((-part.saved[what][i], -part.saved[what][j]) for what in ("macs", "params")),
        *[tuple(0 if f is None else f.operators for f in (one, other))],
    ]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def test_forms_that_others_beat_are_left_out() -> None:
    model, data = residual(), images(*[8] * 8)
    parts = find_parts(model, KINDS, ())[0]
    counts = [len(part.forms) for part in parts]
    measure_noise(model, parts, data, 1)
    assert any(len(p.forms) < n for p, n in zip(parts, counts, strict=True))
    for part in parts:
        places = range(len(part.forms))
        assert not any(worse(part, i, j) for i in places for j in places if i != j)
        assert len(set(part.forms)) == len(part.forms)
        assert len({form.kind for form in part.forms if form is not None}) >= 1


def test_layers_that_are_alike_know_each_other() -> None:
    body = """
        a = Conv<pads = [1, 1, 1, 1]>(x, u) b = Conv<pads = [1, 1, 1, 1]>(a, v)
        c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(b, w)
        d = Conv<pads = [1, 1, 1, 1]>(c, z) y = Relu(d)
    """
    weights = {name: normal(6, 6, 3, 3, seed=i) / 5 for i, name in enumerate("uvwz")}
    parts = find_parts(network(body, "N,6,8,8", **weights), KINDS, ())[0]
    signs = {part.name: part.sign for part in parts}
    assert signs["a"] == signs["b"]
    # Another stride, and another size of the image.
    assert len(set(signs.values())) == 3


SHARED = network(
    "a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = MatMul(c, v)", "N,16",
    w=normal(16, 16), v=normal(16, 16, seed=1),
)  # fmt: skip


def test_reasons_why_layers_stay() -> None:
    parts, reasons = find_parts(SHARED, KINDS, ())
    assert [part.name for part in parts] == ["y"]
    assert reasons == dict.fromkeys("ac", "its weights are used elsewhere, too")
    parts, reasons = find_parts(SHARED, ["depthwise", "spatial"], ())
    assert parts == []
    assert reasons["y"] == "no form of it is smaller"


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), {"s", "a", "c", "y"}),
        (("a",), {"s", "c", "y"}),
        (("Conv",), {"y"}),
        (("?",), set()),
        (("zzz",), {"s", "a", "c", "y"}),
    ],
)
def test_what_is_to_be_skipped(skip: tuple[str, ...], left: set[str]) -> None:
    model = residual()
    parts, reasons = find_parts(model, KINDS, skip)
    assert {part.name for part in parts} == left
    gone = {layer.name for layer in layers(model)} - left
    assert reasons == dict.fromkeys(gone, "skip names it")


def test_a_pattern_names_the_sum_with_a_bias() -> None:
    model = network("a = MatMul(x, w) y = Add(a, b)", "N,16", w=normal(16, 16), b=normal(16))
    assert find_parts(model, KINDS, ["y"]) == ([], {"y": "skip names it"})
    assert find_parts(model, KINDS, ["a"]) == ([], {"y": "skip names it"})


def test_weights_that_are_no_constants_are_no_parts() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "m (float[16,16] x, float[16,16] w) => (float[16,16] y) { y = MatMul(x, w) }"
    )
    ir.infer_shapes(model)
    assert find_parts(model, KINDS, ()) == ([], {})

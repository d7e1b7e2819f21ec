"""Inputs made up from declarations: sizes, values, types, and what models accept."""

from __future__ import annotations

import math
import string
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from graphopt import ir
from graphopt.errors import CalibrationError, SessionError
from graphopt.runtime.probe import InputSpec, probe_feeds, probes, spell
from graphopt.runtime.session import open_session
from graphopt.runtime.values import Feeds

HEADER = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>\n'


def parse(text: str) -> ir.Model:
    return ir.parse_text(HEADER + text)


def constant(name: str, *shape: int) -> str:
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(['0.5'] * math.prod(shape))}}}"


def accepted(model: ir.Model, **options: Any) -> list[Feeds]:
    """Probes that ONNX Runtime accepts."""
    with open_session(model) as session:

        def runs(feeds: Feeds) -> bool:
            try:
                session.run(feeds)
            except SessionError:
                return False
            return True

        return probe_feeds(model, runs=runs, **options)


def first_try(model: ir.Model) -> list[Feeds]:
    """Probes made without asking, all of which ONNX Runtime has to accept."""
    found = probe_feeds(model)
    with open_session(model) as session:
        for feeds in found:
            session.run(feeds)
    return found


def test_two_settings_agree_on_symbols_and_differ_from_each_other() -> None:
    model = parse(
        "g (float[batch,seq,8] a, float[batch,seq] b, float[batch] c) => (float[batch,seq,8] y)"
        " { y = Identity(a) }"
    )
    one, two = probe_feeds(model)
    for feeds in (one, two):
        batch, seq, width = feeds["a"].shape
        assert (width, feeds["b"].shape, feeds["c"].shape) == (8, (batch, seq), (batch,))
    assert one["a"].shape[0] != two["a"].shape[0]
    assert one["a"].shape[1] != two["a"].shape[1]
    assert one["a"].shape[0] == 1


def test_static_model_gets_other_values_in_place_of_other_dimensions() -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    assert len(probe_feeds(model, settings=1)) == 1
    for options, count in (({}, 2), ({"settings": 3}, 3), ({"settings": 1, "seeds": (4, 9)}, 2)):
        feeds = probe_feeds(model, **options)
        assert len(feeds) == count
        assert len({f["x"].tobytes() for f in feeds}) == count


def test_no_inputs() -> None:
    model = parse("g () => (float[1] y) <float[1] c = {1}> { y = Neg(c) }")
    assert probe_feeds(model) == [{}]


def test_repeatable_and_independent_of_other_inputs() -> None:
    text = "g (float[N,4] x{}) => (float[N,4] y) {{ y = Neg(x) }}"
    alone, again = (probe_feeds(parse(text.format(""))) for _ in range(2))
    more = probe_feeds(parse(text.format(", int64[N] other")))
    for a, b, c in zip(alone, again, more, strict=True):
        assert_array_equal(a["x"], b["x"])
        assert_array_equal(a["x"], c["x"])


def test_defaults_are_not_fed() -> None:
    model = parse("g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }")
    assert [list(f) for f in probe_feeds(model, settings=1)] == [["x"]]


def test_channels_come_from_the_weights() -> None:
    model = parse(
        f"g (float[n,c,h,w] x) => (float[n,4,h2,w2] y) <{constant('k', 4, 3, 7, 7)}>"
        " { y = Conv(x, k) }"
    )
    found = first_try(model)
    assert [f["x"].shape[1] for f in found] == [3, 3]
    assert all(f["x"].shape[2] >= 7 for f in found)
    assert found[1]["x"].shape[2] != found[1]["x"].shape[3]


def test_unknown_rank_and_anonymous_dimensions() -> None:
    model = parse(
        "g (float[] x, float[?,?] z) => (float[] y, float[] v)"
        f" <{constant('k', 2, 3, 5)}, {constant('m', 6, 5)}>"
        " { y = Conv(x, k)  v = MatMul(z, m) }"
    )
    for feeds in first_try(model):
        assert feeds["x"].ndim == 3
        assert feeds["z"].shape[1] == 6


def test_settings_that_the_model_refuses_are_left_out() -> None:
    # A reshape that only even batches survive.
    model = parse(
        "g (float[batch,3] x) => (float[a,b] y) <int64[2] s = {2, -1}> { y = Reshape(x, s) }"
    )
    found = accepted(model)
    assert len(found) == 2
    assert all(f["x"].shape[0] % 2 == 0 for f in found)
    assert accepted(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    assert probe_feeds(model, runs=lambda feeds: False) == []
    assert len(probe_feeds(model, settings=4)) == 4


def test_samples_of_the_user_come_first() -> None:
    model = parse("g (float[batch] x) => (float[batch] y) { y = Neg(x) }")
    data = [{"x": np.full(n, 9, np.float32)} for n in (5, 6, 7)]
    found = probe_feeds(model, data=data)
    assert [f["x"].shape for f in found[:2]] == [(5,), (6,)]
    assert len(found) == 4
    only = probe_feeds(model, data=data, runs=lambda feeds: len(feeds["x"]) > 5)
    assert only[0]["x"].shape == (6,)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,3,4] x, int64[2] s) => (float[] y) { y = Reshape(x, s) }",
        "g (float[3,1] x, int64[3] s) => (float[] y) { y = Expand(x, s) }",
        "g (float[2,3] x, int64[2] r) => (float[] y) { y = Tile(x, r) }",
        "g (int64[2] s) => (float[] y) { y = ConstantOfShape(s) }",
        "g (float[6,6] x, int64[2] b, int64[2] e, int64[2] a, int64[2] d) => (float[] y)"
        " { y = Slice(x, b, e, a, d) }",
        "g (int64 a, int64 b, int64 c) => (int64[n] y) { y = Range(a, b, c) }",
        "g (float a, float b, float c) => (float[n] y) { y = Range(a, b, c) }",
        "g (float[3,4] x, int64[1] k) => (float[] y, int64[] z) { y, z = TopK(x, k) }",
        "g (float[3,4] x, int64[4] p) => (float[] y) { y = Pad(x, p) }",
        "g (float[3,4] x, int64[2] p, float v, int64[1] a) => (float[] y) { y = Pad(x, p, v, a) }",
        "g (float[1,2,4,4] x, float[4] s) => (float[] y) { y = Resize<mode=\"linear\">(x, , s) }",
        "g (float[1,2,4,4] x, int64[4] s) => (float[] y) { y = Resize<mode=\"cubic\">(x, , , s) }",
        "g (float[7,2] x, int64[2] s) => (float[] y, float[] z) { y, z = Split(x, s) }",
        "g (float[2,1,3,1] x, int64[2] a) => (float[] y) { y = Squeeze(x, a) }",
        "g (float[2,3] x, int64[2] a) => (float[] y) { y = Unsqueeze(x, a) }",
        "g (float[2,3] x, int64[2] a) => (float[] y) { y = ReduceSum(x, a) }",
        "g (float[2,3] x, int64 a) => (float[] y) { y = CumSum(x, a) }",
        "g (int64[4] i, int64 d, float[2] v) => (float[] y) { y = OneHot(i, d, v) }",
        "g (float[5,3] x, int64[2,2] i) => (float[] y) { y = Gather<axis=1>(x, i) }",
        "g (float[5,3] x, int64[2,3] i) => (float[] y) { y = GatherElements(x, i) }",
        "g (float[5,3] x, int64[4,2] i) => (float[] y) { y = GatherND(x, i) }",
        "g (float[5,3] x, int64[2,1] i, float[2,3] u) => (float[] y) { y = ScatterND(x, i, u) }",
        "g (float[5,3] x, int64[2,3] i, float[2,3] u) => (float[] y)"
        " { y = ScatterElements(x, i, u) }",
        "g (float[5,2,3] x, int64[2] n) => (float[] y) { y = ReverseSequence(x, n) }",
        "g (float[1,5,4] b, float[1,2,5] s, int64 m, float i, float t) => (int64[n,3] y)"
        " { y = NonMaxSuppression(b, s, m, i, t) }",
        "g (uint8[4] x, uint8[4] s) => (uint8[4] y) { y = BitShift<direction=\"LEFT\">(x, s) }",
        "g (int32[4] x, int32[4] d) => (int32[4] y) { q = Mod(x, d)  y = Div(q, d) }",
        "g (float[2,6,5] x, int64[2] i, int64[2] b) => (float[] y) { y = Col2Im(x, i, b) }",
        "g (seq(float[2]) s, int64 i) => (float[2] y) { y = SequenceAt(s, i) }",
        "g (string[3] x) => (string[3] y) { y = Identity(x) }",
        "g (float[2,3] x, float s, uint8 z) => (uint8[2,3] y) { y = QuantizeLinear(x, s, z) }",
        "g (bool[3] c, float[3] a, float[3] b) => (float[3] y) { y = Where(c, a, b) }",
    ],
)  # fmt: skip
def test_values_fit_their_operator_at_the_first_try(text: str) -> None:
    assert first_try(parse(text))


def test_lengths_of_a_recurrent_layer() -> None:
    weights = ", ".join([constant("w", 1, 16, 3), constant("r", 1, 16, 4), constant("b", 1, 32)])
    model = parse(
        f"g (float[t,n,3] x, int32[n] lengths, float[1,n,4] h0) => (float[] y) <{weights}>"
        " { y = LSTM<hidden_size=4>(x, w, r, b, lengths, h0) }"
    )
    for feeds in first_try(model):
        time, batch, _ = feeds["x"].shape
        assert feeds["h0"].shape == (1, batch, 4)
        assert feeds["lengths"].max() == time
        assert feeds["lengths"].min() >= 1


def test_trip_counts_are_small() -> None:
    model = parse("""
        g (int64 n, bool c, float[2] x) => (float[2] y) {
            y = Loop(n, c, x) <body = b (int64 i, bool go, float[2] a) => (bool go2, float[2] z) {
                go2 = Identity(go)
                z = Add(a, a)
            }>
        }""")
    for feeds in first_try(model):
        assert 1 <= feeds["n"] <= 4


def test_indices_are_found_through_casts_and_into_branches() -> None:
    model = parse(
        """
        g (int32[N] ids, bool c) => (float[] y)
        <int64[1] one = {1}, float[7,1] table = {1,2,3,4,5,6,7}> {
            y = If(c) <
                then_branch = t () => (float a) { l = Cast<to=7>(ids)  a = Gather(table, l) },
                else_branch = e () => (float b) { u = Cast<to=1>(ids)  b = Unsqueeze(u, one) }
            >
        }""".replace("<float[7,1]", "<int64[1] one = {1}, float[7,1]")
    )
    found = first_try(model)
    assert {bool(f["c"]) for f in found} == {True, False}
    drawn = np.concatenate([probe_feeds(model, seeds=(s,))[1]["ids"] for s in range(20)])
    assert drawn.min() == 0
    assert drawn.max() == 6


def test_inputs_of_language_models() -> None:
    model = parse(
        "g (int64[batch,sequence_length] input_ids,"
        " int64[batch,total_sequence_length] attention_mask,"
        " int64[batch,sequence_length] position_ids, int64[batch,sequence_length] token_type_ids,"
        " float[batch,2,past_sequence_length,4] past_key) => (float[] y)"
        f" <{constant('words', 9, 4)}, {constant('places', 20, 4)}>"
        " { a = Gather(words, input_ids)  b = Gather(places, position_ids)  y = Add(a, b) }"
    )
    for feeds in first_try(model):
        batch, length = feeds["input_ids"].shape
        past = feeds["past_key"].shape[2]
        assert feeds["input_ids"].max() < 9
        assert_array_equal(feeds["position_ids"][0], np.arange(length))
        assert feeds["attention_mask"].shape == (batch, past + length)
        assert set(np.unique(feeds["attention_mask"])) <= {0, 1}
        assert feeds["attention_mask"][0].all()
        assert set(np.unique(feeds["token_type_ids"])) <= {0, 1}


@pytest.mark.parametrize(
    ("formula", "size"),
    [
        ("p + s", lambda p, s: p + s),
        ("2*s - 1", lambda p, s: 2 * s - 1),
        ("s//2", lambda p, s: s // 2),
    ],
)
def test_sizes_by_formula(formula: str, size: Any) -> None:
    specs = [
        InputSpec("x", "tensor(float)", ("p", "s")),
        InputSpec("y", "tensor(float)", (formula,)),
    ]
    for probe in probes(specs):
        assert probe.feeds["y"].shape == (size(*probe.feeds["x"].shape),)


def test_what_is_no_formula_is_a_symbol() -> None:
    specs = [InputSpec("x", "tensor(float)", ("a b", "f(x)", "1/0", "x:0"))]
    assert all(len(p.feeds["x"].shape) == 4 for p in probes(specs))


def test_numbers_suit_roots_logarithms_and_variances() -> None:
    model = parse("""
        g (float[50] a, float[50] b, float[50] c, float[50] d) => (float[50] y) {
            e = Sqrt(a)  f = Log(b)  g2 = Acos(c)  s = Sum(e, f, g2)  y = Add(s, d)
        }""")
    feeds = first_try(model)[0]
    assert feeds["a"].min() > 0
    assert feeds["b"].min() > 0
    assert np.abs(feeds["c"]).max() < 1
    assert feeds["d"].min() < 0 < feeds["d"].max()


def test_flags_and_compared_numbers_switch() -> None:
    model = parse("""
        g (float[3] x, int64 rate) => (float[3] y) <int64 known = {16000}> {
            c = Equal(rate, known)
            y = If(c) <
                then_branch = t () => (float[3] a) { a = Neg(x) },
                else_branch = e () => (float[3] b) { b = Abs(x) }
            >
        }""")
    found = first_try(model)
    assert [f["rate"] == 16000 for f in found] == [True, False]


def test_optional_inputs_come_and_go() -> None:
    spec = InputSpec("x", "optional(tensor(float))", (2,))
    first, second = probes([spec])
    assert first.feeds["x"].shape == (2,)
    assert second.feeds["x"] is None


@pytest.mark.parametrize(
    ("type_", "dtype"),
    [
        ("tensor(float16)", np.float16),
        ("tensor(double)", np.float64),
        ("tensor(bfloat16)", ml_dtypes.bfloat16),
        ("tensor(float8e5m2)", ml_dtypes.float8_e5m2),
        ("tensor(int4)", ml_dtypes.int4),
        ("tensor(uint2)", ml_dtypes.uint2),
        ("tensor(complex64)", np.complex64),
        ("tensor(uint16)", np.uint16),
        ("tensor(bool)", np.bool_),
        ("tensor(string)", object),
        ("", np.float32),
    ],
)
@pytest.mark.parametrize("dims", [(), (2, 3), (0, 3), (1,)])
def test_every_tensor_type(type_: str, dtype: Any, dims: tuple[int, ...]) -> None:
    (probe, *_) = probes([InputSpec("x", type_, dims)])
    assert probe.feeds["x"].dtype == dtype
    assert probe.feeds["x"].shape == dims


def test_sequences_and_maps() -> None:
    specs = [
        InputSpec("s", "seq(tensor(float))", None),
        InputSpec("t", "seq(tensor(string))", (2,)),
        InputSpec("o", "optional(seq(tensor(int64)))", (2,)),
        InputSpec("m", "map(int64,tensor(float))", None),
        InputSpec("n", "map(string,tensor(int64))", None),
    ]
    feeds = probes(specs)[0].feeds
    assert [a.dtype for a in feeds["s"]] == [np.float32] * 2
    assert [a.shape for a in feeds["t"]] == [(2,)] * 2
    assert len(feeds["o"]) == 2
    assert all(isinstance(v, float) for v in feeds["m"].values())
    assert list(feeds["n"]) == ["a", "b", "c"]


def test_types_without_values_are_named() -> None:
    with pytest.raises(CalibrationError, match="'x' of type sparse_tensor"):
        probes([InputSpec("x", "sparse_tensor(float)", (2,))])


def test_types_are_spelled_as_onnxruntime_does() -> None:
    model = parse("""
        g (seq(float[2]) a, optional(int64[2]) b, optional(seq(string)) c, bfloat16[1] d)
        => (int64 y) { y = SequenceLength(a) }""")
    spelled = [spell(v.type) for v in ir.inputs(model)]
    with open_session(model) as session:
        assert spelled == list(session.inputs.values())


def test_known_names_with_narrow_types() -> None:
    specs = [InputSpec(n, "tensor(uint8)", (4,)) for n in ("sr", "mask", "position", "length")]
    specs.append(InputSpec("sampling_rate", "tensor(int4)", ()))
    for probe in probes(specs):
        assert [v.dtype.name for v in probe.feeds.values()] == ["uint8"] * 4 + ["int4"]


NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=4)
DIMS = st.lists(st.one_of(st.integers(0, 4), NAMES, st.none()), max_size=4).map(tuple)
TYPES = st.sampled_from([f"tensor({t})" for t in ("float", "int64", "bool", "uint8", "string")])


@given(st.dictionaries(NAMES, st.tuples(TYPES, DIMS), min_size=1, max_size=4), st.integers(0, 99))
def test_any_declaration_is_met(declared: dict[str, tuple[str, Any]], seed: int) -> None:
    specs = [InputSpec(n, t, d) for n, (t, d) in declared.items()]
    found = probes(specs, seeds=(seed,))
    assert len(found) == 2
    for probe in found:
        sizes: dict[str, int] = {}
        for spec in specs:
            value = probe.feeds[spec.name]
            assert value.ndim == len(spec.dims or ())
            for d, n in zip(spec.dims or (), value.shape, strict=True):
                if isinstance(d, int):
                    assert d == n
                elif d is not None:
                    assert sizes.setdefault(d, n) == n == probe.dims[d]

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from written import build, ints

from graphopt import ir
from graphopt.analyses import connected
from graphopt.quant.channels import Channels
from graphopt.rewrite import Rewriter
from graphopt.testing import assert_equivalent

Array = np.ndarray[Any, Any]

TAIL = "p = GlobalAveragePool(l) f = Flatten<axis=1>(p) y = Gemm<transB=1>(f, wl, bl)"


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for n in model.graph for v in n.outputs if v.name == name)


def ids(model: ir.Model, channels: Channels, name: str) -> list[int]:
    return [int(k) for k in channels.labels[value(model, name)].ids]


def divided(model: ir.Model, seed: int = 3, **options: Any) -> tuple[Channels, ir.Model]:
    """The model with all free classes divided by random factors."""
    channels = Channels(model, **options)
    factors = np.exp(np.random.default_rng(seed).normal(size=channels.count))
    factors[~channels.free] = 1
    copy = ir.clone(model)
    rw = Rewriter(copy)
    assert channels.fold(rw, factors) is None
    rw.remove_initializers()
    ir.verify(copy)
    return channels, copy


def check(model: ir.Model, free: str, frozen: str = "") -> Channels:
    """Check that factors keep the outputs, and which tensors have free channels and which none."""
    channels, copy = divided(model)
    assert_equivalent(model, copy)
    for name in free.split():
        assert channels.why_not(value(model, name)) is None, name
    for name in frozen.split():
        assert channels.why_not(value(model, name)) is not None, name
    return channels


CONV: dict[str, Any] = {"w": (8, 3, 3, 3), "b": (8,), "wl": (5, 8), "bl": (5,)}


@pytest.mark.parametrize(
    ("middle", "weights"),
    [
        ("l = Relu(c)", {}),
        ("l = LeakyRelu<alpha=0.2>(c)", {}),
        ("l = PRelu(c, slope)", {"slope": (8, 1, 1)}),
        ("r = Relu(c) l = MaxPool<kernel_shape=[2,2]>(r)", {}),
        ("l = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(c)", {}),
        ("l = BatchNormalization(c, g, be, mu, var)",
         {"g": (8,), "be": (8,), "mu": (8,), "var": np.linspace(0.5, 2, 8, dtype=np.float32)}),
        ("l = Add(c, k)", {"k": (8, 1, 1)}),
        ("l = Add(k, c)", {"k": (1,)}),
        ("l = Sub(k, c)", {"k": (1, 8, 1, 1)}),
        ("l = Max(c, k)", {"k": ()}),
        ("l = Min(c, k)", {"k": (1, 8, 1, 1)}),
        ("l = Mul(c, k)", {"k": (8, 1, 1)}),
        ("l = Div(c, k)", {"k": np.array([2.0], np.float32)}),
        ("d = Conv<group=8,pads=[1,1,1,1]>(c, wd, bd) l = Relu(d)",
         {"wd": (8, 1, 3, 3), "bd": (8,)}),
        ("d = Conv<group=2>(c, wg) l = Relu(d)", {"wg": (8, 4, 1, 1)}),
        ("d = ConvTranspose<strides=[2,2]>(c, wt, bt) l = Relu(d)",
         {"wt": (8, 8, 2, 2), "bt": (8,)}),
        ("d = ConvTranspose<group=2>(c, wt) l = Relu(d)", {"wt": (8, 4, 2, 2)}),
        ("l = Resize<mode=\"linear\">(c, , sc)", {"sc": np.array([1, 1, 2, 2], np.float32)}),
        ("t = Transpose<perm=[0,2,3,1]>(c) r = Relu(t) l = Transpose<perm=[0,3,1,2]>(r)", {}),
        ("u = Unsqueeze(c, ax) r = Relu(u) l = Squeeze(r, ax)", {"ax": ints(1)}),
        ("e = Relu(c) s = Add(c, e) l = Relu(s)", {}),
        ("a, z = Split<axis=1>(c, parts) s = Concat<axis=1>(z, a) l = Relu(s)",
         {"parts": ints(3, 5)}),
        ("l = Pad(c, pads)", {"pads": ints(0, 0, 1, 0, 0, 0, 1, 2)}),
        ("l = Pad<mode=\"reflect\">(c, pads)", {"pads": ints(0, 0, 1, 0, 0, 0, 1, 2)}),
        ("l = Slice(c, st, en, ax)",
         {"st": ints(1), "en": ints(5), "ax": ints(2)}),
    ],
)  # fmt: skip
def test_what_channels_go_through(middle: str, weights: dict[str, Any]) -> None:
    model = build(f"c = Conv(x, w, b) {middle} {TAIL}", **(CONV | weights))
    check(model, "c l p f", "y")


@pytest.mark.parametrize(
    ("middle", "reason", "weights"),
    [
        ("l = Sigmoid(c)", "Sigmoid reads it", {}),
        ("l = HardSwish(c)", "HardSwish reads it", {}),
        ("l = Clip(c, lo, hi)", "Clip has bounds that do not move with it",
         {"lo": np.float32(0), "hi": np.float32(6)}),
        ("l = Clip(c, lo, hi)", "Clip has bounds that are computed or on one side of 0",
         {"lo": np.float32(1), "hi": np.float32(6)}),
        (
            "h = Exp(b) o = Conv(x, w, h) z = Add(c, o) l = Relu(z)",
            "Add joins it with something that may not be divided",
            {},
        ),
        ("s = Sigmoid(c) l = Mul(s, c)", "Sigmoid reads it", {}),
        ("e = Relu(c) l = Mul(e, c)", "Mul multiplies it with other channels", {}),
        ("l = Concat<axis=2>(c, k)", "Concat joins it with something that may not be divided",
         {"k": (1, 8, 2, 6)}),
        ("l = Pad(c, pads, one)", "Pad adds something else than zeros",
         {"pads": ints(0, 0, 1, 0, 0, 0, 1, 2), "one": np.float32(1)}),
        ("l = Pad<mode=\"edge\">(c, pads)", "Pad repeats channels",
         {"pads": ints(0, 1, 0, 0, 0, 0, 0, 0), "wl": (5, 9)}),
        ("m = ReduceMean<axes=[1],keepdims=1>(c) l = Sub(m, c)",
         "ReduceMean reduces it over its channels", {}),
        ("l = BatchNormalization(c, g, be, mu, var)", "input 4 of BatchNormalization is computed",
         {"g": (8,), "be": (8,), "mu": (8,)}),
        ("q = DepthToSpace<blocksize=2>(c) l = SpaceToDepth<blocksize=2>(q)",
         "DepthToSpace reads it", {}),
    ],
)  # fmt: skip
def test_what_stops_channels(middle: str, reason: str, weights: dict[str, Any]) -> None:
    extra = "var = Exp(b) " if "var" in middle else ""
    model = build(f"{extra}c = Conv(x, w, b) {middle} {TAIL}", **(CONV | weights))
    channels = check(model, "", "c")
    assert channels.why_not(value(model, "c")) == reason


def test_outputs_and_inputs_are_not_divided() -> None:
    model = build("c = Conv(x, w, b) y = Relu(c)", w=CONV["w"], b=CONV["b"])
    channels = Channels(model)
    assert not channels.free.any()
    assert channels.why_not(value(model, "c")) == "it is an output of the model"
    assert channels.why_not(model.graph.inputs[0]) == "its channels are not known"
    assert channels.components() == []


def test_a_subgraph_stops_channels() -> None:
    model = build(
        """c = Conv(x, w, b) s = ReduceSum<keepdims=0>(x) zero = CastLike(s, s) q = Greater(s, zero)
        i = If(q) <then_branch = t () => (float[N,8,6,6] o) { o = Relu(c) },
                   else_branch = e () => (float[N,8,6,6] o2) { o2 = Neg(c) }>
        l = Relu(i) """
        + TAIL,
        **CONV,
    )
    assert Channels(model).why_not(value(model, "c")) == "a graph inside of If reads it"


def test_additions_join_and_convolutions_separate() -> None:
    model = build(
        f"a = Conv(x, w, b) d = Conv<pads=[1,1,1,1]>(a, v) s = Add(a, d) l = Relu(s) {TAIL}",
        v=(8, 8, 3, 3), **CONV,
    )  # fmt: skip
    channels = Channels(model)
    assert ids(model, channels, "a") == ids(model, channels, "d") == ids(model, channels, "l")
    apart = build(f"a = Conv(x, w, b) r = Relu(a) l = Conv(r, v) {TAIL}", v=(8, 8, 3, 3), **CONV)
    channels = Channels(apart)
    assert not set(ids(apart, channels, "a")) & set(ids(apart, channels, "l"))
    names = [[v.name for v in each] for each in channels.components()]
    assert names == [["a", "r"], ["l", "p", "f"]]


def test_a_shortcut_of_slices_and_padding() -> None:
    """Option A of CIFAR ResNets: half of the channels are added, to channels that are new."""
    model = build(
        f"""a = Conv(x, w, b) h = Conv<strides=[2,2]>(a, v, bv)
        s = Slice(a, st, en, ax, by) q = Pad(s, pads) z = Add(h, q) l = Relu(z) {TAIL}""",
        st=ints(0, 0), en=ints(2**31, 2**31), ax=ints(2, 3),
        by=ints(2, 2), pads=ints(0, 4, 0, 0, 0, 4, 0, 0),
        v=(16, 8, 1, 1), bv=(16,), wl=(5, 16), **{k: CONV[k] for k in ("w", "b", "bl")},
    )  # fmt: skip
    channels = check(model, "a h s q z l", "y")
    a, q = ids(model, channels, "a"), ids(model, channels, "q")
    assert q[4:12] == a
    assert len(set(q)) == 16
    assert len(channels.components()) == 1


def test_slices_of_channels() -> None:
    for start, end, step in ((1, 7, 2), (-3, 2**31, 1), (-1, -(2**31), -1), (6, 1, -2)):
        kept = np.arange(8)[slice(start, end if end > -(2**30) else None, step)]
        model = build(
            f"c = Conv(x, w, b) l = Slice(c, st, en, ax, by) {TAIL}",
            st=ints(start), en=ints(end), ax=ints(1), by=ints(step),
            wl=(5, len(kept)), **{k: CONV[k] for k in ("w", "b", "bl")},
        )  # fmt: skip
        channels = check(model, "c l", "y")
        assert ids(model, channels, "l") == np.array(ids(model, channels, "c"))[kept].tolist()


def test_a_flattened_image_keeps_its_channels() -> None:
    weights = CONV | {"wl": (5, 8 * 36)}
    for flatten in ("f = Flatten<axis=1>(c)", "f = Reshape(c, sh)"):
        model = build(
            f"c = Conv(x, w, b) {flatten} y = Gemm<transB=1>(f, wl, bl)",
            sh=ints(0, -1), **weights,
        )  # fmt: skip
        channels = check(model, "c f", "y")
        assert ids(model, channels, "f") == np.repeat(ids(model, channels, "c"), 36).tolist()
    mixed = build(
        "c = Conv(x, w, b) f = Reshape(c, sh) l = Relu(f) y = Conv(l, v)",
        sh=ints(0, 12, 4, 6), v=(2, 12, 1, 1), **{k: CONV[k] for k in ("w", "b")},
    )  # fmt: skip
    assert check(mixed, "", "c").why_not(value(mixed, "c")) == "Reshape mixes channels"


def test_matrices() -> None:
    model = build(
        "a = MatMul(x, w1) s = Add(a, b1) r = Relu(s) y = MatMul(r, w2)",
        x="N,7,6", w1=(6, 5), b1=(5,), w2=(5, 2),
    )  # fmt: skip
    check(model, "a s r", "y")
    turned = build("a = Gemm(x, w1, one) r = Relu(a) y = Gemm<alpha=0.5,transA=1>(r, w2)",
                   x="4,6", w1=(6, 5), one=(1,), w2=(4, 2))  # fmt: skip
    assert check(turned, "", "a r").why_not(value(turned, "r")) == (
        "Gemm reads it otherwise than as rows"
    )


def test_squeeze_and_excite() -> None:
    """What gates multiply may be divided, gates may not."""
    model = build(
        f"""c = Conv(x, w, b) r = Relu(c) q = GlobalAveragePool(r) e = Conv(q, v) g = Sigmoid(e)
        l = Mul(r, g) {TAIL}""",
        v=(8, 8, 1, 1), **CONV,
    )  # fmt: skip
    check(model, "c r q l", "e y")


def test_a_weight_that_two_nodes_read() -> None:
    model = build(
        f"a = Conv(x, w, b) r = Relu(a) d = Conv(r, v) s = Relu(d) l = Conv(s, v) {TAIL}",
        v=(8, 8, 1, 1), **CONV,
    )  # fmt: skip
    check(model, "a r d s l", "y")


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 18])
def test_opsets(opset: int) -> None:
    old, older = opset < 11, opset < 10
    pad = "Pad<pads=[0,2,0,0,0,0,0,0]>(c)" if old else "Pad(c, pads)"
    part = "Slice<starts=[1],ends=[9],axes=[1]>(q)" if older else "Slice(q, st, en, ax)"
    weights = CONV if old else CONV | {"pads": ints(0, 2, 0, 0, 0, 0, 0, 0)}
    if not older:
        weights |= {"st": ints(1), "en": ints(9), "ax": ints(1)}
    model = build(f"c = Conv(x, w, b) q = {pad} l = {part} {TAIL}", opset=opset, **weights)
    channels = check(model, "c q l p f", "y")
    assert ids(model, channels, "l")[1:] == ids(model, channels, "c")[:7]


def test_clips_move_on_request() -> None:
    model = build(
        f"c = Conv(x, w, b) l = Clip(c, lo, hi) {TAIL}",
        lo=np.float32(0), hi=np.float32(6), **CONV,
    )  # fmt: skip
    channels = Channels(model, clips=True)
    assert channels.why_not(value(model, "l")) is None
    assert channels.clips == {value(model, "l"): (0.0, 6.0)}
    assert Channels(model).clips == {}
    _, moved = divided(model, clips=True)
    with pytest.raises(AssertionError):  # saturates at other numbers
        assert_equivalent(model, moved)


def test_bad_factors() -> None:
    model = build(f"c = Conv(x, w, b) l = Relu(c) {TAIL}", **CONV)
    channels = Channels(model)
    for factors, message in (
        (np.ones(channels.count + 1), "positive numbers"),
        (np.zeros(channels.count), "positive numbers"),
        (np.full(channels.count, np.nan), "positive numbers"),
        (np.full(channels.count, 2.0), "may not be divided"),
    ):
        with pytest.raises(ValueError, match=message):
            channels.fold(Rewriter(model), factors)
    before = ir.dump(model)
    huge = np.where(channels.free, 1e-300, 1)
    assert channels.fold(Rewriter(model), huge) == "a constant of Conv would not be finite any more"
    assert ir.dump(model) == before


def random_cnn(seed: int) -> ir.Model:
    """Convolutions with residuals, concatenations, depthwise ones and shortcuts, at random."""
    rng = np.random.default_rng(seed)
    body, weights, now, count = "", {}, "x", 3
    wide: dict[int, list[str]] = {}

    def emit(text: str, **given: Any) -> str:
        nonlocal body
        name = f"v{len(body)}"
        weights.update({f"{name}{k}": v for k, v in given.items()})
        body += f"{name} = {text.replace('@', name)} "
        return name

    for _ in range(10):
        wide.setdefault(count, []).append(now)
        same = [v for v in wide[count] if v not in (now, "x")]
        kind = rng.choice(["conv", "depthwise", "relu", "add", "concat", "pad", "pool"])
        if kind == "conv" or now == "x":
            width = int(rng.integers(3, 7))
            now = emit(
                "Conv<pads=[1,1,1,1]>(" + now + ", @w, @b)", w=(width, count, 3, 3), b=(width,)
            )
            count = width
        elif kind == "depthwise":
            attrs = f"<group={count},pads=[1,1,1,1]>"
            now = emit(f"Conv{attrs}({now}, @w)", w=(count, 1, 3, 3))
        elif kind == "add" and same:
            now = emit(f"Add({now}, {rng.choice(same)})")
        elif kind == "concat" and same:
            now, count = emit(f"Concat<axis=1>({rng.choice(same)}, {now})"), 2 * count
        elif kind == "pad":
            now = emit(f"Pad({now}, @p)", p=ints(0, 1, 0, 0, 0, 2, 0, 0))
            count += 3
        elif kind == "pool":
            now = emit(f"MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>({now})")
        else:
            now = emit(f"Relu({now})")
    body += f"l = Relu({now}) {TAIL}"
    return build(body, wl=(5, count), bl=(5,), **weights)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks(seed: int) -> None:
    model = random_cnn(seed)
    channels, copy = divided(model, seed)
    assert channels.free.any()
    assert_equivalent(model, copy, seeds=[seed])


def pairs() -> Iterator[tuple[int, list[tuple[int, int]]]]:
    yield 5, []
    yield 6, [(5, 4), (4, 3), (1, 0)]
    chain = [(i, i + 1) for i in range(999)]
    yield 1000, chain
    yield 1000, chain[::-1]
    rng = np.random.default_rng(0)
    yield 300, [(int(a), int(b)) for a, b in rng.integers(0, 300, (180, 2))]


@pytest.mark.parametrize(("count", "edges"), list(pairs()))
def test_connected(count: int, edges: list[tuple[int, int]]) -> None:
    import networkx as nx

    graph: nx.Graph = nx.Graph(edges)
    graph.add_nodes_from(range(count))
    want = np.empty(count, int)
    for each in nx.connected_components(graph):
        want[list(each)] = min(each)
    given = [(np.array([a]), np.array([b])) for a, b in edges]
    assert connected(count, given).tolist() == want.tolist()

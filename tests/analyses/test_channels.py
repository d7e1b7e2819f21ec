"""Which channels live and die together, and what keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from written import build as built
from written import ints

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.analyses.channel_moves import Block, blocks

Array = np.ndarray[Any, Any]


def build(body: str, x: str = "N,3,4,4", **options: Any) -> ir.Model:
    return built(body, x, **options)


def ids(channels: Channels, name: str) -> list[int]:
    """Classes of a tensor with one factor, along the axis that it varies along."""
    (factor,) = next(f for v, f in channels.labels.items() if v.name == name)
    return [int(k) for k in factor.ravel()]


def test_one_convolution_after_another() -> None:
    model = build("a = Conv(x, w, b) r = Relu(a) y = Conv(r, v)", w=(4, 3, 1, 1), b=(4,),
                  v=(2, 4, 1, 1))  # fmt: skip
    channels = Channels(model)
    first, last = model.graph[0], model.graph[2]
    inner, outer = channels.groups
    assert (inner.name, inner.reason, inner.kind) == ("a", None, "channels")
    assert inner.classes.tolist() == [0, 1, 2, 3] == ids(channels, "r")
    assert outer.reason == channels.why(outer.classes[0]) == "'y' is an output of the model"
    assert channels.free.tolist() == [True] * 4 + [False] * 2
    assert {k: sorted(f.shape for f in fs) for k, fs in channels.constants.items()} == {
        (first, 1): [(4, 1, 1, 1)],
        (first, 2): [(4,)],
        (last, 1): [(1, 4, 1, 1), (2, 1, 1, 1)],
    }
    (end,) = channels.ends
    assert (end.node, end.index, end.factor.shape) == (last, 0, (1, 4, 1, 1))
    assert [(m.node, m.index, m.factor.shape) for m in channels.makers] == [
        (first, 1, (4, 1, 1, 1)),
        (last, 1, (2, 1, 1, 1)),
    ]


def test_option_a_shortcut_is_followed_channel_by_channel() -> None:
    body = "a = Conv(x, w) p = Pad(a, pads) b = Conv(a, v) c = Add(p, b) y = Conv(c, u)"
    model = build(body, w=(4, 3, 1, 1), v=(8, 4, 1, 1), u=(2, 8, 1, 1),
                  pads=ints(0, 1, 0, 0, 0, 3, 0, 0))  # fmt: skip
    channels = Channels(model)
    assert ids(channels, "c") == ids(channels, "b") == ids(channels, "p")
    assert ids(channels, "c")[1:5] == ids(channels, "a")
    assert [len(g.classes) for g in channels.groups] == [4, 4, 2]


def test_heads() -> None:
    body = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        qr = Reshape(q, to) kr = Reshape(k, to) vr = Reshape(v, to)
        qh = Transpose<perm=[0, 2, 1, 3]>(qr) kh = Transpose<perm=[0, 2, 3, 1]>(kr)
        vh = Transpose<perm=[0, 2, 1, 3]>(vr) s = MatMul(qh, kh) p = Softmax<axis=-1>(s)
        o = MatMul(p, vh) t = Transpose<perm=[0, 2, 1, 3]>(o) z = Reshape(t, back)
        y = MatMul(z, wo)"""
    model = build(body, "N,S,6", wq=(6, 12), wk=(6, 12), wv=(6, 12), wo=(12, 6),
                  to=ints(0, 0, 3, 4), back=ints(0, 0, -1))  # fmt: skip
    channels = Channels(model)
    heads = channels.groups[0]
    assert (heads.name, heads.kind, len(heads.classes)) == ("q", "heads", 3)
    assert ids(channels, "q") == np.repeat(heads.classes, 4).tolist() == ids(channels, "z")
    assert ids(channels, "p") == heads.classes.tolist()


FREEZES = [
    ("h = Softmax<axis=1>(a)", "Softmax 'h' mixes them", {}),
    ("h = Hardmax<axis=1>(a)", "Hardmax 'h' mixes them", {"opset": 11}),
    ("t = Transpose<perm=[0, 2, 1, 3]>(a) h = Hardmax<axis=1>(t)", "Hardmax 'h' mixes them",
     {"opset": 11}),
    ("n, h = LayerNormalization<axis=2>(a, s)", "LayerNormalization 'n' returns its statistics",
     {"s": (4, 4)}),
    ("h = PRelu(a, s)", "PRelu 'h' broadcasts as it did before opset 7", {"opset": 6, "s": (3,)}),
    ("h = Tile(a, k, k)", "Tile 'h' is an old form", {"opset": 5, "k": np.float32(1)}),
    ("h = LRN<size=3>(a)", "LRN 'h' mixes them", {}),
    ("h = ReduceMean<axes=[1]>(a)", "ReduceMean 'h' reduces over them", {}),
    ("h = ArgMax<axis=1>(a)", "ArgMax 'h' reduces over them", {}),
    ("h, i = TopK<axis=1>(a, two)", "TopK 'h' is not understood", {"two": ints(2)}),
    ("h = Mul(a, x)", "Mul 'h' joins it with 'x', which has to stay as it is", {}),
    ("h = Concat<axis=2>(a, x)", "Concat 'h' joins it with 'x'", {}),
    ("s = Shape(a) h = Cast<to=1>(s)", "Shape 's' computes with its shape at run time", {}),
    ("s = Size(a) h = Cast<to=1>(s)", "Size 's' computes with its shape", {}),
    ("n = Size(x) m = Mod(n, k) h = Gather<axis=1>(a, m)", "Gather 'h' computes which of them",
     {"k": np.array(3)}),
    ("r = ReduceMax<keepdims=0>(x) c = Cast<to=7>(r) n = Reshape(c, one)"
     " h = Slice(a, one, n, one)", "Slice 'h' computes which part of them it takes",
     {"one": ints(1)}),
    ("h = Pad<mode=\"reflect\">(a, p)", "Pad 'h' repeats some of them",
     {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)}),
    ("h = Resize(a, , f)", "Resize 'h' resizes them", {"f": np.array([1, 2, 1, 1], np.float32)}),
    ("h = Resize(a, , f)", "Resize 'h' resizes them",
     {"f": np.array([1, 1.2, 2, 1], np.float32)}),
    ("r = ReduceMax<keepdims=0>(x) c = Greater(r, zero) h = If(c) <then_branch ="
     " t () => (float[N,3,4,4] u) { u = Relu(a) },"
     " else_branch = e () => (float[N,2,4,4] v) { v = Conv(x, k) }>",
     "If 'h' joins channels of different numbers", {"zero": np.float32(0), "k": (2, 3, 1, 1)}),
    ("s = SequenceConstruct(x) m = SequenceMap(s) <body = b (float[N,3,4,4] e) =>"
     " (float[N,2,4,4] o) { o = Conv(a, k) }> h = SequenceAt(m, zero)",
     "SequenceMap 'm' is not understood", {"zero": np.array(0), "k": (2, 3, 1, 1)}),
    ("r = ReduceMax<keepdims=0>(x) c = Greater(r, zero) h = If(c) <then_branch ="
     " t () => (float[N,3,4,4] u) { u = Relu(a) },"
     " else_branch = e () => (float[N,3,4,4] v) { v = Relu(x) }>",
     "If 'h' joins it", {"zero": np.float32(0)}),
    ("q = DynamicQuantizeLinear(a) h = Cast<to=1>(q)", "is not understood", {}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason", "weights"), FREEZES, ids=[f[1] for f in FREEZES])
def test_what_freezes_says_why(body: str, reason: str, weights: dict[str, Any]) -> None:
    model = build(f"a = Conv(x, w) {body} y = Relu(h)", w=(3, 3, 1, 1), **weights)
    channels = Channels(model)
    reasons = {channels.why(k) for k in ids(channels, "a")}
    assert any(r is not None and reason in r for r in reasons), reasons


def test_the_only_channel_of_a_tensor_stays() -> None:
    model = build("a = Conv(x, w) b = Gather<axis=1>(a, k) y = Conv(b, v)", w=(3, 3, 1, 1),
                  v=(2, 1, 1, 1), k=ints(1))  # fmt: skip
    channels = Channels(model)
    reasons = [channels.why(k) for k in ids(channels, "a")]
    assert reasons == [None, "'b' would have no channels without it", None]
    assert [len(g.classes) for g in channels.groups] == [2, 1, 2]


def test_sizes_of_other_axes_may_be_read() -> None:
    body = """a = Conv(x, w) s = Shape(a) n = Gather(s, zero) m = Slice(s, two, four)
        k = Unsqueeze(n, first) t = Concat<axis=0>(k, count, m) r = Reshape(a, t) y = Conv(r, v)"""
    model = build(body, w=(4, 3, 1, 1), v=(2, 4, 1, 1), zero=np.array(0), two=ints(2),
                  four=ints(4), first=ints(0), count=ints(4))  # fmt: skip
    assert Channels(model).groups[0].reason is None


def test_a_model_without_channels() -> None:
    channels = Channels(build("y = Relu(x)"))
    assert (channels.count, channels.groups, channels.ends) == (0, (), [])


def test_domains_are_named() -> None:
    import onnx

    text = (
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,3,4,4] x) =>'
        " (float[] y) { a = Conv(x, w) y = com.microsoft.QuickGelu(a) }"
    )
    proto = onnx.parser.parse_model(text)
    weight = np.ones((3, 3, 1, 1), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    channels = Channels(ir.load(proto))
    assert channels.groups[0].reason == "com.microsoft.QuickGelu 'y' is not understood"


BLOCKS = [
    (("N", 12), (None, 3, 4), "0->0? 1->1,2"),
    (("N", "S", 12), ("N", "S", 3, 4), "0->0 1->1 2->2,3"),
    (("N", "S", 3, 4), ("N", "S", 12), "0->0 1->1 2,3->2"),
    (("N", "S", 12), (None, 12), "0,1->0? 2->1"),
    (("N", 6, "H", "W"), ("N", 6, None), "0->0 1->1 2,3->2?"),
    (("N", 6, "H", "W"), ("N", 3, None), "0->0 1,2,3->1,2?"),
    ((2, 6), (4, 3), "0,1->0,1"),
    ((1, 8), (8, 1), "0-> 1->0 ->1"),
    (("N", 1, 8), ("N", 8), "0->0 1-> 2->1"),
    (("N",), (None,), "0->0?"),
    ((), (1,), "->0"),
    ((0, 4), (4, 0), "0,1->0,1?"),
]


@pytest.mark.parametrize(("before", "after", "text"), BLOCKS)
def test_blocks(before: tuple[Any, ...], after: tuple[Any, ...], text: str) -> None:
    def show(block: Block) -> str:
        sides = ["", ""]
        for i, axes in enumerate((block.before, block.after)):
            sides[i] = ",".join(map(str, axes))
        return f"{sides[0]}->{sides[1]}{'' if block.known else '?'}"

    assert " ".join(show(b) for b in blocks(before, after)) == text


def test_time_is_linear_in_the_size_of_the_model() -> None:
    """Not measured in seconds: a chain of a thousand layers comes with a thousand groups."""
    count = 1000
    body = "h0 = Conv(x, w) " + " ".join(
        f"r{i} = Relu(h{i}) h{i + 1} = Conv(r{i}, v{i})" for i in range(count)
    )
    weights = {f"v{i}": (3, 3, 1, 1) for i in range(count + 1)}
    model = build(f"{body} y = Conv(h{count}, v{count})", w=(3, 3, 1, 1), **weights)
    assert len(Channels(model).groups) == count + 2

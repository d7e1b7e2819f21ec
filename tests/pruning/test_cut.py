"""Operator by operator: a cut model computes what the masked one computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from written import build as built
from written import ints

from graphopt import ir
from graphopt.analyses import Channels
from graphopt.pruning.cut import cut
from graphopt.pruning.masking import masked
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]

HEAD = "pool = GlobalMaxPool(h) flat = Flatten<axis=1>(pool) y = Gemm<transB=1>(flat, wl, bl)"

# For what no shapes are inferred of.
SQUEEZE = "pool = GlobalMaxPool(h) flat = Squeeze(pool, axes) y = Gemm<transB=1>(flat, wl, bl)"


def build(body: str, x: str = "N,3,4,4", **options: Any) -> ir.Model:
    """Weights are small integers where only a shape is given."""
    return built(body, x, whole=True, **options)


def free(model: ir.Model) -> list[str]:
    return [f"{g.name}:{len(g.classes)}" for g in Channels(model).groups if g.reason is None]


def run(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    with open_session(model, optimize=False) as session:
        return list(session.run(feeds).values())


def drawn(channels: Channels, seed: int) -> Array:
    """Of every group that can lose something a random part, one channel at least stays."""
    rng = np.random.default_rng(seed)
    dead = np.zeros(channels.count, bool)
    for group in channels.groups:
        if group.reason is None:
            count = int(rng.integers(0, len(group.classes)))
            dead[rng.permutation(group.classes)[:count]] = True
    return dead


def all_but_one(channels: Channels) -> Array:
    """Of every group that can lose something all but the first."""
    dead = np.zeros(channels.count, bool)
    for group in channels.groups:
        dead[group.classes[1:]] = group.reason is None
    return dead


def check(model: ir.Model, *, exact: bool = True, places: int = 5) -> None:
    """Cut random channels several times, and all but one; outputs are those of masked models."""
    channels = Channels(model)
    assert any(g.reason is None and len(g.classes) > 1 for g in channels.groups)
    (x,) = ir.inputs(model)
    shape = [d if isinstance(d, int) else 2 for d in ir.dims(x) or ()]
    cuts = [all_but_one(channels), *(drawn(channels, seed) for seed in range(places))]
    for seed, dead in enumerate(cuts):
        copy = ir.clone(model)
        cut(Rewriter(copy), channels, dead)
        ir.verify(copy)
        ir.check(model, copy)
        data = np.random.default_rng(seed).integers(-3, 4, shape)
        feeds = {"x": data.astype(x.dtype.numpy())}  # type: ignore[union-attr]
        for want, got in zip(run(masked(channels, dead), feeds), run(copy, feeds), strict=True):
            if exact:
                np.testing.assert_array_equal(got, want)
            else:
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


CASES: dict[str, tuple[ir.Model, str, bool]] = {}


def case(name: str, body: str, groups: str, *, exact: bool = True, **rest: Any) -> None:
    """Groups are written as names of first tensors and how many channels, all of them free."""
    CASES[name] = (build(body, **rest), groups, exact)


def image(
    name: str, middle: str, groups: str, out: int = 6, *, head: str = HEAD, **rest: Any
) -> None:
    """Of a convolution ``a`` with 6 channels a middle part makes ``h``."""
    rest = {"w": (6, 3, 1, 1), "wl": (2, out), "bl": (2,)} | rest
    case(name, f"a = Conv(x, w) {middle} {head}", groups, **rest)


image("transposed", "h = ConvTranspose(a, t, b)", "a:6 h:4", 4, t=(6, 4, 2, 2), b=(4,))
image("transposed, many groups", "h = ConvTranspose<group=3>(a, t)", "a:3", 9, t=(6, 3, 1, 1))
image("transposed, two groups", "h = ConvTranspose<group=2>(a, t)", "a:3 h:4", 8,
      t=(6, 4, 1, 1))  # fmt: skip
image("transposed, depthwise", "h = ConvTranspose<group=6>(a, t)", "a:6", t=(6, 1, 2, 2))
image("depthwise of more outputs", "h = Conv<group=6>(a, t, b)", "a:6", 12, t=(12, 1, 1, 1),
      b=(12,))  # fmt: skip
image("grouped", "h = Conv<group=2>(a, t, b)", "a:3 h:4", 8, t=(8, 3, 1, 1), b=(8,))
case(
    "groups of an input",
    f"h = Conv<group=3>(x, w) {HEAD}",
    "h:4",
    w=(12, 1, 1, 1),
    wl=(2, 12),
    bl=(2,),
)
image("instance norm", "h = InstanceNormalization(a, s, b)", "a:6", exact=False, s=(6,), b=(6,))
image("group norm", "h = GroupNormalization<num_groups=3>(a, s, b)", "a:3", exact=False,
      opset=18, s=(3,), b=(3,), axes=ints(2, 3), head=SQUEEZE)  # fmt: skip
image("group norm with a scale per channel", "h = GroupNormalization<num_groups=3>(a, s, b)", "a:3",
      exact=False, opset=21, s=(6,), b=(6,), axes=ints(2, 3), head=SQUEEZE)  # fmt: skip
image("group norm, written out",
      "r = Reshape(a, to) n = InstanceNormalization(r, s, b) k = Reshape(n, back) h = Mul(k, c)",
      "a:3", exact=False, to=ints(0, 3, -1), back=ints(0, 6, 4, 4), s=(3,), b=(3,),
      c=(6, 1, 1))  # fmt: skip
image("group norm of any size",
      "r = Reshape(a, to) n = InstanceNormalization(r, s, b) d = Shape(a) k = Reshape(n, back)"
      " h = Mul(k, c)",
      "a:3", exact=False, x="N,3,H,4", to=ints(0, 3, -1), back=ints(0, 6, -1, 4), s=(3,),
      b=(3,), c=(6, 1, 1))  # fmt: skip
image("batch norm", "h = BatchNormalization(a, s, b, m, v)", "a:6", exact=False, s=(6,), b=(6,),
      m=(6,), v=np.ones(6, np.float32))  # fmt: skip
image("slices", "q = Slice(a, one, five, one) h = Relu(q)", "a:2 a:4", 4,
      one=ints(1), five=ints(5))  # fmt: skip
image("slice of every second", "h = Slice(a, zero, end, one, two)", "a:3 a:3", 3,
      zero=ints(0), end=ints(9), one=ints(1), two=ints(2))  # fmt: skip
image("slice backwards", "h = Slice(a, last, end, one, back)", "a:6",
      last=ints(-1), end=ints(-100), one=ints(1), back=ints(-1))  # fmt: skip
image("slice every second backwards", "h = Slice(a, last, end, one, back)", "a:3 a:3", 3,
      last=ints(5), end=ints(-100), one=ints(1), back=ints(-2))  # fmt: skip
image("slice with attributes", "h = Slice<axes=[1, 2], starts=[2, 0], ends=[100, 2]>(a)", "a:2 a:4",
      4, opset=9)  # fmt: skip
image("pad and crop",
      "q = Pad(a, pads) r = Conv(x, v) s = Add(q, r) h = Pad(s, crop)",
      "a:1 a:5 q:1 q:2", 7, pads=ints(0, 1, 0, 0, 0, 2, 0, 0), v=(9, 3, 1, 1),
      crop=ints(0, -2, 0, 0, 0, 0, 0, 0))  # fmt: skip
image("pad with attributes",
      "q = Pad<pads=[0, 1, 0, 0, 0, 2, 0, 0]>(a) r = Conv(x, v) h = Add(q, r)",
      "a:6 q:3", 9, opset=10, v=(9, 3, 1, 1))  # fmt: skip
image("gather", "h = Gather<axis=1>(a, order)", "a:1 a:2 a:3", 5, order=ints(5, 0, -2, 0, 3))
image("gather a table", "q = Gather<axis=1>(a, t) h = ReduceMax<axes=[2], keepdims=0>(q)", "a:3", 3,
      t=np.array([[0, 1], [2, 3], [4, 5]]))  # fmt: skip
image("equal parts", "b, c = Split<axis=1>(a) d = Relu(c) h = Mul(b, d)", "a:3", 3)
image("equal parts, by number", "b, c = Split<axis=1, num_outputs=2>(a) d = Relu(c) h = Mul(b, d)",
      "a:3", 3, opset=18)  # fmt: skip
image("parts with attributes", "b, c = Split<axis=1, split=[4, 2]>(a) h = Concat<axis=1>(c, b)",
      "a:4 a:2", opset=11)  # fmt: skip
image("tile", "h = Tile(a, times)", "a:6", 12, times=ints(1, 2, 1, 1))
image("expand", "p = GlobalMaxPool(a) h = Expand(p, to)", "a:6", to=ints(1, 6, 3, 3))
image("concat with a constant",
      "p = GlobalMaxPool(a) n = ReduceMax<axes=[0], keepdims=1>(p) h = Concat<axis=1>(n, c)",
      "a:6 h:2", 8, c=(1, 2, 1, 1))  # fmt: skip
image("where", "c = Greater(a, z) b = Conv(x, v) h = Where(c, b, t)", "a:6", z=(6, 1, 1),
      v=(6, 3, 1, 1), t=(1, 6, 1, 1))  # fmt: skip
image("squeeze and excite by a product",
      "p = ReduceMean<axes=[2, 3], keepdims=0>(a) q = MatMul(p, u) r = Relu(q) s = MatMul(r, v)"
      " e = Unsqueeze(s, two) h = Mul(a, e)",
      "a:6 q:5", u=(6, 5), v=(5, 6), two=ints(2, 3))  # fmt: skip
image("sum over channels", "b = Relu(a) s = ReduceSum<keepdims=1>(b, one) h = Mul(s, c)",
      "a:6", 3, one=ints(1), c=(3, 1, 1))  # fmt: skip
image("flatten places too", "r = Flatten(a) g = Gemm(r, v, c) h = Unsqueeze(g, two)",
      "a:6 g:4", 4, v=(96, 4), c=(4,), two=ints(2))  # fmt: skip
image("pixel shuffle, written out",
      "r = Reshape(a, to) t = Transpose<perm=[0, 1, 4, 2, 5, 3]>(r) s = Reshape(t, back)"
      " h = Conv(s, v)",
      "a:3 h:4", 4, to=ints(0, 3, 2, 1, 4, 4), back=ints(0, 3, 4, 8), v=(4, 3, 1, 1))  # fmt: skip
image("space to depth", "d = SpaceToDepth<blocksize=2>(a) h = Conv(d, v)", "a:6 h:4", 4,
      v=(4, 24, 1, 1))  # fmt: skip
image("depth to space, columns first",
      'd = DepthToSpace<blocksize=2, mode="CRD">(b) b = Relu(c) c = Conv(a, u) h = Conv(d, v)',
      "a:6 c:3 h:4", 4, u=(12, 6, 1, 1), v=(4, 3, 1, 1))  # fmt: skip
image("squeeze of whatever has one place", "p = GlobalMaxPool(a) s = Squeeze(p)"
      " h = Unsqueeze(s, two)", "a:6", x="3,3,4,4", two=ints(2, 3))  # fmt: skip
image("squeeze with an attribute", "p = GlobalMaxPool(a) s = Squeeze(p)"
      " h = Unsqueeze<axes=[2, 3]>(s)", "a:6", opset=11, x="3,3,4,4")  # fmt: skip
image("layer norm with a scale per channel", "h = LayerNormalization<axis=2>(a, s, b)", "a:6",
      exact=False, s=(6, 4, 4), b=(1, 4))  # fmt: skip
image("slice of unknown rank",
      "n = GroupNormalization<num_groups=3>(a, s, b) h = Slice(n, zero, four, one)", "a:2 a:1", 4,
      exact=False, opset=18, s=(3,), b=(3,), zero=ints(0), four=ints(4), one=ints(1),
      axes=ints(2, 3), head=SQUEEZE)  # fmt: skip
image("softmax of places", "r = Reshape(a, to) s = Softmax<axis=-1>(r) h = Reshape(s, back)",
      "a:6", exact=False, to=ints(0, 0, -1), back=ints(0, 6, 4, 4))  # fmt: skip
image("resize to sizes", "h = Resize<mode = \"nearest\">(a, , , to)", "a:6", x="1,3,4,4",
      to=ints(1, 6, 8, 8))  # fmt: skip
image("a loop",
      """h = Loop(three, yes, a) <body = body (int64 i, bool c, float[N,6,4,4] s)
         => (bool d, float[N,6,4,4] t) { d = Identity(c) r = Conv(s, u) q = Relu(r) v = Conv(q, z)
         t = Add(v, s) }>""",
      "a:6 r:5", head=SQUEEZE, axes=ints(2, 3),
      three=np.array(3), yes=np.array(True), u=(5, 6, 1, 1), z=(6, 5, 1, 1))  # fmt: skip
image("a scan",
      """o = Transpose<perm=[2, 0, 1, 3]>(a) start = ReduceMax<axes=[2], keepdims=0>(a)
         last, all = Scan<num_scan_inputs=1, body = body (float[N,6,4] s, float[N,6,4] e)
         => (float[N,6,4] t, float[N,6,4] u) { t = Add(s, e) u = Relu(t) }>(start, o)
         k = Transpose<perm=[1, 2, 0, 3]>(all) h = Mul(k, m)""",
      "a:6", m=(6, 1, 1))  # fmt: skip
image("a branch reads and returns",
      """s = ReduceMax<keepdims=0>(x) c = Greater(s, z)
         h = If(c) <then_branch = one () => (float[N,6,4,4] t) { t = Relu(a) },
                    else_branch = two () => (float[N,6,4,4] e) { e = Conv(x, v) }>""",
      "a:6", z=np.float32(2), v=(6, 3, 1, 1))  # fmt: skip


def sequence(name: str, body: str, groups: str, **rest: Any) -> None:
    case(name, body, groups, exact=False, x="5,2,3", **rest)


sequence("rnn", "h, n = RNN<hidden_size=4>(x, w, r, b) y = MatMul(n, wl)", "h:4",
         w=(1, 4, 3), r=(1, 4, 4), b=(1, 8), wl=(4, 2))  # fmt: skip
sequence("gru", "h = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b, , s) y = MatMul(h, wl)",
         "h:4", w=(1, 12, 3), r=(1, 12, 4), b=(1, 24), wl=(4, 2), s=(1, 2, 4))  # fmt: skip
sequence("lstm, peepholes and states",
         "h, n, c = LSTM<hidden_size=4>(x, w, r, b, , s, s, p) k = Concat<axis=2>(n, c)"
         " y = MatMul(k, wl)",
         "h:4", w=(1, 16, 3), r=(1, 16, 4), b=(1, 32), wl=(8, 2), s=(1, 2, 4),
         p=(1, 12))  # fmt: skip
sequence("lstm, state of the size of the batch",
         "d = Shape(x) one = Slice(d, k1, k2) t = Concat<axis=0>(k1, one, k4)"
         " z = ConstantOfShape(t) h, n, c = LSTM<hidden_size=4>(x, w, r, b, , z, z)"
         " y = MatMul(n, wl)",
         "h:4", w=(1, 16, 3), r=(1, 16, 4), b=(1, 32), wl=(4, 2), k1=ints(1), k2=ints(2),
         k4=ints(4))  # fmt: skip
case("one head", "q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0, 2, 1]>(k)"
     " s = MatMul(q, t) v = MatMul(x, wv) o = MatMul(s, v) y = MatMul(o, wl)",
     "q:5 v:4", x="N,3,4", wq=(4, 5), wk=(4, 5), wv=(4, 4), wl=(4, 2))  # fmt: skip
case("heads of a computed shape",
     "q = MatMul(x, wq) v = MatMul(x, wv) d = Shape(x) n = Gather(d, k0) m = Gather(d, k1)"
     " u = Unsqueeze(n, k00) w = Unsqueeze(m, k00) t = Concat<axis=0>(u, w, k3, k2)"
     " r = Reshape(q, t) a = Transpose<perm=[0, 2, 1, 3]>(r) e = Reshape(v, t)"
     " b = Transpose<perm=[0, 2, 3, 1]>(e) s = MatMul(a, b) c = Transpose<perm=[0, 2, 3, 1]>(b)"
     " g = Transpose<perm=[0, 2, 1, 3]>(c) f = Transpose<perm=[0, 2, 1, 3]>(g)"
     " o = MatMul(s, z) l = Transpose<perm=[0, 2, 1, 3]>(o) p = Concat<axis=0>(u, w, k6)"
     " j = Reshape(l, p) y = MatMul(j, wl)",
     "q:3 o:2", x="N,3,4", wq=(4, 6), wv=(4, 6), wl=(6, 2), z=(3, 3, 2), k0=np.array(0),
     k1=np.array(1), k00=ints(0), k3=ints(3), k2=ints(2), k6=ints(6))  # fmt: skip
case("embedding", "i = Cast<to=7>(x) j = Abs(i) e = Gather(t, j) q = Add(e, p) r = Relu(q)"
     " y = MatMul(r, wl)", "e:6", x="N,3", t=(4, 6), p=(1, 3, 6), wl=(6, 2))  # fmt: skip
case("embedding, multiplied at once", "i = Cast<to=7>(x) j = Abs(i) e = Gather(t, j)"
     " y = MatMul(e, wl)", "e:6", x="N,3", t=(4, 6), wl=(6, 2))  # fmt: skip
sequence("embedding of states", "d = ReduceMax<axes=[0, 2], keepdims=0>(x) c = Cast<to=7>(d)"
         " i = Abs(c) e = Gather(t, i) s = Unsqueeze(e, zero)"
         " h, n, c2 = LSTM<hidden_size=4>(x, w, r, b, , s, s) y = MatMul(n, wl)", "e:4",
         w=(1, 16, 3), r=(1, 16, 4), b=(1, 32), wl=(4, 2), t=(4, 4), zero=ints(0))  # fmt: skip
scale = np.float32(0.5)
case("integers", "a = QuantizeLinear(x, s, zx) b = QLinearConv(a, s, zx, w, sw, zw, s, zy, i)"
     " c = QLinearConv(b, s, zy, v, s, z0, s, zy) h = DequantizeLinear(c, s, zy) "
     + HEAD, "b:5 c:4", exact=False, s=scale, zx=np.uint8(7), zy=np.uint8(128),
     w=np.arange(-7, 8).reshape(5, 3, 1, 1).astype(np.int8), sw=np.full(5, 0.25, np.float32),
     zw=np.zeros(5, np.int8), i=np.arange(5, dtype=np.int32), z0=np.int8(0),
     v=np.arange(-10, 10).reshape(4, 5, 1, 1).astype(np.int8), wl=(2, 4), bl=(2,))  # fmt: skip
case("integer products",
     "a = QuantizeLinear(x, s, zx) b = QLinearMatMul(a, s, zx, w, s, z0, s, zy)"
     " c = MatMulInteger(b, v, zy) y = Cast<to=1>(c)",
     "b:5", x="N,3", s=scale, zx=np.uint8(7), zy=np.uint8(128),
     w=np.arange(-7, 8).reshape(3, 5).astype(np.int8), z0=np.int8(0),
     v=np.arange(-10, 10).reshape(5, 4).astype(np.int8))  # fmt: skip
image("dequantized weights",
      "d = DequantizeLinear<axis=0>(k, s, z) e = Conv(a, d) g = Conv(a, d) q = Relu(g)"
      " h = Concat<axis=1>(e, q)", "a:6 e:4", 8,
      k=np.arange(-12, 12).reshape(4, 6, 1, 1).astype(np.int8), z=np.zeros(4, np.int8),
      s=np.array([1, 2, 1, 0.5], np.float32))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cut_equals_masked(name: str) -> None:
    model, groups, exact = CASES[name]
    assert " ".join(free(model)) == groups
    check(model, exact=exact)


# --- what is shared, what is refused -------------------------------------------------------------


def pruned(model: ir.Model, names: dict[str, list[int]]) -> ir.Model:
    """Without some channels of some groups, by name and place."""
    channels = Channels(model)
    dead = np.zeros(channels.count, bool)
    for group in channels.groups:
        dead[group.classes[names.get(group.name, [])]] = True
    copy = ir.clone(model)
    cut(Rewriter(copy), channels, dead)
    return copy


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.const_value.shape.numpy())  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


def shared() -> ir.Model:
    body = f"a = Conv(x, w) b = Conv(x, w) c = Conv(a, v) d = Conv(b, v) h = Add(c, d) {HEAD}"
    return build(body, w=(4, 3, 1, 1), v=(5, 4, 1, 1), wl=(2, 5), bl=(2,))


def test_weights_that_are_shared_stay_so() -> None:
    assert free(shared()) == ["a:4", "c:5"]  # with the channels of b and d
    result = pruned(shared(), {"a": [0], "c": [3]})
    assert sorted(s for s in shapes(result).values() if len(s) == 4) == [(3, 3, 1, 1), (4, 3, 1, 1)]


def test_vectors_are_cut_for_each_use() -> None:
    body = f"a = Conv(x, w, b) c = Conv(x, v, b) h = Concat<axis=1>(a, c) {HEAD}"
    model = build(body, w=(4, 3, 1, 1), v=(4, 3, 1, 1), b=(4,), wl=(2, 8), bl=(2,))
    result = pruned(model, {"a": [0], "c": [1, 2]})
    assert sorted(s for s in shapes(result).values() if len(s) == 1) == [(2,), (2,), (3,)]


@pytest.mark.parametrize(
    ("body", "groups"),
    [
        ("t = Identity(w) a = Conv(x, w) c = Conv(x, t)", "a:6"),
        # Read as it is, the weight keeps what it has.
        ("m = ReduceMean<axes=[0, 1]>(w) a = Conv(x, w) c = Mul(a, m)", ""),
    ],
)
def test_other_readers_of_a_weight(body: str, groups: str) -> None:
    tail = "s = Add(a, c) e = Conv(s, v) h = Relu(e)"
    model = build(f"{body} {tail} {HEAD}", w=(6, 3, 1, 1), v=(5, 6, 1, 1), wl=(2, 5), bl=(2,))
    found = free(model)
    assert [name for name in found if name.startswith(("a", "b", "c"))] == groups.split()
    check(model, exact=False)


def test_branches_go_on_to_share_weights() -> None:
    body = (
        "s = ReduceSum<keepdims=0>(x) t = Greater(s, k) a = Conv(x, w) c = If(t) <"
        "then_branch = p () => (float[N,5,4,4] u) { u = Conv(a, v) },"
        "else_branch = q () => (float[N,5,4,4] z) { m = Neg(a) z = Conv(m, v) }>"
        f" h = Relu(c) {HEAD}"
    )
    weights = {"w": (6, 3, 1, 1), "v": (5, 6, 1, 1), "wl": (2, 5), "bl": (2,)}
    model = build(body, k=np.float32(0), **weights)
    assert free(model) == ["a:6", "u:5"]
    check(model)
    result = pruned(model, {"a": [0], "u": [1, 2]})
    assert [len(g.initializers) for g in ir.all_graphs(result)] == [5, 0, 0]


def test_scales_of_channels_that_went_go_too() -> None:
    result = pruned(CASES["dequantized weights"][0], {"e": [0, 2]})
    nodes = [n for n in result.graph if n.op_type == "DequantizeLinear"]
    assert len(nodes) == 1  # for both convolutions
    assert [ir.static_shape(v) for v in nodes[0].inputs] == [(2, 6, 1, 1), (2,), (2,)]


def test_the_analysed_model_itself_can_be_cut() -> None:
    model = shared()
    channels = Channels(model)
    dead = np.zeros(channels.count, bool)
    dead[channels.groups[0].classes[:2]] = True
    cut(Rewriter(model), channels, dead)
    ir.verify(model)
    assert ir.dims(next(iter(model.graph)).outputs[0]) == ("N", 2, 4, 4)


def test_no_dead_classes_change_nothing() -> None:
    model = shared()
    rw = Rewriter(copy := ir.clone(model))
    cut(rw, Channels(model), np.zeros(Channels(model).count, bool))
    assert not rw.changed
    assert ir.dump(copy) == ir.dump(model)


def test_unused_shapes_go() -> None:
    model = CASES["heads of a computed shape"][0]
    result = pruned(model, {"q": [1]})
    made = {v.name for n in model.graph for v in n.outputs}
    left = {v.name for n in result.graph for v in n.outputs}
    assert "t" in made - left
    assert not any(n.op_type == "Where" for n in result.graph)


def test_a_shape_that_is_no_list_of_sizes_is_overwritten() -> None:
    body = (
        "d = Shape(x) n = Slice(d, k0, k1) t = Concat<axis=0>(n, tail) a = Conv(x, w)"
        " r = Reshape(a, t) p = ReduceMean<axes=[2], keepdims=0>(r) y = MatMul(p, wl)"
    )
    model = build(body, w=(6, 3, 1, 1), k0=ints(0), k1=ints(1), tail=ints(6, 16), wl=(6, 2))
    assert free(model) == ["a:6"]
    check(model)
    assert any(n.op_type == "Where" for n in pruned(model, {"a": [2]}).graph)


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        ("all", "all channels of 'a' would be removed"),
        ("output", "'y' is an output of the model"),
        ("short", "a bool for each of"),
        ("numbers", "a bool for each of"),
    ],
)
@pytest.mark.parametrize("masks", [False, True])
def test_bad_requests(dead: str, message: str, masks: bool) -> None:
    model = shared()
    channels = Channels(model)
    given = np.zeros(channels.count, bool)
    if dead == "all":
        given[channels.groups[0].classes] = True
    elif dead == "output":
        given[~channels.free] = True
    elif dead == "short":
        given = given[1:]
    else:
        given = given.astype(np.float32)
    before = ir.dump(model)
    with pytest.raises(ValueError, match=message):
        masked(channels, given) if masks else cut(Rewriter(model), channels, given)
    assert ir.dump(model) == before

"""Pruning models of many kinds: what comes out is valid and of the size that is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning import networks, transformers
from pruning.building import Network
from pruning.pruned import Data, elements, pruned, valid
from pruning.test_noise import images, residual
from reconstruct.single import network, normal

from graphopt import PassManager, ir
from graphopt.analyses import Cost
from graphopt.calibration import from_batches
from graphopt.errors import NotApplicable
from graphopt.measure import Budget, Trial
from graphopt.pruning.batches import split
from graphopt.rewrite import Rewriter


def test_a_batch_of_fixed_size() -> None:
    fixed = residual()
    fixed.graph.inputs[0].shape = ir.Shape([1, 3, 6, 6])
    ir.infer_shapes(fixed)
    data = images(*[1] * 12)
    small = valid(fixed, pruned(fixed, "macs", 0.6, data), data)
    assert ir.dims(small.graph.inputs[0]) == (1, 3, 6, 6)


def test_half_precision_goes_without_fits() -> None:
    casts = "w = Cast<to = 10>(u) v = Cast<to = 10>(z) h = Cast<to = 10>(x)"
    model = network(
        f"{casts} a = MatMul(h, w) b = Relu(a) c = MatMul(b, v) y = Cast<to = 1>(c)", "N,3",
        u=normal(3, 8), z=normal(8, 2),
    )  # fmt: skip
    rw = Rewriter(model)
    for node in list(model.graph):
        weight = ir.array(node.inputs[0])
        if weight is not None:
            rw.replace(node.outputs[0], rw.const(weight.astype(np.float16), "half"))
            rw.erase(node)
    data = [{"x": normal(32, 3)}]
    found = pruned(model, "macs", 0.6, data)
    small = valid(model, found, data)
    assert Cost(small).macs <= 0.6 * Cost(model).macs
    assert found.details["fits"] == []


def test_inputs_of_varying_length() -> None:
    model = network("a = MatMul(x, w) h = Relu(a) m = MatMul(h, v) y = ReduceMean<axes = [1]>(m)",
                    "N,S,3", w=normal(3, 8), v=normal(8, 4, seed=1))  # fmt: skip
    data = [{"x": normal(2, n, 3, seed=n)} for n in (3, 5, 7, 9, 4, 6, 8, 10)]
    small = valid(model, pruned(model, "macs", 0.6, data), data)
    assert ir.dims(small.graph.inputs[0]) == ir.dims(model.graph.inputs[0])


def test_sequences_between_layers() -> None:
    body = """
        a = MatMul(x, w) b = Relu(a) one = Constant<value_int = 1>()
        s = SplitToSequence<axis = 1, keepdims = 1>(x) t = SequenceAt(s, one)
        c = MatMul(b, v) d = Relu(c) e = Mul(d, t) f = ConcatFromSequence<axis = 1>(s)
        g = MatMul(f, u) h = Add(e, g) y = MatMul(h, z)
    """
    model = network(body, "N,3", w=normal(3, 8), v=normal(8, 6, seed=1), u=normal(3, 6, seed=2),
                    z=normal(6, 2, seed=3))  # fmt: skip
    data = [{"x": normal(16, 3, seed=s)} for s in range(4)]
    valid(model, pruned(model, "macs", 0.7, data), data)


def test_channels_that_a_branch_reads() -> None:
    net = networks.if_capture()
    model = PassManager("O2").run(net.model).model
    small = valid(model, pruned(model, "macs", 0.8, net.feeds), net.feeds)
    assert any(node.op_type == "If" for node in small.graph)


def test_outputs_that_are_no_floats_stay() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "m (float[N,2] x) => (float y, int64 k) <float[2,4] w = {1, 2, -3, 4, 5, -6, 7, 8},"
        " float[4,2] v = {1, 2, 3, 4, 5, -6, 7, -8}> "
        "{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) k = ArgMax<axis = 1>(y) }"
    )
    ir.infer_shapes(model)
    data = [{"x": normal(32, 2)}]
    small = valid(model, pruned(model, "macs", 0.6, data), data)
    assert [v.name for v in small.graph.outputs] == ["y", "k"]


def test_outputs_of_zeros() -> None:
    model = network("a = MatMul(x, w) h = Relu(a) y = MatMul(h, v)", "N,3", w=normal(3, 8),
                    v=np.zeros((8, 2)))  # fmt: skip
    found = pruned(model, "macs", 0.6, [{"x": normal(16, 3)}])
    assert found.model is not None
    assert found.details["quality"]["sqnr_db"] is None, "there is no noise"


W, V, U = normal(3, 8), normal(8, 8, seed=1), normal(8, 2, seed=2)
ROWS = [{"x": normal(64, 3, seed=s)} for s in range(4)]
LOOP = """
    a = MatMul(x, w) h = Relu(a) n = Constant<value_int = 3>() t = Cast<to = 9>(n)
    z = Loop(n, t, h) <body = b (int64 i, bool c, float[N,8] p) => (bool d, float[N,8] q) {
        d = Identity(c) BODY }>
    y = MatMul(z, u)
"""
KINDS: dict[str, tuple[str, str, dict[str, Any], Data]] = {
    "two groups in one layer": (
        "a = MatMul(x, w) b = MatMul(x, o) h = Concat<axis = 1>(a, b) r = Relu(h) y = MatMul(r, z)",
        "N,3", {"w": W, "o": normal(3, 8, seed=5), "z": normal(16, 2)}, ROWS,
    ),
    "a sum beside a layer": (
        "a = MatMul(x, w) h = Relu(a) b = MatMul(h, u) s = ReduceSum<keepdims = 1>(h, last)"
        " y = Add(b, s)",
        "N,3", {"w": W, "u": U}, ROWS,
    ),
    "products of four dims": (
        "a = MatMul(x, w) h = Tanh(a) y = MatMul(h, u)",
        "N,2,5,3", {"w": W, "u": U}, [{"x": normal(4, 2, 5, 3)}],
    ),
    "factors of Gemm": (
        "a = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) h = Relu(a)"
        " y = Gemm<alpha = 2.0, transB = 1>(h, z)",
        "N,3", {"w": W, "b": normal(8), "z": normal(2, 8)}, ROWS,
    ),
    "biases that are spread": (
        "a = Gemm(x, w, b) h = Relu(a) y = Gemm(h, u, d)",
        "N,3", {"w": W, "b": normal(1), "u": U, "d": np.float32(0.5)}, ROWS,
    ),
    "a bias in front": (
        "a = MatMul(x, w) b = Add(s, a) h = Relu(b) y = MatMul(h, u)",
        "N,3", {"w": W, "s": normal(1, 8), "u": U}, ROWS,
    ),
    "a weight that is read elsewhere": (
        "a = MatMul(x, w) h = Relu(a) b = MatMul(h, v) k = Relu(b) q = MatMul(k, u)"
        " s = ReduceSum<keepdims = 0>(v) y = Add(q, s)",
        "N,3", {"w": W, "v": V, "u": U}, ROWS,
    ),
    "units that are never on": (
        "a = MatMul(x, w) b = Sub(a, k) h = Relu(b) y = MatMul(h, u)",
        "N,3", {"w": W, "k": np.full(8, 100.0), "u": U}, ROWS,
    ),
    "an output that nothing has an effect on": (
        "a = MatMul(x, w) h = Relu(a) q = MatMul(h, u) z = Mul(q, n) y = Add(z, o)",
        "N,3", {"w": W, "u": U, "n": np.zeros(2), "o": np.ones(2)}, ROWS,
    ),
    "images of any size": (
        'a = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) h = Relu(a)'
        " b = Conv<pads = [1, 1, 1, 1]>(h, v) g = GlobalAveragePool(b) y = Flatten(g)",
        "N,3,H,W", {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 3, 3)},
        [{"x": normal(4, 3, n, n)} for n in (8, 10)],
    ),
    "one sample": (
        "a = MatMul(x, w) h = Relu(a) y = MatMul(h, u)", "N,3", {"w": W, "u": U},
        [{"x": normal(1, 3)}],
    ),
    "optional values": (
        "o = Optional(x) e = OptionalHasElement(o) g = OptionalGetElement(o) a = MatMul(g, w)"
        " h = Relu(a) q = MatMul(h, u) f = Cast<to = 1>(e) y = Mul(q, f)",
        "N,3", {"w": W, "u": U}, ROWS,
    ),
    "a loop": (
        LOOP.replace("BODY", "r = Sigmoid(p) q = Add(r, p)"), "N,3", {"w": W, "u": U}, ROWS,
    ),
    "a layer in a loop": (
        LOOP.replace("BODY", "r = MatMul(p, v) q = Tanh(r)"),
        "N,3", {"w": W, "v": V / 4, "u": U}, ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_models_of_many_kinds(name: str) -> None:
    body, x, constants, data = KINDS[name]
    if "last" in body:
        body = f"last = Constant<value_ints = [1]>() {body}"
    model = PassManager("O1").run(network(body, x, **constants)).model
    budget = Budget() if name == "one sample" else Budget(sqnr_db=0.5)
    found = pruned(model, "macs", 0.6, data, budget=budget)
    small = valid(model, found, data)
    assert elements(small)[0] < elements(model)[0] + 16
    assert found.details["left"]["macs"] <= 0.6
    if "loop" not in name:  # what is inside of loops counts as it is
        assert Cost(small).macs <= 0.6 * Cost(model).macs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["channels", "heads"])
@pytest.mark.parametrize(
    "made",
    [
        networks.resnet_option_a, networks.resnet_projection, networks.resnext,
        networks.mobilenet_v2, networks.mobilenet_v3, networks.shufflenet_v1,
        networks.shufflenet_v2, networks.densenet, networks.unet_transpose, networks.unet_resize,
        networks.superres, networks.superres_folded, networks.conv1d, networks.conv3d,
        networks.qdq_cnn, networks.if_capture, networks.lstm, networks.bilstm, networks.gru,
        networks.bigru, transformers.vit, transformers.bert, transformers.gpt_expand,
        transformers.gpt_tile,
    ],
)  # fmt: skip
def test_architectures(made: Callable[[], Network], kind: str) -> None:
    net = made()
    model = PassManager("O2").run(net.model).model
    if kind == "heads" and made.__module__ != "pruning.transformers":
        with pytest.raises(NotApplicable, match="no heads"):
            pruned(model, "channels", 0.7, net.feeds, kind=kind)
        return
    goal = ("macs", 0.8) if kind == "channels" else ("channels", 0.7)
    fit, aside = split(from_batches(net.feeds, model), 512)
    # Weights are random and samples few: others tell nothing, those that were fitted to have to.
    budget = Budget(sqnr_db=-20.0) if aside else Budget()
    found = pruned(model, *goal, net.feeds, kind=kind, budget=budget)
    small = valid(model, found, net.feeds)
    assert Trial(model, fit).quality(small).sqnr_db >= 10
    share = Cost(small).macs / Cost(model).macs
    whole = any(g["left"] == 0 for g in found.details["groups"])
    # Of a layer that goes whole everything goes, what no group counts, too.
    assert share <= found.details["left"]["macs"] + 1e-9
    if not whole:
        assert share == pytest.approx(found.details["left"]["macs"], rel=1e-3)


@pytest.mark.slow
def test_a_sentence_encoder(shared_data: Path) -> None:
    """Several inputs of varying length; neurons go first, then heads."""
    model = PassManager("O2").run(ir.load(shared_data / "models" / "minilm_l6.onnx")).model
    with np.load(shared_data / "minilm_calib.npz") as archive:
        ids, offsets = archive["token_ids"].astype(np.int64), archive["offsets"]
    rows = [ids[a:b][None] for a, b in itertools.pairwise(offsets[:41])]
    data = [
        {"input_ids": r, "attention_mask": np.ones_like(r), "token_type_ids": np.zeros_like(r)}
        for r in rows
    ]
    for what, left, kind in (("macs", 0.85, "channels"), ("channels", 0.84, "heads")):
        found = pruned(model, what, left, data, kind=kind, least=0.5)
        small = valid(model, found, data[:2])
        assert Cost(small).macs < Cost(model).macs
        assert found.details["quality"]["cosine"] > 0.9
        model = small

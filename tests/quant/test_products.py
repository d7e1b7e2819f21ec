from __future__ import annotations

import collections
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.calibration import load_data
from graphopt.quant.products import quantize_products, quantize_tables
from graphopt.rewrite import Rewriter
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]


def outlying(seed: int = 0) -> tuple[ir.Model, list[dict[str, Array]]]:
    """Two layers behind a normalization, some channels of which are large, and samples."""
    import onnx

    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,32] x) => (float[N,24] y) {
            n = LayerNormalization(x, s, b)
            p = MatMul(n, w) h = Add(p, c) r = Relu(h)
            y = Gemm<transB=1, alpha=0.5>(r, v, d)
        }"""
    )
    spread = np.exp(rng.normal(size=32))
    spread[5], spread[20] = 40, 25
    weights = {
        "s": spread, "b": spread * rng.normal(size=32),
        "w": rng.normal(size=(32, 48)) / spread[:, None],
        "c": rng.normal(size=48), "v": rng.normal(size=(24, 48)), "d": rng.normal(size=24),
    }  # fmt: skip
    for name, data in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data.astype(np.float32), name))
    data = [{"x": rng.normal(size=(n, 32)).astype(np.float32)} for n in (64, 20, 40)]
    return ir.load(proto), data


def outputs(model: ir.Model, feeds: list[dict[str, Array]]) -> Array:
    with open_session(model, optimize=False) as session:
        return np.concatenate([session.run(f)["y"] for f in feeds])


def snr(model: ir.Model, changed: ir.Model, feeds: list[dict[str, Array]]) -> float:
    a, b = outputs(model, feeds), outputs(changed, feeds)
    return float(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))


def quantized(
    model: ir.Model, only: Collection[str] | None, data: Any, **options: Any
) -> tuple[ir.Model, list[Any]]:
    copy = ir.clone(model)
    rw = Rewriter(copy)
    nodes = None if only is None else [n for n in copy.graph if n.op_type in only]
    found = quantize_products(rw, nodes, data, **options)
    rw.remove_initializers()
    ir.verify(copy)
    return copy, found


def test_each_step_helps() -> None:
    model, data = outlying()
    rng = np.random.default_rng(9)
    unseen = [{"x": rng.normal(size=(200, 32)).astype(np.float32)}]
    got = {}
    for name, options in {
        "plain": {},
        "one scale": {"per_channel": False},
        "constants": {"least": np.inf, "rounding": "nearest", "correct_bias": False},
        "smooth": {"rounding": "nearest", "correct_bias": False},
        "all": {},
    }.items():
        use = None if name in ("plain", "one scale") else data
        copy, found = quantized(model, None, use, **options)
        got[name] = snr(model, copy, unseen)
        assert [p.name for p in found] == ["p", "y"]
        assert [p.input for p in found] == ["n", "r"]
        assert all((p.snr is None) == (p.smoothed is None) == (use is None) for p in found)
    assert got["one scale"] <= got["plain"] + 0.5
    assert got["constants"] > got["plain"] + 10  # the normalization takes the factors
    assert got["smooth"] >= got["constants"]
    assert got["all"] > got["smooth"] - 0.5
    assert got["all"] > 35


def test_what_is_expected_is_what_comes() -> None:
    model, data = outlying(3)
    copy, (found,) = quantized(model, ["Gemm"], data)
    assert found.snr == pytest.approx(snr(model, copy, data), abs=3)


def test_means_are_kept() -> None:
    model, data = outlying(1)
    base = outputs(model, data)
    moved = {}
    for correct in (False, True):
        copy, _ = quantized(
            model, None, data, limits=(-7, 7), rounding="nearest", correct_bias=correct
        )
        moved[correct] = np.abs((outputs(copy, data) - base).mean(axis=0)).mean()
    assert moved[True] < 0.7 * moved[False]


def test_chosen_nodes_only() -> None:
    model, data = outlying()
    copy, found = quantized(model, ["MatMul", "Relu"], data)
    assert [p.name for p in found] == ["p"]
    ops = {n.op_type for n in copy.graph}
    assert "Gemm" in ops
    assert "MatMul" not in ops
    copy, found = quantized(model, [], data)
    assert found == []
    assert ir.dump(copy) == ir.dump(model)
    others = list(model.graph)
    rw = Rewriter(copy)
    assert quantize_products(rw, others, data) == []  # nodes of another model
    assert not rw.changed


def test_a_reference_model(models_dir: Path) -> None:
    original = graphopt.load(models_dir / "digits_transformer.onnx")
    model = graphopt.optimize(original, "O2").model
    data = load_data(models_dir / "digits_calib.npz", model)
    test = dict(np.load(models_dir / "digits_test.npz"))
    labels = np.load(models_dir / "digits_test_labels.npy")
    copy, found = quantized(model, None, data)
    assert len(found) > 8
    assert min(p.snr for p in found) > 30
    ops = collections.Counter(n.op_type for n in copy.graph)
    assert ops["MatMulInteger"] == len(found)

    def logits(m: ir.Model) -> Array:
        with open_session(m) as session:
            return next(iter(session.run(test).values()))

    a, b = logits(model), logits(copy)
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.99
    assert abs((a.argmax(1) == labels).mean() - (b.argmax(1) == labels).mean()) < 0.01
    assert 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()) > 25


def tables(**weights: Array) -> ir.Model:
    import onnx

    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N] i) => (float y, float z, float u, float v) {
            y = Gather(big, i) z = Gather(small, i) u = Gather<axis=1>(wide, i)
            a = Gather(both, i) b = Gather(both, i) v = Add(a, b)
        }"""
    )
    for name, data in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return ir.load(proto)


def test_tables() -> None:
    rng = np.random.default_rng(0)
    sizes = {"big": (100, 8), "small": (10, 8), "wide": (8, 100), "both": (100, 8)}
    model = tables(**{n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()})
    before = ir.clone(model)
    rw = Rewriter(model)
    assert [t.name for t in quantize_tables(rw, least_bytes=1000)] == ["big"]
    rw.remove_initializers()
    ir.verify(model)
    i = np.array([0, 3, 7])
    with open_session(before) as one, open_session(model) as other:
        a, b = one.run({"i": i}), other.run({"i": i})
    np.testing.assert_allclose(a["y"], b["y"], atol=np.abs(a["y"]).max() / 127)
    assert not np.array_equal(a["y"], b["y"])
    for name in "zuv":
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_a_sentence_encoder(shared_data: Path) -> None:
    def sentences(part: str) -> list[dict[str, Array]]:
        with np.load(shared_data / f"minilm_{part}.npz") as archive:
            tokens, offsets = archive["token_ids"].astype(np.int64), archive["offsets"]
        ids = [tokens[a:b][None] for a, b in itertools.pairwise(offsets)]
        return [
            {"input_ids": t, "attention_mask": np.ones_like(t), "token_type_ids": np.zeros_like(t)}
            for t in ids
        ]

    model = graphopt.optimize(graphopt.load(shared_data / "models/minilm_l6.onnx"), "O2").model
    copy = ir.clone(model)
    rw = Rewriter(copy)
    assert len(quantize_products(rw, None, sentences("calib"))) == 36
    assert len(quantize_tables(rw)) == 1
    rw.remove_initializers()
    assert ir.nbytes(copy) < 24e6

    def embeddings(m: ir.Model) -> Array:
        with open_session(m) as session:
            each = [next(iter(session.run(f).values()))[0].mean(axis=0) for f in sentences("val")]
        return np.stack([e / np.linalg.norm(e) for e in each])

    cosines = (embeddings(model) * embeddings(copy)).sum(axis=1)
    assert cosines.mean() > 0.998
    assert cosines.min() > 0.99

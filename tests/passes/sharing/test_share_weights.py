from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import PassManager, Result, ir, optimize, parse
from graphopt.errors import CalibrationError, PipelineSyntaxError
from graphopt.measure import Trial
from graphopt.reconstruct import problem
from graphopt.reconstruct.layers import layers
from graphopt.testing import check_pass

Array = np.ndarray[Any, Any]

SHAPES = {
    "w": (16, 8, 3, 3), "b": (16,), "d": (16, 1, 3, 3), "v": (16, 24), "c": (24,), "e": (40, 16),
}  # fmt: skip


def numbers(array: Array) -> str:
    return "{" + ",".join(map(repr, array.reshape(-1).tolist())) + "}"


def declared(name: str, array: Array) -> str:
    kind = {"f": "float", "i": "int8", "u": "uint8"}[array.dtype.kind]
    shape = ",".join(map(str, array.shape))
    return f"{kind}[{shape}] {name} = {numbers(array)}"


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def net(given: dict[str, Array] | None = None, opset: int = 17) -> ir.Model:
    """Two convolutions, rows of a table added, and a product."""
    constants = ", ".join(declared(*each) for each in (given or weights()).items())
    return ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    g (float[N,8,6,6] x, int64[N] ids) => (float[N,24] y) <{constants}> {{
        a = Conv<pads=[1,1,1,1]>(x, w, b)
        r = Relu(a)
        f = Conv<pads=[1,1,1,1],group=16>(r, d)
        p = GlobalAveragePool(f)
        q = Flatten(p)
        t = Gather(e, ids)
        s = Add(q, t)
        m = MatMul(s, v)
        y = Add(m, c)
    }}
    """)


def batches(seed: int = 1, count: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 16, 8, 6, 6))
    # Neighbours are alike, and channels differ in size.
    smooth = base + np.roll(base, 1, -1) + np.roll(base, 1, -2)
    return [
        {
            "x": (smooth[i] * np.exp(rng.normal(size=(8, 1, 1)))).astype(np.float32),
            "ids": rng.integers(0, 40, 16),
        }
        for i in range(count)
    ]


PLAIN = "share-weights{code=false min-weights=100 %s}"


def run(text: str, model: ir.Model | None = None, data: Any = True, target: str = "cpu") -> Result:
    given = batches() if data is True else data
    manager = PassManager(text, data=given, on_mismatch="raise", target=target)
    return manager.run(net() if model is None else model)


def different(model: ir.Model) -> dict[str, int]:
    """How many values the constants of a model have, by what they were called."""
    return {
        name.partition(".")[0]: len(np.unique(array))
        for name, value in model.graph.initializers.items()
        if (array := ir.array(value)) is not None and array.ndim > 1
    }


@pytest.mark.parametrize("data", [True, None])
@pytest.mark.parametrize("entries", [2, 6, 16])
def test_each_constant_gets_few_values(entries: int, data: Any) -> None:
    found = different(run(PLAIN % f"entries={entries}", data=data).model)
    assert [found[name] for name in "wdve"] == [entries] * 4


def test_text() -> None:
    result = check_pass(
        "share-weights{entries=2 min-weights=0 code=false}",
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,4] y) <float[2,4] w = {1,2,1,2,5,6,5,6}> { y = MatMul(x, w) }
        """,
        """
        graph(%x: float[N,2]) {
          const %w.1: float[2,4]
          %y = MatMul(%x, %w.1)
          return %y
        }
        """,
    )
    (found,) = map(ir.array, result.model.graph.initializers.values())
    np.testing.assert_array_equal(found, [[1.5] * 4, [5.5] * 4])


def test_the_numbers_are_what_is_computed() -> None:
    """A model with the rounded weights, run on its own, gives the same bits."""
    plain = run(PLAIN % "").model
    coded = run("share-weights{min-weights=100}").model
    trial = Trial(plain, batches(2))
    assert trial.quality(coded).sqnr_db > 100


@pytest.mark.parametrize(("entries", "block"), [(4, 0), (4, 4), (16, 0)])
def test_fitting_keeps_much_more(entries: int, block: int) -> None:
    options = f"entries={entries} blocks={block} skip=e"
    trial = Trial(net(), batches(2))
    fitted, plain = (run(PLAIN % options, data=data).model for data in (True, None))
    assert trial.noise(fitted) < 0.5 * trial.noise(plain)


def test_blocks_have_books_of_their_own() -> None:
    result = run(PLAIN % "entries=3 blocks=4")
    for layer in layers(result.model):
        matrix = layer.matrix().reshape(-1, layer.columns)
        assert [len(np.unique(rows)) for rows in matrix.reshape(-1, 4 * layer.columns)] == [3] * (
            len(matrix) // 4
        )
    assert len(np.unique(layers_of(result.model)["a"])) == 12
    (shared,) = (r for r in result.report.passes[0].details["shared"] if r["constant"] == "e")
    assert (shared["entries"], shared["block"]) == (3, 4)


def layers_of(model: ir.Model) -> dict[str, Array]:
    return {layer.name: layer.matrix() for layer in layers(model)}


def test_bytes_give_more_to_what_matters() -> None:
    given = weights()
    given["e"] *= 0.001  # hardly matters to the sum
    model = net(given)
    report = run(PLAIN % "bytes=0.6", model).report.passes[0]
    rows = {row["constant"]: row for row in report.details["shared"]}
    assert rows["e"]["bytes_after"] / 640 < 0.8 * rows["v"]["bytes_after"] / 384
    assert rows["e"]["noise"] < rows["v"]["noise"]


def test_bytes_are_kept() -> None:
    rng = np.random.default_rng(0)
    big = {name: rng.normal(size=(96, 96)).astype(np.float32) for name in "abcd"}
    constants = ", ".join(declared(*each) for each in big.items())
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,96] x) => (float[N,96] y) <{constants}> {{
        p = MatMul(x, a)
        q = Relu(p)
        r = MatMul(q, b)
        s = Relu(r)
        t = MatMul(s, c)
        u = Relu(t)
        y = MatMul(u, d)
    }}
    """)
    data = [{"x": rng.normal(size=(64, 96)).astype(np.float32)} for _ in range(4)]
    sizes, noises = [], []
    trial = Trial(model, [{"x": rng.normal(size=(64, 96)).astype(np.float32)}])
    for share in (0.1, 0.15, 0.3, 0.6):
        found = run(f"share-weights{{bytes={share}}}", model, data).model
        sizes.append(ir.nbytes(found) / ir.nbytes(model))
        noises.append(trial.noise(found))
        assert sizes[-1] <= share
    assert sizes == sorted(sizes)
    assert noises == sorted(noises, reverse=True)
    without = run("share-weights{bytes=0.15}", model, None).model
    assert ir.nbytes(without) <= 0.15 * ir.nbytes(model)
    report = run("share-weights{bytes=0.01}", model, data).report.passes[0]
    assert report.status == "not-applicable"
    assert "bytes=0.01 is too little: 2 values for each constant leave" in (report.reason or "")


def test_what_several_read_stays_one() -> None:
    given = weights()
    given["e"] = given["e"][:, :4].copy()
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (int64[N] ids) => (float[N,40] y) <{declared("e", given["e"])}> {{
        t = Gather(e, ids)
        f = Transpose<perm=[1,0]>(e)
        m = MatMul(t, f)
        u = Gemm<transB=1>(t, e)
        y = Add(m, u)
    }}
    """)
    result = run(PLAIN % "entries=8", model, [{"ids": np.arange(40)}, {"ids": np.arange(20)}])
    assert different(result.model) == {"e": 8}


def test_zeros_stay_and_entries_go_to_the_others() -> None:
    for data in (True, None):
        zeroed = run("sparsify{code=false min-weights=100 ranking=local ratio=0.4}").model
        shared = run(PLAIN % "entries=4 skip=e", zeroed, data).model
        before, after = layers_of(zeroed), layers_of(shared)
        for name, matrix in before.items():
            assert (after[name][matrix == 0] == 0).all()
            assert len(np.unique(after[name][matrix != 0])) == 4


def test_vectors_of_what_is_not_fitted() -> None:
    result = run(PLAIN % "entries=8 vector=4")
    found = {name[:1]: ir.array(v) for name, v in result.model.graph.initializers.items()}
    assert found["e"] is not None
    assert len(np.unique(found["e"].reshape(-1, 4), axis=0)) == 8
    assert len(np.unique(layers_of(result.model)["y"])) == 8
    odd = run(PLAIN % "entries=8 vector=3")
    assert different(odd.model)["e"] == 8
    coded = run("share-weights{min-weights=100 entries=8 vector=4}")
    assert Trial(result.model, batches(2)).noise(coded.model) < 1e-10


def test_vectors_where_bytes_are_few() -> None:
    rng = np.random.default_rng(0)
    e = rng.normal(size=(2000, 16)).astype(np.float32)
    e[:, 1::2] = e[:, ::2] + 0.1 * e[:, 1::2]
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (int64[N] ids) => (float[N,16] y) <{declared("e", e)}> {{ y = Gather(e, ids) }}
    """)
    data = [{"ids": np.arange(i, 2000, 4)} for i in range(4)]
    noises = {}
    for vector in (1, 2):
        result = run(f"share-weights{{bytes=0.1 vector={vector}}}", model, data)
        (row,) = result.report.passes[0].details["shared"]
        assert row["unit"] == vector
        assert ir.nbytes(result.model) <= 0.1 * ir.nbytes(model)
        noises[vector] = Trial(model, data).noise(result.model)
    assert noises[2] < 0.7 * noises[1]


def alike(noise: float) -> ir.Model:
    """Two products of nearly the same weights, whose outputs are nearly the same in pairs."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 16)).astype(np.float32)
    w[:, 8:] = w[:, :8] + noise * w[:, 8:]
    v = w + noise * rng.normal(size=w.shape).astype(np.float32)
    return ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,12] x) => (float[N,16] y) <{declared("w", w)}, {declared("v", v)}> {{
        a = MatMul(x, w)
        b = MatMul(x, v)
        c = Relu(b)
        y = Add(a, c)
    }}
    """)


ROWS = [{"x": np.random.default_rng(i).normal(size=(64, 12)).astype(np.float32)} for i in range(4)]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_similar_constants_become_one(distance: str) -> None:
    options = f"similar=0.05 distance={distance}"
    result = run(PLAIN % options, alike(0.01), ROWS)
    assert len(result.model.graph.initializers) == 1
    assert result.report.passes[0].details["merged"] == {"constants": 1, "channels": 0}
    far = run(PLAIN % options, alike(0.7), ROWS)
    assert far.report.passes[0].details["merged"] == {"constants": 0, "channels": 0}


def test_similar_channels_become_alike() -> None:
    model = alike(0.01)
    result = run(PLAIN % "similar=0.05 skip=v", model, ROWS)
    assert result.report.passes[0].details["merged"] == {"constants": 0, "channels": 8}
    (w,) = (layer.matrix()[0] for layer in layers(result.model) if layer.node.inputs[1].name != "v")
    assert len(np.unique(w, axis=0)) == 8
    np.testing.assert_array_equal(w[:8], w[8:])
    assert Trial(model, ROWS).noise(result.model) < 0.02


def test_less_is_merged_where_too_much_is_lost() -> None:
    merged = {}
    for least in (3, 25, 40):
        options = f"entries=64 similar=0.9 min-sqnr={least}"
        report = run(PLAIN % options, alike(0.3), ROWS).report.passes[0]
        assert report.details["quality"]["sqnr_db"] >= least
        merged[least] = report.details["merged"]
    assert merged[3]["constants"] == 1
    assert merged[25] == {"constants": 0, "channels": 1}
    assert merged[40] == {"constants": 0, "channels": 0}


def test_integers_stay_integers() -> None:
    rng = np.random.default_rng(0)
    w = np.clip(rng.normal(size=(16, 12)) * 40, -128, 127).astype(np.int8)
    w[rng.random(w.shape) < 0.4] = 0
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,16] x) => (float[N,12] y)
    <{declared("w", w)}, float s = {{0.02}}, int8[16,12] k = {numbers(w + 1)}> {{
        d = DequantizeLinear(w, s)
        m = MatMul(x, d)
        n = Cast<to=1>(k)
        o = MatMul(x, n)
        y = Add(m, o)
    }}
    """)
    data = [{"x": np.ones((4, 16), np.float32)}]
    found = run(PLAIN % "entries=5", model, data).model.graph.initializers
    (shared,) = (ir.array(v) for name, v in found.items() if name.startswith("w"))
    assert shared is not None
    assert shared.dtype == np.int8
    np.testing.assert_array_equal(shared == 0, w == 0)
    assert len(np.unique(shared)) == 6
    assert np.square(shared - w.astype(float)).mean() < 0.08 * np.square(w.astype(float)).mean()
    # Bytes that are no quantized numbers are not touched.
    np.testing.assert_array_equal(ir.array(found["k"]), w + 1)


def test_layers_too_large_to_fit_get_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "_MOST", 40)
    report = run(PLAIN % "entries=4").report.passes[0]
    fits = {row["constant"]: row["fit"] is not None for row in report.details["shared"]}
    assert fits == {"w": False, "d": True, "v": True, "e": False}


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda w: w.fill(np.nan), "", "it holds NaN or infinity"),
        (lambda w: w.reshape(-1).put(3, np.inf), "", "it holds NaN or infinity"),
        (lambda w: w.fill(2), "", "it has no more than 16 values already"),
        (lambda w: None, "skip=w", "skip names it"),
        (lambda w: None, "skip=Conv", "skip names it"),
        (lambda w: None, "skip=a", "skip names it"),
        (lambda w: None, "min-weights=1153", "it has fewer than 1153 numbers (min-weights)"),
    ],
)
def test_constants_that_stay(change: Any, options: str, reason: str) -> None:
    given = weights()
    change(given["w"])
    if "min-weights" not in options:
        options += " min-weights=100"
    result = run(f"share-weights{{code=false {options}}}", net(given), None)
    assert f"share: {reason}" in result.report.passes[0].declined
    np.testing.assert_array_equal(ir.array(result.model.graph.initializers["w"]), given["w"])


def test_tables_that_are_added_stay() -> None:
    table = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[16,16] x) => (float[16,24] y)
    <{declared("v", weights()["v"])}, {declared("t", table)}> {{
        m = MatMul(x, v)
        y = Add(m, t)
    }}
    """)
    result = run(PLAIN % "", model, [{"x": np.eye(16, dtype=np.float32)}])
    assert different(result.model) == {"v": 16, "t": 384}
    reason = "share: Add reads it, where each number may matter"
    assert result.report.passes[0].declined == {reason: 1}


def test_what_subgraphs_read_loses_nothing_where_bytes_are_what_is_wanted() -> None:
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,16] x, bool c) => (float[N,24] y) <{declared("v", weights()["v"])}> {{
        a = MatMul(x, v)
        b = If(c) <then_branch = t () => (float[N,24] p) {{ p = MatMul(x, v) }},
                   else_branch = e () => (float[N,24] q) {{ q = Relu(a) }}>
        y = Add(a, b)
    }}
    """)
    found = run("share-weights{min-weights=100}", model, None).report.passes[0]
    assert (found.status, found.reason) == (
        "not-applicable",
        "no constant can get few values: a subgraph uses it, so that it would not take fewer bytes",
    )
    plain = run(PLAIN % "", model, None)
    assert different(plain.model) == {"v": 16}


def test_patterns_that_skip_nothing_are_told() -> None:
    remarks = run(PLAIN % "skip=w,Conv,nothing").report.passes[0].remarks
    assert [each for each in remarks if "matches" in each] == [
        "nothing matches 'nothing', which was to be skipped"
    ]


def test_a_ratio_out_of_reach_is_told() -> None:
    remarks = run(PLAIN % "sqnr=200", data=batches(count=64)).report.passes[0].remarks
    assert "sqnr=200 was not reached; min-sqnr declines such a result" in remarks


def test_a_dry_run_only_tells() -> None:
    result = run(PLAIN % "dry")
    assert not result.report.changed
    details = result.report.passes[0].details
    assert [row["entries"] for row in details["shared"]] == [16] * 4
    assert details["quality"]["samples"] == 8


def test_blocks_without_data_are_rows() -> None:
    result = run(PLAIN % "entries=3 blocks=4", data=None)
    v = next(ir.array(i) for n, i in result.model.graph.initializers.items() if n.startswith("v"))
    assert v is not None
    assert [len(np.unique(rows)) for rows in v.reshape(4, -1)] == [3] * 4
    assert len(np.unique(v)) == 12


def test_nothing_to_share() -> None:
    report = run("share-weights{min-weights=5000}").report.passes[0]
    assert report.status == "not-applicable"
    assert report.reason == (
        "no constant can get few values: it has fewer than 5000 numbers (min-weights)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("entries=1", "entries are 2 to 256 values, not 1"),
        ("entries=257", "entries are 2 to 256 values, not 257"),
        ("entries=4 bytes=0.1", "entries and bytes say how many values there are; give one"),
        ("bytes=0", r"bytes is a share of the model's bytes, in \(0, 1\), not 0"),
        ("bytes=1", "bytes is a share of the model's bytes"),
        ("similar=0", r"similar is a distance, in \(0, 1\), not 0"),
        ("distance=near", "option 'distance' wants one of euclidean, cosine, not near"),
        ("vector=0", "vector has to be 1 or more, not 0"),
        ("blocks=-1", "blocks are of 1 or more channels, or 0 for all, not -1"),
        ("max-drop=-1", r"max-drop is a share in percent, in \[0, 100\], not -1"),
        ("samples=0", "samples has to be 1 or more, not 0"),
        ("threads=0", "threads has to be 1 or more, not 0"),
        ("min-weights=-1", "min-weights is 0 or more, not -1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(PipelineSyntaxError, match=message):
        parse(f"share-weights{{{options}}}")


def test_budgets() -> None:
    kept = run(PLAIN % "min-sqnr=5").report.passes[0]
    assert kept.status == "ok"
    missed = run(PLAIN % "entries=2 min-sqnr=60").report.passes[0]
    assert missed.status == "not-applicable"
    assert missed.details["missed"].startswith("with so few values, SQNR")
    none = run(PLAIN % "min-sqnr=5", data=None).report.passes[0]
    assert none.reason == "sqnr, min-sqnr and max-drop need calibration data (--data)"
    one = run(PLAIN % "min-sqnr=5", data=[{n: v[:1] for n, v in batches()[0].items()}])
    assert "need samples that nothing is fitted to" in (one.report.passes[0].reason or "")
    one = run(PLAIN % "sqnr=20", data=[{n: v[:1] for n, v in batches()[0].items()}])
    assert (one.report.passes[0].reason or "").startswith("sqnr needs samples that nothing is")
    few = run(PLAIN % "max-drop=5", data=batches(count=2)).report.passes[0]
    assert "max-drop cannot be judged on the 4 samples" in (few.reason or "")


def test_data_without_elements() -> None:
    empty = [{"x": np.zeros((0, 8, 6, 6), np.float32), "ids": np.zeros(0, np.int64)}]
    with pytest.raises(CalibrationError, match="all samples are empty"):
        run(PLAIN % "", data=empty)


def test_files_of_weights(tmp_path: Path) -> None:
    ir.save(net(), tmp_path / "plain.onnx")
    onnx.save(
        onnx.load(tmp_path / "plain.onnx"), tmp_path / "outside.onnx",
        save_as_external_data=True, location="weights", size_threshold=0,
    )  # fmt: skip
    inside, outside = (
        run(PLAIN % "", ir.load(tmp_path / f"{name}.onnx"), None).model
        for name in ("plain", "outside")
    )
    assert different(inside) == different(outside)
    ir.save(outside, tmp_path / "shared.onnx")
    assert Trial(inside, batches(2)).noise(ir.load(tmp_path / "shared.onnx")) == 0


def test_targets_that_codes_are_not_for() -> None:
    # Weights that are not coded would lose for nothing.
    result = run("share-weights{min-weights=100}", target="openvino")
    assert result.report.passes[0].status == "not-applicable"
    assert "code=false" in (result.report.passes[0].reason or "")
    asked = run("share-weights{min-weights=100 code=false}", target="openvino")
    assert different(asked.model)["w"] == 16


@pytest.mark.parametrize(
    ("name", "options", "agreement", "size"),
    [
        ("resnet", "", 0.98, 0.25),
        ("transformer", "", 0.97, 0.3),
        pytest.param("resnet", "entries=4 blocks=8", 0.96, 0.2, marks=pytest.mark.slow),
        pytest.param("vgg", "bytes=0.1", 0.97, 0.1, marks=pytest.mark.slow),
        pytest.param("lstm", "", 0.97, 0.3, marks=pytest.mark.slow),
        pytest.param("mobilenet", "", 0.95, 0.35, marks=pytest.mark.slow),
    ],
)
def test_trained_networks_keep_their_predictions(
    name: str, options: str, agreement: float, size: float, models_dir: Path, tmp_path: Path
) -> None:
    source = models_dir / f"digits_{name}.onnx"
    text = f"O2,share-weights{{samples=64 {options}}}"
    result = optimize(source, text, data=models_dir / "digits_calib.npz")
    assert not result.report.reverted
    images = np.load(models_dir / "digits_test.npz")["image"]
    quality = Trial(ir.load(source), [{"image": images}]).quality(result.model)
    assert quality.agreement is not None
    assert quality.agreement >= agreement
    ir.save(result.model, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size <= size * source.stat().st_size


def test_as_few_bytes_as_a_ratio_takes() -> None:
    sizes = []
    for sqnr in (10, 20, 30):
        found = run(PLAIN % f"sqnr={sqnr}", data=batches(count=64)).report.passes[0]
        assert found.status == "ok"
        assert found.details["quality"]["sqnr_db"] > sqnr - 4
        sizes.append(sum(row["bytes_after"] for row in found.details["shared"]))
    assert sizes == sorted(set(sizes))

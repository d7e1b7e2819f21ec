"""The whole of post-training quantization, on the reference models and on odd ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, ir, load
from graphopt.calibration import load_data
from graphopt.errors import CalibrationError, GraphOptError
from graphopt.manager.report import PassRecord
from graphopt.manager.runner import Result
from graphopt.measure import Quality, Trial
from graphopt.passes.quantize.quantize_int8 import QuantizeInt8
from graphopt.runtime import open_session
from graphopt.targets import check, get

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["": {opset}]>\ng '
QUICK = "choose=all calibrate=percentile equalize=false"
NAMES = ("digits_resnet", "digits_vgg", "digits_mobilenet", "digits_transformer", "digits_lstm")


def quantize(
    model: ir.Model,
    data: Any,
    options: str = QUICK,
    *,
    target: str = "cpu-x64",
    before: str = "",
    **more: Any,
) -> tuple[Result, PassRecord]:
    text = f"{before}quantize-int8{{{options}}}" if options else f"{before}quantize-int8"
    source = ir.dump(model)
    result = PassManager(
        text, data=data, target=target, objective=None, on_mismatch="raise", **more
    ).run(model)
    assert ir.dump(model) == source, "the input model was modified"
    record = result.report.passes[-1]
    assert record.changed == (record.status == "ok")
    ir.verify(result.model)
    ir.check(model, result.model)
    assert ir.interface_difference(model, result.model) is None
    return result, record


def ops(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in ir.all_nodes(model))


def build(graph: str, opset: int = 17, **weights: Array) -> ir.Model:
    model = ir.parse_text(HEAD.format(opset=opset) + graph)
    for name, data in weights.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(data, name=name)
        value.shape = ir.Shape(data.shape)
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def batches(count: int = 4, **shapes: tuple[int, ...]) -> list[dict[str, Array]]:
    return [
        {name: normal(*shape, seed=10 * i + j) for j, (name, shape) in enumerate(shapes.items())}
        for i in range(count)
    ]


def quality(model: ir.Model, result: Result, data: list[dict[str, Array]]) -> Quality:
    return Trial(model, data).quality(result.model)


@pytest.fixture(scope="module")
def calibration(models_dir: Path) -> Any:
    return load_data(models_dir / "digits_calib.npz", load(models_dir / "digits_vgg.onnx"))


@pytest.fixture(scope="module")
def images(models_dir: Path) -> list[dict[str, Array]]:
    found = load_data(
        models_dir / "digits_test.npz", load(models_dir / "digits_vgg.onnx"), batch_size=50
    )
    return list(found)


def reference(models_dir: Path, name: str) -> ir.Model:
    """A reference model as the default pipeline leaves it."""
    return PassManager("O2").run(load(models_dir / f"{name}.onnx")).model


# --- quality ------------------------------------------------------------------------------------


# Floors are 3 dB below what was measured on x86-64 with VNNI.
@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("digits_resnet", 35.0),
        ("digits_vgg", 37.0),
        pytest.param("digits_mobilenet", 27.5, marks=pytest.mark.slow),
        pytest.param("digits_transformer", 30.0, marks=pytest.mark.slow),
        ("digits_lstm", 34.0),
    ],
)
def test_reference_models_stay_accurate(
    name: str, floor: float, models_dir: Path, calibration: Any, images: Any
) -> None:
    model = load(models_dir / f"{name}.onnx")
    options = QUICK if name == "digits_resnet" else "choose=all"
    result, record = quantize(model, calibration, options, before="O2,")
    assert record.status == "ok"
    found = quality(model, result, images)
    assert found.agreement is not None
    assert found.agreement >= 0.99
    assert found.sqnr_db >= floor
    rows = record.details["nodes"]
    assert any(row["form"] == "static" for row in rows)
    assert all("reason" in row for row in rows if row["form"] == "float")
    assert record.details["chosen"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reference_models_by_measurement(
    name: str, models_dir: Path, calibration: Any, images: Any, tmp_path: Path
) -> None:
    model = load(models_dir / f"{name}.onnx")
    result, record = quantize(model, calibration, "", target="cpu", before="O2,", cache=tmp_path)
    if record.status == "not-applicable":  # then measurement says so
        assert "be faster" in (record.reason or "")
        assert record.details["chosen"] is None
        return
    found = quality(model, result, images)
    assert found.agreement is not None
    assert found.agreement >= 0.99
    assert found.sqnr_db >= 25


@pytest.mark.parametrize(
    "method", ["minmax", "moving-average", "percentile", "entropy", "mse", "distribution"]
)
def test_methods(method: str, calibration: Any, models_dir: Path, images: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    options = f"choose=all calibrate={method} rounding=nearest equalize=false"
    result, record = quantize(model, calibration, options)
    assert record.status == "ok"
    found = quality(model, result, images[:4])
    assert found.agreement is not None
    assert found.agreement >= 0.97
    assert found.sqnr_db >= 20


def test_the_same_input_gives_the_same_bytes(models_dir: Path, calibration: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    first, _ = quantize(model, calibration, "choose=all")
    second, _ = quantize(model, calibration, "choose=all")
    assert ir.to_bytes(first.model) == ir.to_bytes(second.model)


def test_a_second_time_there_is_nothing_left(models_dir: Path, calibration: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    for options in (QUICK, "form=dynamic choose=all", f"{QUICK} spelling=qdq"):
        once, record = quantize(model, calibration, options)
        assert record.status == "ok"
        again, record = quantize(once.model, calibration, options)
        assert record.status == "not-applicable"
        assert "quantized already" in (record.reason or "")
        assert ir.to_bytes(again.model) == ir.to_bytes(once.model)


# --- options ------------------------------------------------------------------------------------


def test_spellings(models_dir: Path, calibration: Any, images: Any) -> None:
    model = reference(models_dir, "digits_resnet")
    qdq, _ = quantize(model, calibration, f"{QUICK} spelling=qdq")
    found = ops(qdq.model)
    assert found["Conv"] == 12
    assert not any(op.startswith("QLinear") for op in found)
    assert all(
        any(ir.use_count(v) or v.is_graph_output() for v in n.outputs) for n in qdq.model.graph
    ), "something is computed that nobody reads"
    lowered, _ = quantize(model, calibration, f"{QUICK} spelling=qoperator")
    found = ops(lowered.model)
    assert found["QLinearConv"] == 12
    assert not found["Conv"]
    for result in (qdq, lowered):
        assert quality(model, result, images[:2]).sqnr_db >= 33


def test_a_scale_for_the_tensor_alone(models_dir: Path, calibration: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    for options, rank in (
        (f"{QUICK} spelling=qdq", 1),
        (f"{QUICK} spelling=qdq per-channel=false", 0),
    ):
        result, _ = quantize(model, calibration, options)
        convs = [n for n in result.model.graph if n.op_type == "Conv"]
        scales = [n.inputs[1].producer().inputs[1] for n in convs]  # type: ignore[union-attr]
        assert {len(ir.static_shape(s) or ()) for s in scales} == {rank}


@pytest.mark.parametrize("skip", ["Conv", "*", "logits"])
def test_what_is_skipped_stays(skip: str, models_dir: Path, calibration: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    before = ops(model)
    result, record = quantize(model, calibration, f'{QUICK} spelling=qdq skip="{skip}"')
    if skip == "*":
        assert record.status == "not-applicable"
        return
    after = ops(result.model)
    assert after["Conv"] == before["Conv"]
    kept = [
        n for n in result.model.graph
        if n.op_type == ("Conv" if skip == "Conv" else "Gemm")
        and n.inputs[1].producer() is None  # type: ignore[union-attr]
    ]  # fmt: skip
    assert len(kept) == (before["Conv"] if skip == "Conv" else 1)
    assert any("among those to skip" in row.get("reason", "") for row in record.details["nodes"])


def test_forms(models_dir: Path, calibration: Any, images: Any) -> None:
    model = reference(models_dir, "digits_lstm")
    dynamic, record = quantize(model, calibration, "form=dynamic choose=all")
    assert record.status == "ok"
    assert ops(dynamic.model)["DynamicQuantizeLSTM"] == 2
    assert quality(model, dynamic, images[:2]).sqnr_db >= 25
    static, _ = quantize(model, calibration, f"{QUICK} form=static")
    assert ops(static.model)["LSTM"] == 2
    assert quality(model, static, images[:2]).sqnr_db >= 30


def test_without_data(models_dir: Path) -> None:
    model = reference(models_dir, "digits_lstm")
    result, record = quantize(model, None, "form=dynamic")
    assert record.status == "ok"
    assert ops(result.model)["DynamicQuantizeLSTM"] == 2
    assert any("without samples" in r for r in record.remarks)
    for options in ("form=static", "choose=all"):  # nobody who forgot them gets half of it
        _, record = quantize(model, None, options)
        assert record.status == "not-applicable"
        assert "needs calibration data" in (record.reason or "")
    _, record = quantize(reference(models_dir, "digits_vgg"), None, "form=static choose=all")
    assert record.status == "not-applicable"


@pytest.mark.parametrize("budget", ["min-sqnr=90", "max-drop=0"])
def test_budgets_that_cannot_be_met(budget: str) -> None:
    # Two classes that are nearly equal: some of the predictions change.
    model = build(
        "(float[n,8] x) => (float[n,2] y) <float[1] w = {0}> { y = MatMul(x, w) }",
        w=np.stack([normal(8), normal(8) * 1.0005], axis=1),
    )
    data = batches(32, x=(8, 8))
    result, record = quantize(model, data, f"{QUICK} {budget}")
    assert record.status == "not-applicable"
    assert "no int8 form keeps within the budget" in (record.reason or "")
    assert record.details["candidates"][-1]["sqnr_db"] > 10
    assert record.details["chosen"] is None
    assert ir.to_bytes(result.model) == ir.to_bytes(model)


def test_a_budget_that_is_met(models_dir: Path, calibration: Any) -> None:
    model = reference(models_dir, "digits_vgg")
    _, record = quantize(model, calibration, f"{QUICK} min-sqnr=30 max-drop=2")
    assert record.status == "ok"


def test_what_integers_would_slow_down_stays() -> None:
    model = build(
        "(float[n,4] x) => (float[n,4] y) <float[1] w = {0}> { a = MatMul(x, w) y = Tanh(a) }",
        w=normal(4, 4),
    )
    result, record = quantize(model, batches(x=(1, 4)), "form=static", target="cpu")
    assert record.status == "not-applicable"
    assert "be faster" in (record.reason or "")
    assert ir.to_bytes(result.model) == ir.to_bytes(model)
    assert all(row["form"] == "float" for row in record.details["nodes"])


@pytest.mark.parametrize(
    "options", ["percentile=50", "percentile=100.5", "threads=0", "max-drop=101", "max-drop=-1"]
)
def test_numbers_out_of_bounds(options: str) -> None:
    with pytest.raises(GraphOptError):
        PassManager(f"quantize-int8{{{options}}}")


def test_unknown_options() -> None:
    for text in ("calibrate=median", "form=half", "choose=some", "spelling=q", "bits=4"):
        with pytest.raises(GraphOptError):
            PassManager(f"quantize-int8{{{text}}}")


def test_options_as_the_library_takes_them() -> None:
    each = QuantizeInt8(min_sqnr=30.0, skip=("a", "b*"), calibrate="mse")
    assert QuantizeInt8.name in str(PassManager(each).pipeline)


# --- targets ------------------------------------------------------------------------------------

CLASSIFIER = (
    "(float[2,3,8,8] x) => (float[2,5] y) <float[1] w = {0}, float[1] v = {0}, float[1] fc = {0}, "
    "float[5] b = {1, -1, 2, 0, 0.5}, float[8] c = {0.1, 0.2, 0.3, 0, 0, -0.1, 0.2, 0}> { "
    "a = Conv<pads=[1,1,1,1]>(x, w, c) r = Relu(a) d = Conv<pads=[1,1,1,1]>(r, v) s = Add(d, r) "
    "t = Relu(s) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, fc, b) }"
)


def classifier() -> ir.Model:
    return build(
        CLASSIFIER,
        w=normal(8, 3, 3, 3, scale=0.3),
        v=normal(8, 8, 3, 3, seed=1, scale=0.2),
        fc=normal(5, 8, seed=2),
    )


TARGETS = [
    "cpu-x64", "cpu-x64-avx2", "cpu-arm64", "nnapi", "portable", "qnn", "xnnpack", "tensorrt",
    "openvino", "web",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_targets_get_what_they_want(target: str) -> None:
    model, data = classifier(), batches(8, x=(2, 3, 8, 8))
    result, record = quantize(model, data, f"{QUICK} spelling=qdq", target=target)
    assert record.status == "ok"
    wanted = get(target).scheme
    assert wanted is not None
    seen: Counter[str] = Counter()
    for node in result.model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        point = ir.array(node.inputs[2])
        assert point is not None
        is_weight = node.op_type == "DequantizeLinear" and ir.const(node.inputs[0]) is not None
        if is_weight and point.dtype == np.int32:
            seen["bias"] += 1
            assert wanted.bias == "int32"
            assert not point.any()
            continue
        form = wanted.weight if is_weight else wanted.activation
        seen["weight" if is_weight else "activation"] += 1
        assert point.dtype.name == form.dtype
        if form.symmetric:
            assert set(point.reshape(-1).tolist()) == {0 if form.limits[0] < 0 else 128}
        if is_weight:
            integers = ir.array(node.inputs[0])
            assert integers is not None
            assert form.limits[0] <= integers.min()
            assert integers.max() <= form.limits[1]
    assert seen["weight"] == 3
    assert seen["activation"] >= 4
    assert seen["bias"] == (2 if wanted.bias == "int32" else 0)
    assert [v for v in check(result.model, target) if v.node and "Linear" in v.node.op_type] == []
    assert quality(model, result, data).sqnr_db >= 25


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_targets_of_reference_models(
    target: str, name: str, models_dir: Path, calibration: Any, images: Any
) -> None:
    model = reference(models_dir, name)
    result, record = quantize(model, calibration, QUICK, target=target)
    assert record.status == "ok"
    found = quality(model, result, images[:4])
    assert found.agreement is not None
    assert found.agreement >= 0.95
    assert found.sqnr_db >= 15


def test_a_target_without_integers() -> None:
    _, record = quantize(classifier(), batches(x=(2, 3, 8, 8)), target="cuda")
    assert record.status == "not-applicable"
    assert record.reason


# --- odd models ---------------------------------------------------------------------------------


def run(model: ir.Model, feeds: dict[str, Array], *, optimize: bool = True) -> dict[str, Any]:
    with open_session(model, optimize=optimize) as session:
        return session.run(feeds)


def test_an_old_opset() -> None:
    model = build(
        "(float[2,3,8,8] x) => (float[2,4,8,8] y) <float[1] w = {0}> "
        "{ c = Conv<pads=[1,1,1,1]>(x, w) y = Clip<min=0.0, max=6.0>(c) }",
        opset=8,
        w=normal(4, 3, 3, 3),
    )
    data = batches(x=(2, 3, 8, 8))
    result, record = quantize(model, data)
    assert record.status == "ok"
    assert ir.opset(result.model) >= 13
    assert quality(model, result, data).sqnr_db >= 30


def test_types_that_are_left_alone() -> None:
    for kind, dtype in (("double", np.float64), ("float16", np.float16)):
        model = build(
            f"({kind}[n,4] x) => ({kind}[n,4] y) <{kind}[1] w = {{0}}> {{ y = MatMul(x, w) }}",
            w=normal(4, 4).astype(dtype),
        )
        data = [{"x": normal(2, 4).astype(dtype)}]
        result, record = quantize(model, data)
        assert record.status == "not-applicable"
        assert "computes none of the nodes" in (record.reason or "")
        assert ir.to_bytes(result.model) == ir.to_bytes(model)


def test_integers_only() -> None:
    model = build("(int64[n] x) => (int64[n] y) { y = Add(x, x) }")
    _, record = quantize(model, [{"x": np.array([1, 2])}])
    assert record.status == "not-applicable"


@pytest.mark.parametrize("taken", [True, False])
def test_subgraphs_are_left_alone_and_what_leads_into_them_runs(taken: bool) -> None:
    model = build(
        "(float[2,4] x, bool p) => (float[?,?] y) <float[1] w = {0}> { "
        "a = MatMul(x, w) b = Transpose(a) c = Add(a, a) "
        "y = If(p) <then_branch = t () => (float[?,?] u) { u = MatMul(b, c) }, "
        "else_branch = e () => (float[?,?] v) { v = Mul(b, b) }> }",
        w=normal(4, 4),
    )
    # The branches give outputs of different shapes; samples of both may be tried.
    both = [{"x": normal(2, 4, seed=i), "p": np.array(i % 2 == 0)} for i in range(4)]
    _, record = quantize(model, both)
    assert record.status == "ok"
    one = [{"x": normal(2, 4, seed=i), "p": np.array(taken)} for i in range(4)]
    result, record = quantize(model, one, f"{QUICK} spelling=qdq")
    assert record.status == "ok"
    assert quality(model, result, one).sqnr_db >= 30
    inner = [n.op_type for n in ir.all_nodes(result.model) if n.graph is not result.model.graph]
    assert sorted(inner) == ["MatMul", "Mul"]


def test_a_loop() -> None:
    model = build(
        "(float[2,4] x) => (float[2,4] y) <float[1] w = {0}, int64 n = {3}, bool t = {1}> { "
        "a = MatMul(x, w) b = Relu(a) y = Loop(n, t, b) <body = l (int64 i, bool c, "
        "float[2,4] s) => (bool k, float[2,4] z) { k = Identity(c) m = Mul(s, a) z = Tanh(m) }> }",
        w=normal(4, 4),
    )
    data = batches(x=(2, 4))
    result, record = quantize(model, data)
    assert record.status == "ok"
    assert quality(model, result, data).sqnr_db >= 25


def test_a_weight_of_two_convolutions() -> None:
    model = build(
        "(float[1,4,8] x) => (float[1,4,8] y) <float[1] w = {0}, float[4] b = {1, 2, 3, 4}> { "
        "a = Conv<pads=[1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1]>(r, w, b) }",
        w=normal(4, 4, 3, scale=0.3),
    )
    data = batches(8, x=(1, 4, 8))
    for options in (QUICK, f"{QUICK} rounding=nearest"):
        result, _ = quantize(model, data, options)
        assert quality(model, result, data).sqnr_db >= 28


@pytest.mark.parametrize("bias", [0.5, 1e4])
@pytest.mark.parametrize("options", [QUICK, f"{QUICK} rounding=nearest"])
def test_biases_of_channels_without_weights_survive(options: str, bias: float) -> None:
    w = normal(4, 3, 3, 3, scale=0.2)
    w[1] = 0
    model = build(
        "(float[1,3,8,8] x) => (float[1,4,8,8] y) <float[1] w = {0}, float[1] b = {0}> "
        "{ y = Conv<pads=[1,1,1,1]>(x, w, b) }",
        w=w,
        b=np.array([0.1, bias, -0.2, 0.3], np.float32),
    )
    data = batches(x=(1, 3, 8, 8))
    result, record = quantize(model, data, options)
    assert record.status == "ok"
    found = run(result.model, data[0])["y"]
    # A step of the output is about its range by 255.
    step = (run(model, data[0])["y"].max() + 3) / 255
    np.testing.assert_allclose(found[0, 1], bias, atol=1.5 * step)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_any_rank(rank: int) -> None:
    spatial, dims = (6,) * rank, ",".join(["6"] * rank)
    pads = ",".join(["1"] * 2 * rank)
    model = build(
        f"(float[1,3,{dims}] x) => (float[1,4,{dims}] y) <float[1] w = {{0}}> "
        f"{{ c = Conv<pads=[{pads}]>(x, w) y = Relu(c) }}",
        w=normal(4, 3, *(3,) * rank, scale=0.3),
    )
    data = batches(x=(1, 3, *spatial))
    result, record = quantize(model, data)
    assert record.status == "ok"
    assert quality(model, result, data).sqnr_db >= 30


def test_transposed_convolutions_stay_where_there_is_no_kernel() -> None:
    model = build(
        "(float[1,3,4,4] x) => (float[1,2,6,6] y) <float[1] w = {0}, float[1] v = {0}> "
        "{ a = Conv(x, v) y = ConvTranspose(a, w) }",
        w=normal(3, 2, 3, 3),
        v=normal(3, 3, 1, 1),
    )
    data = batches(x=(1, 3, 4, 4))
    result, record = quantize(model, data)
    assert ops(result.model)["ConvTranspose"] == 1
    reasons = {row["op"]: row.get("reason") for row in record.details["nodes"]}
    assert reasons["ConvTranspose"] == "u8s8 has no static integer kernel for ConvTranspose"
    assert reasons["Conv"] is None
    elsewhere, _ = quantize(model, data, f"{QUICK} spelling=qdq", target="qnn")
    node = next(n for n in elsewhere.model.graph if n.op_type == "ConvTranspose")
    assert node.inputs[1].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    assert quality(model, elsewhere, data).sqnr_db >= 25


def test_a_dynamic_batch_and_length() -> None:
    model = build(
        "(float[batch,len,8] x) => (float[batch,len,8] y) <float[1] w = {0}> "
        "{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }",
        w=normal(8, 8, scale=0.3),
    )
    data = [{"x": normal(1 + i % 2, 3 + i, 8, seed=i)} for i in range(6)]
    result, record = quantize(model, data)
    assert record.status == "ok"
    other = {"x": normal(5, 11, 8, seed=99)}
    assert run(result.model, other)["y"].shape == (5, 11, 8)
    assert quality(model, result, [other]).sqnr_db >= 25


def test_bad_samples_are_named() -> None:
    model = build(
        "(float[n,4] x) => (float[n,4] y) <float[1] w = {0}> { y = MatMul(x, w) }", w=normal(4, 4)
    )
    data = batches(4, x=(2, 4))
    data[2]["x"][1, 3] = np.nan
    for options in (QUICK, "form=dynamic choose=all"):
        with pytest.raises(CalibrationError, match=r"batch 2.*'x'.*nan"):
            quantize(model, data, options)
    with pytest.raises(CalibrationError, match=r"batch 0.*\[n, 4\]|batch 0.*\[\?, 4\]|takes"):
        quantize(model, batches(x=(2, 5)))
    with pytest.raises(CalibrationError, match="no array for input 'x'"):
        quantize(model, batches(z=(2, 4)))
    with pytest.raises(CalibrationError, match="no batches"):
        quantize(model, [])


def test_a_quantized_model_is_left_to_the_repair() -> None:
    model = build(
        "(float[n,4] x) => (float[n,4] y) <float s = {0.1}, uint8 z = {3}> "
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    _, record = quantize(model, batches(x=(2, 4)))
    assert record.status == "not-applicable"
    assert "the pipeline repair" in (record.reason or "")


def test_huge_and_tiny_numbers() -> None:
    for factor in (1e-20, 1e15):
        model = build(
            "(float[n,4] x) => (float[n,4] y) <float[1] w = {0}, float[4] b = {0, 0, 0, 0}> "
            "{ y = Gemm(x, w, b) }",
            w=normal(4, 4),
        )
        data = [{"x": normal(3, 4, seed=i) * np.float32(factor)} for i in range(4)]
        result, record = quantize(model, data)
        assert record.status == "ok"
        assert quality(model, result, data).sqnr_db >= 28


def test_inputs_of_nothing_but_zeros() -> None:
    model = build(
        "(float[n,4] x) => (float[n,4] y) <float[1] w = {0}, float[4] b = {1, 2, 3, 4}> "
        "{ y = Gemm(x, w, b) }",
        w=normal(4, 4),
    )
    data = [{"x": np.zeros((2, 4), np.float32)}]
    result, record = quantize(model, data)
    assert record.status == "ok"
    np.testing.assert_allclose(run(result.model, data[0])["y"][0], [1, 2, 3, 4], atol=0.02)
    assert math.isfinite(quality(model, result, data).sqnr_db)

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, Result, ir, optimize, parse
from graphopt.api import require_goals
from graphopt.errors import GoalNotMet, PipelineSyntaxError
from graphopt.measure import Trial
from graphopt.passes.sparsity import Sparsify
from graphopt.reconstruct import problem
from graphopt.reconstruct.layers import layers
from graphopt.testing import check_pass

Array = np.ndarray[Any, Any]

SHAPES = {"w": (16, 8, 3, 3), "b": (16,), "d": (16, 1, 3, 3), "v": (16, 4), "c": (4,)}


def net(opset: int = 17, scale: float = 1.0) -> ir.Model:
    """Three layers, their weights random; those of the first are multiplied by a scale."""
    rng = np.random.default_rng(0)
    constants = []
    for name, shape in SHAPES.items():
        array = rng.normal(size=shape) * (scale if name == "w" else 1.0)
        numbers = ",".join(map(repr, array.astype(np.float32).reshape(-1).tolist()))
        constants.append(f"float{list(shape)} {name} = {{{numbers}}}".replace(", ", ","))
    return ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    g (float[N,8,6,6] x) => (float[N,4] y) <{", ".join(constants)}> {{
        a = Conv<pads=[1,1,1,1]>(x, w, b)
        r = Relu(a)
        e = Conv<pads=[1,1,1,1],group=16>(r, d)
        p = GlobalAveragePool(e)
        f = Flatten(p)
        m = MatMul(f, v)
        y = Add(m, c)
    }}
    """)


def batches(seed: int = 1, count: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 16, 8, 6, 6))
    # Neighbours are alike, and channels differ in size.
    smooth = base + np.roll(base, 1, -1) + np.roll(base, 1, -2)
    return [
        {"x": (smooth[i] * np.exp(rng.normal(size=(8, 1, 1)))).astype(np.float32)}
        for i in range(count)
    ]


def run(text: str, model: ir.Model | None = None, data: Any = None, target: str = "cpu") -> Result:
    source = net() if model is None else model
    given = batches() if data is None else data
    manager = PassManager(text, data=given, on_mismatch="raise", target=target)
    return manager.run(source)


def matrices(model: ir.Model) -> dict[str, Array]:
    return {layer.name: layer.matrix() for layer in layers(model)}


def ratios(model: ir.Model) -> dict[str, float]:
    return {name: float((m == 0).mean()) for name, m in matrices(model).items()}


PLAIN = "sparsify{code=false min-weights=64 %s}"


@pytest.mark.parametrize("method", ["obs", "magnitude"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_each_layer_gets_the_ratio(method: str, ratio: float) -> None:
    result = run(PLAIN % f"ratio={ratio} ranking=local method={method}")
    assert ratios(result.model)["a"] == ratio
    assert ratios(result.model)["y"] == ratio
    zeros = sum(int((m == 0).sum()) for m in matrices(result.model).values())
    found = result.report.passes[0].details["weights"]
    assert found == {"layers": 3, "weights": 1360, "zeros": zeros}
    # The weights as they were are gone.
    assert all(value.uses() for value in result.model.graph.initializers.values())


def test_all_layers_together_get_the_ratio() -> None:
    result = run(PLAIN % "ratio=0.5")
    found = matrices(result.model)
    zeros, size = (sum(f(m) for m in found.values()) for f in (lambda m: (m == 0).sum(), np.size))
    assert zeros / size == pytest.approx(0.5, abs=0.02)
    each = ratios(result.model)
    assert max(each.values()) - min(each.values()) > 0.05
    fits = {fit["name"]: fit for fit in result.report.passes[0].details["fits"]}
    assert set(fits) == set(found)
    assert all(fit["noise"] > 0 for fit in fits.values())


def noise(text: str) -> float:
    return Trial(net(), batches(seed=2)).noise(run(text, data=batches(count=16)).model)


def test_least_noise_with_everything() -> None:
    everything, local, alone = (
        noise(PLAIN % f"ratio=0.6 {option}") for option in ("", "ranking=local", "method=magnitude")
    )
    assert everything < local < 0.5 * alone


def test_magnitude_keeps_the_largest() -> None:
    before = matrices(net())["a"]
    after = matrices(run(PLAIN % "method=magnitude values=fp32").model)["a"]
    kept = after != 0
    assert np.array_equal(after[kept], before[kept])
    assert np.abs(before[~kept]).max() < np.abs(before[kept]).min()


def test_magnitude_needs_no_data() -> None:
    check = PassManager(PLAIN % "method=magnitude").run(net())
    assert check.report.changed
    refused = PassManager(PLAIN % "").run(net())
    assert not refused.report.changed
    assert "needs calibration data" in (refused.report.passes[0].reason or "")


def test_no_layer_that_can_get_zeros() -> None:
    result = run(PLAIN % "n-m=3:7")
    (record,) = result.report.passes
    assert record.status == "not-applicable"
    assert "its input channels are no groups of 7" in (record.reason or "")
    assert not result.report.changed


@pytest.mark.parametrize("method", ["obs", "magnitude"])
@pytest.mark.parametrize(
    ("budget", "missed"),
    [("min-sqnr=90", "is below 90 dB"), ("max-drop=0", "of the predictions change, more than 0 %")],
)
def test_a_budget_that_is_missed(method: str, budget: str, missed: str) -> None:
    result = run(PLAIN % f"ratio=0.9 method={method} {budget}")
    (record,) = result.report.passes
    assert not result.report.changed
    assert record.status == "not-applicable"
    assert missed in record.details["missed"]
    with pytest.raises(GoalNotMet, match="with these zeros"):
        require_goals(result)


def test_a_budget_is_judged_on_samples_kept_aside() -> None:
    data = [{"x": each["x"][:4]} for each in batches(count=16)]
    result = run(PLAIN % "min-sqnr=5 max-drop=40", data=data)
    found = result.report.passes[0].details["quality"]
    judged = Trial(net(), data[14:]).quality(result.model)  # an eighth of them, the last
    assert found == {**judged.to_json(), "aside": True}
    assert found["sqnr_db"] >= 5
    one = [{"x": batches(count=1)[0]["x"][:1]}]
    few = run(PLAIN % "", data=one)
    assert few.report.passes[0].details["quality"]["aside"] is False
    refused = run(PLAIN % "min-sqnr=1", data=one).report
    assert "need samples that nothing is fitted to" in (refused.passes[0].reason or "")


def test_a_budget_needs_data() -> None:
    refused = PassManager(PLAIN % "method=magnitude min-sqnr=1").run(net())
    assert not refused.report.changed
    assert "needs calibration data" in (refused.report.passes[0].reason or "")


def test_outputs_that_zeros_make_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Trial, "noises", lambda _self, _build, names: [math.inf, 1e-3, 1e-2][: len(names)]
    )
    result = run(PLAIN % "")
    each = ratios(result.model)
    assert each["a"] < min(each["e"], each["y"])
    assert all(fit["noise"] <= 1e30 for fit in result.report.passes[0].details["fits"])


def test_one_batch_tells_nothing_of_others() -> None:
    one = batches(count=1)
    each = ratios(run(PLAIN % "", data=one).model)
    assert each["a"] == each["y"] == 0.5
    refused = run(PLAIN % "ranking=global", data=one)
    assert "needs two batches" in (refused.report.passes[0].reason or "")


@pytest.mark.parametrize("method", ["obs", "magnitude"])
def test_two_of_four_input_channels(method: str) -> None:
    result = run(PLAIN % f"n-m=2:4 method={method}")
    found = matrices(result.model)
    groups = found["a"].reshape(16, 2, 4, 9)  # outputs, groups, channels of a group, kernel
    assert ((groups != 0).sum(axis=2) == 2).all()
    assert ((found["y"].reshape(4, 4, 4) != 0).sum(axis=2) == 2).all()
    # A depthwise convolution has one input channel.
    assert result.report.passes[0].declined == {
        "sparsify: its input channels are no groups of 4": 1
    }
    assert (found["e"] != 0).all()


def test_other_groups() -> None:
    found = matrices(run(PLAIN % "n-m=1:8 ranking=local").model)["a"]
    assert ((found.reshape(16, 8, 9) != 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize("block", [(1, 9), (4, 1), (2, 3)])
def test_blocks(block: tuple[int, int]) -> None:
    r, c = block
    result = run(PLAIN % f"block={r},{c} ranking=local")
    kept = (matrices(result.model)["a"] != 0).reshape(16 // r, r, 72 // c, c)
    whole = kept.all(axis=(1, 3))
    assert (kept.any(axis=(1, 3)) == whole).all()
    assert whole.mean() == 0.5
    assert result.report.passes[0].declined  # the classifier, or the depthwise convolution


@pytest.mark.parametrize("code", [True, False])
@pytest.mark.parametrize("values", ["fp16", "fp32"])
def test_values_are_those_that_are_stored(code: bool, values: str) -> None:
    option = f"values={values} min-weights=64 code={str(code).lower()}"
    result = run(f"sparsify{{{option}}}")
    plain = run(PLAIN % f"values={values}").model
    for matrix in matrices(plain).values():
        half = matrix.astype(np.float16).astype(np.float64)
        assert np.array_equal(half, matrix) is (values == "fp16")
    if not code:
        return
    ops = {n.op_type for n in ir.all_nodes(result.model)}
    assert {"CumSum", "Gather"} <= ops
    # The same numbers come out, and fewer bytes are stored.
    assert Trial(plain, batches()).noise(result.model) == 0


def test_weights_beyond_16_bits() -> None:
    model = net()
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(ir.array(weight) * np.float32(1e6), name="w")  # type: ignore[operator]
    result = run(PLAIN % "ranking=local", model)
    assert (
        result.report.passes[0].declined["store in 16 bits: weights are too large or too small"]
        == 1
    )
    found = matrices(result.model)["a"]
    assert np.isfinite(found).all()
    assert (found == 0).mean() == 0.5


def test_skip_and_min_weights() -> None:
    before = matrices(net())
    result = run("sparsify{code=false min-weights=65 skip=a,nothing}")
    after = matrices(result.model)
    assert np.array_equal(after["a"], before["a"])
    assert ratios(result.model)["e"] > 0
    assert not (after["y"] == 0).any()
    assert any("'nothing'" in remark for remark in result.report.passes[0].remarks)
    assert result.report.passes[0].declined == {
        "sparsify: skip names it": 1,
        "sparsify: it has fewer than 65 weights (min-weights)": 1,
    }


def test_layers_too_large_to_fit_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "_MOST", 50)
    result = run(PLAIN % "")
    declined = result.report.passes[0].declined
    assert sum("take more memory to fit" in reason for reason in declined) == 1
    assert [name for name, ratio in ratios(result.model).items() if ratio] == ["e", "y"]


def test_shared_weights_stay() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,8] x) => (float[N,8] y)
    <float[8,8] w = {%s}> {
        a = MatMul(x, w)
        y = MatMul(a, w)
    }
    """ % ",".join(map(str, range(64)))  # noqa: UP031 - braces
    result = check_pass(Sparsify(min_weights=1, method="magnitude"), text, None)
    assert result.report.passes[0].declined == {"sparsify: its weights are used elsewhere, too": 2}


def test_an_opset_without_codes_is_raised() -> None:
    result = run("sparsify{min-weights=64}", net(opset=9))
    assert ir.opset(result.model) == 11
    assert "CumSum" in {n.op_type for n in ir.all_nodes(result.model)}


def test_a_target_that_does_not_decode() -> None:
    result = run("sparsify{min-weights=64}", target="openvino")
    assert "CumSum" not in {n.op_type for n in ir.all_nodes(result.model)}
    assert ratios(result.model)["a"] > 0
    assert any(r.startswith("weights stay uncoded") for r in result.report.passes[0].remarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0", r"ratio is a fraction of zeros, in \(0, 0.95\], not 0"),
        ("ratio=1", "ratio is a fraction of zeros"),
        ("ratio=0.5 n-m=2:4", "ratio and n-m both say how many zeros there are; give one"),
        ("n-m=4:2", "n-m is how many of how many weights stay, as in 2:4, not 4:2"),
        ("n-m=4:4", "n-m is how many"),
        ("n-m=half", "n-m is how many"),
        ("n-m=2:4 block=1,4", "zeros come in groups or in blocks, not both"),
        ("block=0,4", "no groups of None or blocks of"),
        ("block=4", "wants 2 values"),
        ("method=random", "option 'method' wants one of obs, magnitude, not random"),
        ("ranking=global method=magnitude", "ranking=global needs method=obs and no n-m"),
        ("ranking=global n-m=2:4", "ranking=global needs method=obs and no n-m"),
        ("max-drop=101", r"max-drop is a share in percent, in \[0, 100\], not 101"),
        ("samples=0", "samples has to be 1 or more, not 0"),
        ("threads=0", "threads has to be 1 or more, not 0"),
        ("min-weights=-1", "min-weights is 0 or more, not -1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(PipelineSyntaxError, match=message):
        parse(f"sparsify{{{options}}}")


def test_text_of_patterns() -> None:
    assert str(parse("sparsify{n-m=2:4}")) == "sparsify{n-m=2:4}"
    assert parse('sparsify{n-m="2:4"}') == parse("sparsify{n-m=2:4}")


@pytest.mark.parametrize(
    ("name", "options", "agreement", "size"),
    [
        ("resnet", "ranking=local", 0.98, 0.33),
        # Squeeze-excite reads a row per sample, fewer than columns: 0.89 if zeros are shared out by
        # what they do to samples that layers were fitted to.
        ("mobilenet", "", 0.97, 0.39),
        pytest.param("vgg", "", 0.98, 0.31, marks=pytest.mark.slow),
        pytest.param("transformer", "", 0.98, 0.37, marks=pytest.mark.slow),
    ],
)
def test_trained_networks_keep_their_predictions(
    name: str, options: str, agreement: float, size: float, models_dir: Path, tmp_path: Path
) -> None:
    source = models_dir / f"digits_{name}.onnx"
    text = f"O2,sparsify{{samples=64 {options}}}"
    result = optimize(source, text, data=models_dir / "digits_calib.npz")
    assert not result.report.reverted
    images = np.load(models_dir / "digits_test.npz")["image"]
    quality = Trial(ir.load(source), [{"image": images}]).quality(result.model)
    assert quality.agreement is not None
    assert quality.agreement >= agreement
    ir.save(result.model, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size <= size * source.stat().st_size


def cifar(archive: Path, count: int) -> Array:
    """The first images of an archive, as the networks want them."""
    image = pytest.importorskip("PIL.Image")
    with np.load(archive) as content:
        jpeg, offsets = content["jpeg"], content["offsets"][: count + 1]
    files = [io.BytesIO(jpeg[a:b].tobytes()) for a, b in itertools.pairwise(offsets)]
    pixels = np.stack([np.asarray(image.open(f).convert("RGB")) for f in files]) / 255
    scaled = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.slow
def test_resnet20_in_a_third_of_its_bytes(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models" / "resnet20.onnx"
    images = cifar(shared_data / "cifar10_train.npz", 256)
    batches = [{"input": images[i : i + 32]} for i in range(0, 256, 32)]
    judged = cifar(shared_data / "cifar10_val.npz", 1000)
    trial = Trial(ir.load(source), [{"input": judged}])
    found = {}
    for name, options in {"obs": "", "2:4": "n-m=2:4", "magnitude": "method=magnitude"}.items():
        result = optimize(source, f"O2,sparsify{{{options}}}", data=batches, oracle="off")
        found[name] = trial.quality(result.model).agreement or 0.0
        ir.save(result.model, tmp_path / "small.onnx")
        assert (tmp_path / "small.onnx").stat().st_size < 0.33 * source.stat().st_size
    assert found["obs"] > 0.94
    assert found["2:4"] > 0.88
    assert found["magnitude"] < 0.85

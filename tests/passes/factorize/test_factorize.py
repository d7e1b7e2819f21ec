from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decompose.digits import Digits, outputs, reasons
from pruning.test_noise import images, residual

import graphopt
from graphopt import PassManager, ir
from graphopt.analyses import Cost
from graphopt.errors import CalibrationError
from graphopt.measure import Trial
from graphopt.passes.factorize import Factorize
from graphopt.testing import check_pass

# A matrix of rank 2.
BEFORE = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,6] x) => (float[N,6] y)
<float[6,6] w = {1, 0, 2, 0, 1, -1, 2, 0, 4, 0, 2, -2, 0, 1, 0, 1, -1, 2, 1, 1, 2, 1, 0, 1,
 1, -1, 2, -1, 2, -3, 0, -1, 0, -1, 1, -2}> {
  y = MatMul (x, w)
}"""
AFTER = """
graph(%x: float[N,6]) {
  const %w.1.in: float[6,2]
  const %w.1.out: float[2,6]
  %matmul = MatMul(%x, %w.1.in)
  %y = MatMul(%matmul, %w.1.out)
  return %y
}
"""
DATA = [{"x": np.random.default_rng(i).normal(size=(64, 6)).astype(np.float32)} for i in (0, 1)]

# Kernels that are products of the same column and rows.
SPATIAL = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2,5,5] x) => (float[N,2,5,5] y)
<float[2,2,3,3] w = {1, 0, -1, 2, 0, -2, 1, 0, -1, 0, 0, 0, 1, 0, -1, -1, 0, 1, 2, 1, 1, 4, 2, 2, 2,
 1, 1, 0, 0, 0, 2, 1, 1, -2, -1, -1}, float[2] b = {1, 2}> {
  y = Conv<pads = [1, 1, 1, 1]> (x, w, b)
}"""
IN_TWO = """
graph(%x: float[N,2,5,5]) {
  const %b.2: float[2]
  const %w.1.first: float[1,2,3,1]
  const %w.1.rest: float[2,1,1,3]
  %conv = Conv(%x, %w.1.first) {dilations=[1, 1], group=1, kernel_shape=[3, 1], pads=[1, 0, 1, 0], strides=[1, 1]}
  %y = Conv(%conv, %w.1.rest, %b.2) {dilations=[1, 1], group=1, kernel_shape=[1, 3], pads=[0, 1, 0, 1], strides=[1, 1]}
  return %y
}
"""  # noqa: E501
IMAGES = [
    {"x": np.random.default_rng(i).normal(size=(16, 2, 5, 5)).astype(np.float32)} for i in (0, 1)
]


@pytest.mark.parametrize(
    ("before", "after", "data", "options"),
    [
        (BEFORE, AFTER, DATA, {"macs": 0.7}),
        (SPATIAL, IN_TWO, IMAGES, {"macs": 0.4, "forms": ("spatial",)}),
    ],
)
def test_what_is_of_low_rank_loses_nothing(
    before: str, after: str, data: Any, options: dict[str, Any]
) -> None:
    each = Factorize(min_sqnr=60, **options)
    result = check_pass(each, before, after, data=data, target="portable")
    assert "of the multiply-accumulates are left" in reasons(result)
    x = np.random.default_rng(9).normal(size=data[0]["x"].shape).astype(np.float32)
    found, wanted = outputs(result.model, x), outputs(ir.parse_text(before), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def conv_of_low_rank(form: str) -> ir.Model:
    """A convolution of 8 to 8 channels that reads, computes, or reads and computes but 2."""
    rng = np.random.default_rng(0)
    core = rng.normal(size=(2 if form != "input" else 8, 2 if form != "output" else 8, 3, 3))
    if form != "input":
        core = np.einsum("os,scij->ocij", rng.normal(size=(8, 2)), core)
    if form != "output":
        core = np.einsum("orij,rc->ocij", core, rng.normal(size=(2, 8)))
    text = (
        '<ir_version: 10, opset_import: ["" : 17]>\n'
        "g (float[N,8,5,5] x) => (float[N,8,5,5] y) "
        f"<float[8,8,3,3] w = {{{', '.join(map(str, core.ravel().tolist()))}}}>"
        " { y = Conv<pads = [1, 1, 1, 1]> (x, w) }"
    )
    return ir.parse_text(text)


@pytest.mark.parametrize(
    ("form", "macs", "kernels"),
    [
        ("input", 0.28, [(2, 8, 1, 1), (8, 2, 3, 3)]),
        ("output", 0.28, [(2, 8, 3, 3), (8, 2, 1, 1)]),
        ("tucker", 0.2, [(2, 8, 1, 1), (2, 2, 3, 3), (8, 2, 1, 1)]),
    ],
)
def test_channels_that_are_few(form: str, macs: float, kernels: list[tuple[int, ...]]) -> None:
    model = conv_of_low_rank(form)
    data = [{"x": np.random.default_rng(i).normal(size=(16, 8, 5, 5)).astype(np.float32)}
            for i in range(4)]  # fmt: skip
    each = Factorize(macs=macs, min_sqnr=60)
    result = PassManager(each, data=data, target="portable").run(model)
    assert result.report.changed, reasons(result)
    found = [ir.static_shape(node.inputs[1]) for node in result.model.graph]
    assert found == kernels
    np.testing.assert_allclose(
        outputs(result.model, data[0]["x"]), outputs(model, data[0]["x"]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("each", "data", "reason"),
    [
        (Factorize(), None, "needs calibration data (--data)"),
        (Factorize(dry=True), DATA, "a dry run only lists"),
        (Factorize(skip=("MatMul",)), DATA, "skip names it"),
        (Factorize(forms=("spatial", "tucker")), DATA, "no form of it is smaller"),
        (Factorize(macs=0.1), DATA, "macs cannot be brought to 0.1"),
        (Factorize(macs=0.7, min_sqnr=150), DATA, "is below 150 dB"),
        (Factorize(latency=0.5), DATA, "portable is for other runtimes"),
    ],
)
def test_declines(each: Factorize, data: Any, reason: str) -> None:
    result = check_pass(each, BEFORE, None, data=data, target="portable")
    assert reason in reasons(result)


SMALL = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"""
SHARED = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,3] y)
<float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }"""
GIVEN = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3] x, float[3,3] w) => (float[N,3] y) { y = MatMul (x, w) }"""
BATCHED = """<ir_version: 10, opset_import: ["" : 17]>
g (float[2,4,3] x) => (float[2,4,3] y)
<float[2,3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}> { y = MatMul (x, w) }"""
HALVES = """<ir_version: 10, opset_import: ["" : 17]>
g (float16[N,3] x) => (float16[N,3] y)
<float16[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { y = MatMul (x, w) }"""


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        (SMALL, {"x": (8, 2)}, "no form of it is smaller"),
        (SHARED, {"x": (8, 3)}, "its weights are used elsewhere, too"),
        (GIVEN, {"x": (8, 3), "w": (3, 3)}, "none has constant weights"),
        (BATCHED, {"x": (2, 4, 3)}, "none has constant weights"),
        (HALVES, {"x": (8, 3)}, "none has constant weights of 32-bit floats"),
    ],
)
def test_must_not_match(text: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    dtype = np.float16 if "float16" in text else np.float32
    data = [{name: np.ones(shape, dtype) for name, shape in shapes.items()}]
    result = check_pass(Factorize(), text, None, data=data, target="portable")
    assert reason in reasons(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "latency": 0.5}, "macs and latency are different goals; give one"),
        ({"bytes": 1.5}, r"in \(0, 1\), not 1.5"),
        ({"payoff": -0.1}, "payoff is a share"),
        ({"samples": 0}, "1 or more"),
        ({"max_drop": -1.0}, r"in \[0, 100\]"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Factorize(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factorize{forms=spacial}", "spatial"),
        ("factorize{rank=4}", "rank"),
        ("factorize{macs=0}", r"in \(0, 1\)"),
    ],
)
def test_pipeline_text_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(graphopt.GraphOptError, match=message):
        graphopt.parse(text)


def test_pipeline_text() -> None:
    text = "factorize{macs=0.5 forms=spatial,depthwise},prune-channels{macs=0.7}"
    assert graphopt.parse(str(graphopt.parse(text))) == graphopt.parse(text)


def test_samples_that_do_not_fit() -> None:
    data = [{"x": np.ones((4, 5), np.float32)}]
    with pytest.raises(CalibrationError, match="takes"):
        PassManager(Factorize(), data=data, target="portable").run(ir.parse_text(BEFORE))


# The originals read 0.991, 0.993, 0.987 and 0.987 of the digits.
@pytest.mark.parametrize(
    ("name", "options", "macs", "floor"),
    [
        ("digits_vgg", "macs=0.5", 0.5, 0.981),
        ("digits_resnet", "macs=0.5", 0.5, 0.98),
        ("digits_transformer", "macs=0.5 samples=64", 0.5, 0.965),
        pytest.param("digits_mobilenet", "macs=0.7", 0.7, 0.96, marks=pytest.mark.slow),
        pytest.param("digits_vgg", "macs=0.3", 0.3, 0.97, marks=pytest.mark.slow),
        pytest.param("digits_transformer", "macs=0.45", 0.45, 0.94, marks=pytest.mark.slow),
        pytest.param("digits_resnet", "macs=0.4 whole", 0.4, 0.97, marks=pytest.mark.slow),
    ],
)
def test_reference_models(
    models_dir: Path, name: str, options: str, macs: float, floor: float
) -> None:
    digits = Digits(models_dir, name)
    result = digits.run(f"factorize{{{options}}}")
    assert result.report.changed, result.report.passes[-1].reason
    assert digits.macs(result.model) <= macs
    for optimize in (False, True):
        assert digits.accuracy(result.model, optimize=optimize) >= floor


@pytest.mark.parametrize(
    "text",
    [
        "factorize{macs=0.7},prune-channels{macs=0.8}",
        "prune-channels{macs=0.8},factorize{macs=0.7}",
        "convert-depthwise{macs=0.8},factorize{macs=0.7}",
    ],
)
def test_it_goes_with_others(text: str) -> None:
    model, data = residual(), images(*[8] * 8)
    result = PassManager(text, data=data, target="portable").run(model)
    assert [record.changed for record in result.report.passes] == [True, True], [
        record.reason for record in result.report.passes
    ]
    ir.verify(result.model)
    ir.check(model, result.model)
    assert Cost(result.model).macs <= 0.8 * 0.7 * Cost(model).macs
    assert Trial(model, data).quality(result.model).sqnr_db > 5


@pytest.mark.slow
def test_it_goes_behind_pruning_and_before_quantization(models_dir: Path) -> None:
    digits = Digits(models_dir, "digits_vgg")
    result = digits.run("prune-channels{macs=0.8},factorize{macs=0.6},quantize-int8")
    assert [record.changed for record in result.report.passes] == [True] * 3
    assert digits.accuracy(result.model) >= 0.96

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, ir, parse, targets
from graphopt.manager.runner import Result
from graphopt.passes.quantize.equalize import EqualizeChannels
from graphopt.testing import assert_equivalent, check_pass

Array = np.ndarray[Any, Any]
Check = Callable[..., Result]

# Two channels, of which the second is a sixteenth of the first.
NET = """(float[N,1,H,W] x) => (float[] y)
<float[2,1,1,1] w = {8, 0.5}, float[2] b = {1, 0.125}, float[1,2,1,1] v = {0.25, 4}, float lo = {0},
 float hi = {6}> {
    c = Conv(x, w, b)
    r = Relu(c)
    y = Conv(r, v)
}
"""


def test_two_convolutions(check: Check, constants: Callable[[Result], dict[str, Any]]) -> None:
    result = check(
        EqualizeChannels(),
        NET,
        """
        graph(%x: float[N,1,H,W]) {
          const %b.2: float[2]
          const %v.3: float[1,2,1,1]
          const %w.1: float[2,1,1,1]
          %c = Conv(%x, %w.1, %b.2)
          %r = Relu(%c)
          %y = Conv(%r, %v.3)
          return %y
        }
        """,
    )
    found = constants(result)
    # Relative ranges of 1 and 1/16 on both sides, the other way round: all become alike.
    np.testing.assert_allclose(found["w.1"], np.full((2, 1, 1, 1), 2), rtol=1e-6)
    np.testing.assert_allclose(found["b.2"], [0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found["v.3"], np.full((1, 2, 1, 1), 1), rtol=1e-6)
    (record,) = result.report.passes
    assert record.rewrites == {"divide-channels": 2}
    assert record.remarks == ["weights only: no samples were given"]


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("r = Sigmoid(c)", "Sigmoid reads it"),
        ("r = HardSwish(c)", "HardSwish reads it"),
        ("r = Clip(c, lo, hi)", "Clip has bounds that do not move with it"),
        ("q = Shape(c) r = Reshape(c, q)", "Reshape changes more than the shape of each sample"),
    ],
)
def test_leaves_alone(
    check: Check, declined: Callable[[Result], str], middle: str, reason: str
) -> None:
    result = check(EqualizeChannels(), NET.replace("r = Relu(c)", middle), None)
    assert f"equalize-channels: {reason}" in declined(result)


def test_outputs_stay(check: Check, declined: Callable[[Result], str]) -> None:
    graph = NET.replace("float[] y)", "float[] y, float[] r)")
    found = declined(check(EqualizeChannels(), graph, None))
    assert found == "equalize-channels: it is an output of the model"


def test_channels_that_are_alike_stay(check: Check) -> None:
    alike = NET.replace("{8, 0.5}", "{1, 1}").replace("{0.25, 4}", "{3, 3}")
    check(EqualizeChannels(), alike, None)


def test_an_overflow(check: Check, declined: Callable[[Result], str]) -> None:
    graph = NET.replace("{1, 0.125}", "{1, 3e38}").replace("{8, 0.5}", "{8, 0.005}")
    result = check(EqualizeChannels(), graph, None)
    assert declined(result).endswith("a constant of Conv would not be finite any more")


def images(seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(8, 1, 6, 6)).astype(np.float32)} for _ in range(2)]


def network() -> ir.Model:
    return ir.parse_text(f'<ir_version: 8, opset_import: ["": 17]>\ng {NET}')


@pytest.mark.parametrize("text", ["", "{per-channel=false}", "{samples=8 sweeps=2}"])
def test_with_samples(text: str) -> None:
    model = network()
    each = f"equalize-channels{text}"
    result = PassManager(each, target="cpu-x64", data=images()).run(model)
    assert result.report.changed
    (remark,) = result.report.passes[0].remarks
    assert remark.startswith("noise at the outputs -")
    before, after = (float(part.split(" dB")[0]) for part in remark[21:].split(" -> "))
    assert after < before - 3
    assert_equivalent(model, result.model)


def test_what_samples_need() -> None:
    old = ir.parse_text(
        '<ir_version: 3, opset_import: ["": 9]>\ng ' + NET.replace("N,1,H,W", "2,1,6,6")
    )
    (record,) = PassManager("equalize-channels", data=images()).run(old).report.passes
    assert not record.changed
    assert record.reason == "QuantizeLinear, to try factors with, needs opset 10"
    target = dataclasses.replace(targets.get("cpu-x64"), scheme=None)
    result = PassManager("equalize-channels", target=target, data=images()).run(network())
    assert result.report.passes[0].reason == f"target {target.name} has no integer scheme"


def test_options() -> None:
    assert str(parse("equalize-channels{sweeps=2 per-channel=false}")).count("=") == 2
    for name in ("samples", "sweeps"):
        with pytest.raises(ValueError, match=f"{name} has to be 1 or more, not 0"):
            EqualizeChannels(**{name: 0})  # type: ignore[arg-type]


def test_nothing_known(check: Check) -> None:
    check_pass(
        EqualizeChannels(),
        '<ir_version: 8, opset_import: ["": 17]>\ng (float[2] x) => (float[2] y) { y = Relu(x) }',
        None,
    )

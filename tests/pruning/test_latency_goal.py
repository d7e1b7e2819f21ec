"""A goal of latency: what is measured decides, here by a clock that counts weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import from_batches
from graphopt.pruning import Goal, Options, prune, pruner, timing
from graphopt.targets import get


def _model() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "v": rng.normal(size=(32, 3, 3, 3)) / 5,
        "w": rng.normal(size=(32, 32, 3, 3)) / 17,
        "u": rng.normal(size=(4, 32, 3, 3)) / 17,
    }
    constants = ", ".join(
        f"float[{','.join(map(str, w.shape))}] {name} = "
        f"{{{', '.join(f'{x:.6f}' for x in w.ravel())}}}"
        for name, w in weights.items()
    )
    model = ir.parse_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 4, 2, 2] y) <{constants}> {{
          a = Conv(x, v)
          b = Relu(a)
          c = Conv(b, w)
          d = Relu(c)
          y = Conv(d, u)
        }}"""
    )
    ir.infer_shapes(model)
    return model


def _weights(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value)


def _counted(
    original: ir.Model, models: Sequence[ir.Model], inputs: Sequence[Any], **_: Any
) -> list[list[float]]:
    return [[_weights(m) / _weights(original)] * len(inputs) for m in models]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pruner, timing):
        monkeypatch.setattr(module, "race", _counted)
        monkeypatch.setattr(module, "runs_here", lambda target: None, raising=False)


@pytest.mark.parametrize("asked", [0.8, 0.5])
def test_what_is_measured_is_what_was_asked_for(asked: float) -> None:
    model = _model()
    rng = np.random.default_rng(1)
    batches = [{"x": rng.normal(size=(16, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    found = prune(model, get("cpu"), from_batches(batches, model), Options(Goal("latency", asked)))
    assert found.model is not None, found.reason
    share = _weights(found.model) / _weights(model)
    assert asked * 0.85 < share <= asked * 1.05
    assert "of the latency is left" in found.reason

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import Pass, PassManager, ir
from graphopt.testing import assert_equivalent

Build = Callable[..., ir.Model]


@pytest.fixture
def build() -> Build:
    """Make a model of ONNX text and weights: arrays, or shapes of positive random float32."""

    def make(graph: str, *, opset: int = 17, ir_version: int = 8, **weights: Any) -> ir.Model:
        head = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
        proto = onnx.parser.parse_model(f"{head} {graph}")
        rng = np.random.default_rng(0)
        for name, given in weights.items():
            data = given
            if isinstance(given, tuple):
                data = rng.uniform(0.5, 1.5, given).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), name))
        return ir.load(proto)

    return make


@pytest.fixture
def declined() -> Callable[[Any], str]:
    """The reasons that the one pass of a run gave for what it did not do."""

    def reasons(result: Any) -> str:
        (record,) = result.report.passes
        return "; ".join(record.declined)

    return reasons


@pytest.fixture
def rewrite() -> Callable[..., ir.Model]:
    """Run a pass that has to change a model, compare the numbers, and run it again."""

    def run(each: Pass, model: ir.Model, *, numbers: bool = True) -> ir.Model:
        manager = PassManager(each, on_mismatch="raise", objective=None)
        result = manager.run(model)
        assert result.report.changed
        ir.check(model, result.model)
        if numbers:
            assert_equivalent(model, result.model, each.exactness)
        assert not manager.run(result.model).report.changed
        return result.model

    return run

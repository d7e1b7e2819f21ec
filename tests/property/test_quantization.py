"""Random models through post-training quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import PassManager, ir
from graphopt.measure import Trial
from graphopt.runtime import open_session
from graphopt.testing import random_model

OPTIONS = (
    "", " equalize=false", " rounding=nearest equalize=false", " spelling=qdq", " form=static",
    " per-channel=false",
)  # fmt: skip
TARGETS = ("cpu-x64", "cpu-arm64", "portable", "tensorrt")
# Eight bits through two dozen operators, some of which (Softplus of large numbers, products of
# products) have ranges that few of the elements need.
FLOOR = 8.0


def feeds_of(model: ir.Model, seed: int) -> dict[str, Any]:
    """Normal numbers; dimensions of one name have one size."""
    rng = np.random.default_rng(seed)
    sizes: dict[object, int] = {}
    found: dict[str, Any] = {}
    for value in ir.inputs(model):
        shape = [
            d if isinstance(d, int) else sizes.setdefault(d, int(rng.integers(2, 8)))
            for d in ir.dims(value) or ()
        ]
        kind = ir.DataType.FLOAT if value.dtype is None else value.dtype
        if kind == ir.DataType.BOOL:
            found[value.name or ""] = rng.integers(0, 2, shape).astype(bool)
        else:
            found[value.name or ""] = rng.normal(size=shape).astype(kind.numpy())
    return found


def run(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    with open_session(model, optimize=True) as session:
        return session.run(feeds)


def check(seed: int, options: str, target: str) -> str:
    """Quantize a random model; return the status of the pass."""
    model = random_model(seed)
    data = [feeds_of(model, 100 * seed + i) for i in range(3)]
    text = f"quantize-int8{{choose=all calibrate=minmax{options}}}"
    manager = PassManager(
        text, data=data, target=target, objective=None, allow_growth=True, on_mismatch="raise"
    )
    result = manager.run(model)
    (record,) = result.report.passes
    if record.status != "ok":
        assert record.status == "not-applicable"
        assert record.reason
        assert ir.to_bytes(result.model) == ir.to_bytes(model)
        return record.status
    assert ir.interface_difference(model, result.model) is None
    ir.verify(result.model)
    ir.check(model, result.model)
    for feeds in data:
        wants, founds = run(model, feeds), run(result.model, feeds)
        for name, want in wants.items():
            assert founds[name].shape == want.shape
            assert founds[name].dtype == want.dtype
            if np.isfinite(want).all():
                assert np.isfinite(founds[name]).all()
    assert Trial(model, data).quality(result.model).sqnr_db >= FLOOR
    return record.status


# onnx-ir's clones and ONNX Runtime's sessions make each example take a tenth of a second.
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000), options=st.sampled_from(OPTIONS), target=st.sampled_from(TARGETS)
)
def test_random_models(seed: int, options: str, target: str) -> None:
    check(seed, options, target)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000), options=st.sampled_from(OPTIONS), target=st.sampled_from(TARGETS)
)
def test_many_random_models(seed: int, options: str, target: str) -> None:
    check(seed, options, target)


def test_most_of_them_are_quantized() -> None:
    found = [check(seed, " equalize=false", "cpu-x64") for seed in range(5)]
    assert found.count("ok") >= 4


def test_the_same_model_gives_the_same_bytes() -> None:
    for seed in range(2):
        model = random_model(seed)
        data = [feeds_of(model, i) for i in range(3)]
        manager = PassManager(
            "quantize-int8{choose=all}", data=data, target="cpu-x64", objective=None
        )
        assert ir.to_bytes(manager.run(model).model) == ir.to_bytes(manager.run(model).model)

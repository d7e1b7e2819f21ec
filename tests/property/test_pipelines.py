"""Random models through random pipelines, with the oracle after every pass."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import PassManager, bisect, default_registry, ir
from graphopt.testing import assert_equivalent, random_model

# onnxsim starts a process of its own for every model; freeze-inputs changes the interface on
# request.
PASSES = [
    n
    for n in default_registry().names()
    if n not in default_registry().pipelines() and n not in ("onnxsim", "freeze-inputs")
]
pipelines = st.lists(st.sampled_from(PASSES), min_size=1, max_size=6, unique=True).map(",".join)


def check(seed: int, pipeline: str) -> None:
    model = random_model(seed)
    manager = PassManager(pipeline, oracle="each", objective=None, allow_growth=True)
    result = manager.run(model)
    reasons = [f"{r.text}: {r.reason}" for r in result.report.reverted]
    assert not reasons, bisect(model, pipeline)
    assert result.report.oracle["verdict"] in ("equal", "unchanged")
    assert ir.interface_difference(model, result.model) is None
    ir.verify(result.model)
    ir.check(model, result.model)
    assert_equivalent(model, result.model, manager.pipeline.promise, seeds=(7,))
    assert ir.to_bytes(manager.run(model).model) == ir.to_bytes(result.model), "not deterministic"


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), pipeline=pipelines)
def test_random_pipelines_keep_the_numbers(seed: int, pipeline: str) -> None:
    check(seed, pipeline)


@pytest.mark.parametrize("seed", range(20))
def test_the_default_pipeline_keeps_the_numbers(seed: int) -> None:
    check(seed, "O2")


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1_000_000), pipeline=pipelines)
def test_many_random_pipelines_keep_the_numbers(seed: int, pipeline: str) -> None:
    check(seed, pipeline)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000))
def test_a_second_run_changes_nothing(seed: int) -> None:
    manager = PassManager("O2")
    once = manager.run(random_model(seed)).model
    again = manager.run(once)
    assert not again.report.changed, [r.text for r in again.report.passes if r.status == "ok"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000))
def test_neither_nodes_nor_bytes_grow(seed: int) -> None:
    model = random_model(seed)
    report = PassManager("O2").run(model).report
    assert report.after.nodes <= report.before.nodes
    assert report.after.cost <= report.before.cost * (1 + 1e-9)


def test_random_models_cover_what_they_promise() -> None:
    found = {n.op_type for seed in range(40) for n in ir.all_nodes(random_model(seed))}
    assert {"If", "Loop", "BatchNormalization", "Shape", "Gemm", "Pad", "Dropout"} <= found

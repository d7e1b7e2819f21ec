"""Sessions are opened as their target wants them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt import SessionError
from graphopt.runtime import Latency, compare_latency, latency
from graphopt.targets import get


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How sessions that are measured are opened."""
    seen: list[dict[str, Any]] = []
    real = latency.open_session

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(latency, "open_session", spy)
    return seen


def bench(models_dir: Path, target: Any) -> Latency:
    model = models_dir / "digits_vgg.onnx"
    return graphopt.bench(model, model, seconds=0.1, target=target)


def test_measured_with_the_settings_of_the_target(
    models_dir: Path, settings: list[dict[str, Any]]
) -> None:
    bench(models_dir, "cpu-arm64")
    assert len(settings) == 2
    for each in settings:
        assert each["config"] == {"session.qdqisint8allowed": "1"}
        assert each["providers"] == (("CPUExecutionProvider", {}),)
        assert each["optimize"]


def test_targets_that_want_the_graph_as_it_is(
    models_dir: Path, settings: list[dict[str, Any]]
) -> None:
    bench(models_dir, dataclasses.replace(get("cpu"), optimize=False))
    assert [each["optimize"] for each in settings] == [False, False]


def test_settings_reach_the_runtime(models_dir: Path) -> None:
    model = models_dir / "digits_vgg.onnx"
    with pytest.raises(SessionError, match="disabled fallback"):
        compare_latency(model, model, {}, config={"session.disable_cpu_ep_fallback": "1"})

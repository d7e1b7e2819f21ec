"""Interleaved timing: on a fake clock, so that the numbers are exact."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import SessionError
from graphopt.runtime.latency import compare_latency, interleaved


class Clock:
    """Time that passes only when a runner says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.load = 1.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, seconds: float, drift: float = 0.0):
        def run() -> None:
            self.order.append(name)
            self.now += seconds * self.load
            self.load += drift

        return run


def test_medians_ratios_and_order() -> None:
    clock = Clock()
    runners = {
        "a": clock.runner("a", 2.0),
        "b": clock.runner("b", 1.0),
        "c": clock.runner("c", 3.0),
    }
    found = interleaved(runners, repeats=6, warmup=2, min_time=0.0, clock=clock)
    assert list(found.timings) == ["a", "b", "c"]
    assert found["a"].median == 2.0
    assert (found["b"].median, found["b"].ratio, found["b"].iqr) == (1.0, 0.5, 0.0)
    assert found["c"].ratio == 1.5
    assert found["a"].ratio == 1.0
    assert found["b"].rounds == 6
    measured = clock.order[6:]
    assert measured == list("abcbcacab" * 2)


def test_a_machine_that_gets_slower_does_not_change_the_ratio() -> None:
    clock = Clock()
    runners = {
        "a": clock.runner("a", 1.0, drift=0.005),
        "b": clock.runner("b", 0.5, drift=0.005),
    }
    found = interleaved(runners, repeats=100, min_time=0.0, clock=clock)
    assert found["b"].ratio == pytest.approx(0.5, rel=0.01)
    assert found["a"].iqr > 0.4


def test_fast_functions_are_called_often_enough() -> None:
    clock = Clock()
    runners = {"a": clock.runner("a", 0.25), "b": clock.runner("b", 2.0)}
    found = interleaved(runners, repeats=3, warmup=1, min_time=1.0, clock=clock)
    assert (found["a"].calls, found["b"].calls) == (4, 1)
    assert found["a"].median == 0.25
    assert clock.order.count("a") == 1 + 3 * 4


def test_rounds_fill_the_time_given() -> None:
    clock = Clock()
    runners = {"a": clock.runner("a", 0.5), "b": clock.runner("b", 0.5)}
    assert interleaved(runners, min_time=0, seconds=30, clock=clock)["a"].rounds == 30
    assert interleaved(runners, min_time=0, seconds=1, clock=clock)["a"].rounds == 5


def test_misuse_and_failure_leave_things_in_order() -> None:
    with pytest.raises(ValueError, match="at least"):
        interleaved({})
    with pytest.raises(ValueError, match="at least"):
        interleaved({"a": gc.collect}, repeats=0)
    calls = 0

    def failing() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleaved({"a": failing}, min_time=0.0)
    assert gc.isenabled()


def test_two_models() -> None:
    header = '<ir_version: 10, opset_import: ["": 21]> g (float[N,64] x) => (float[N,64] y)'
    short = ir.parse_text(header + " { y = Tanh(x) }")
    chain = " ".join(f"v{i + 1} = Tanh(v{i})" for i in range(30))
    long = ir.parse_text(header + f" {{ v0 = Tanh(x) {chain} y = Tanh(v30) }}")
    feeds = {"x": np.ones((64, 64), np.float32)}
    found = compare_latency(long, short, feeds, repeats=5, min_time=0.0)
    assert list(found.timings) == ["a", "b"]
    assert found["b"].ratio < 0.7
    assert json.loads(json.dumps(found.to_json()))["b"]["calls"] >= 1
    both = compare_latency(long, short, [feeds, feeds], repeats=5, optimize=False, seconds=0.1)
    assert both["a"].median > 0
    with pytest.raises(SessionError):
        compare_latency(long, short, {"z": feeds["x"]}, repeats=1)

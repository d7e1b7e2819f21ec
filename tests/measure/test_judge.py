"""What becomes of a changed model: taken, refused, or a goal that was missed, without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import NotApplicable
from graphopt.measure import Budget, Goal, Judge, Outcome, What, judge
from graphopt.targets import get

Array = np.ndarray[Any, Any]

ROWS = [{"x": np.random.default_rng(i).normal(size=(16, 3)).astype(np.float32)} for i in range(4)]


def model(factor: float = 1.0, op: str = "Mul") -> ir.Model:
    """Something that multiplies by a factor, so that the noise is known."""
    body = "y = Mul (x, f)" if op == "Mul" else f"a = {op} (x) y = Mul (a, f)"
    return ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        f"g (float[n,3] x) => (float[n,3] y) <float f = {{{factor}}}> {{ {body} }}"
    )


class Races:
    """Ratios that were to be measured, in turn; the last one stays."""

    def __init__(self, *ratios: float) -> None:
        self.ratios, self.count = list(ratios), 0

    def __call__(self, _: Any, models: Any, inputs: Sequence[Any], **__: Any) -> list[list[float]]:
        found = self.ratios[min(self.count, len(self.ratios) - 1)]
        self.count += 1
        return [[found] * len(inputs)] * len(models)


def timed(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> Races:
    races = Races(*ratios)
    monkeypatch.setattr(judge, "race", races)
    monkeypatch.setattr(judge, "runs_here", lambda target: None)
    return races


def verdict(
    changed: ir.Model,
    what: What = "macs",
    left: float = 0.5,
    share: float = 0.5,
    *,
    budget: Budget | None = None,
    original: ir.Model | None = None,
    aside: bool = True,
    exhausted: bool = False,
) -> Outcome:
    kept = Judge(
        original or model(), get("portable"), ROWS[:3], ROWS[3:] if aside else [],
        Goal(what, left), budget or Budget(), 1,
    )  # fmt: skip
    details: dict[str, Any] = {}
    found = kept.verdict(changed, share, details, how="cut", exhausted=exhausted)
    assert found.details is details
    return found


def test_what_is_as_small_and_as_good_as_asked_for_is_taken() -> None:
    changed = model(0.99)
    found = verdict(changed)
    assert (found.model, found.missed, found.remarks) == (changed, False, ())
    assert found.reason.startswith("0.500 of the multiply-accumulates are left; SQNR 40.0 dB")
    assert found.details["quality"]["aside"]
    assert found.details["quality"]["samples"] == 16
    assert "speedup" not in found.details


def test_without_samples_aside_those_that_were_fitted_tell() -> None:
    found = verdict(model(0.99), aside=False)
    assert not found.details["quality"]["aside"]
    assert found.details["quality"]["samples"] == 48


@pytest.mark.parametrize(
    ("exhausted", "reason"),
    [
        (False, "params is 0.600 of the original's, more than 0.5"),
        (True, "params cannot be brought to 0.5 of the original's, 0.600 is the least"),
    ],
)
def test_a_goal_that_is_not_met_is_missed(exhausted: bool, reason: str) -> None:
    found = verdict(model(), "params", share=0.6, exhausted=exhausted)
    assert (found.model, found.missed, found.reason) == (None, True, reason)


@pytest.mark.parametrize(
    ("factor", "budget", "missed", "reason"),
    [
        # Without a limit the noise has to be below the signal.
        (
            -1.0,
            None,
            False,
            "cut like this, SQNR -6.0 dB is below 0 dB; min-sqnr sets another limit",
        ),
        (0.5, Budget(sqnr_db=10), True, "cut like this, SQNR 6.0 dB is below 10 dB"),
        (-1.0, Budget(drop=50), True, "of the predictions change, more than 50 %"),
    ],
)
def test_too_much_that_is_lost(
    factor: float, budget: Budget | None, missed: bool, reason: str
) -> None:
    found = verdict(model(factor), budget=budget)
    assert (found.model, found.missed) == (None, missed)
    assert reason in found.reason


def test_a_limit_may_be_below_what_is_asked_for_otherwise() -> None:
    assert verdict(model(-1.0), budget=Budget(sqnr_db=-10)).model is not None


def test_doubts() -> None:
    found = verdict(model(0.5))
    assert found.model is not None
    assert "check them with labels" in found.remarks[0]
    found = verdict(model(0.99), budget=Budget(drop=2))
    assert found.remarks == ("16 samples tell changed predictions in steps of 6.25 %",)
    found = verdict(model(0.99, "Sqrt"), original=model(1.0, "Sqrt"))
    assert "the model itself computes NaN" in found.remarks[0]


def test_what_computes_nan_is_refused() -> None:
    found = verdict(model(1.0, "Log"))
    assert found.model is None
    assert "is below 0 dB" in found.reason


# Time


def test_speed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.5)
    found = verdict(model(0.99))
    assert "are left; 2.00x as fast; SQNR" in found.reason
    assert found.details["speedup"] == [2.0, 2.0]  # one sample, and the batch


@pytest.mark.parametrize("what", ["macs", "latency"])
def test_what_is_slower_is_refused(monkeypatch: pytest.MonkeyPatch, what: What) -> None:
    timed(monkeypatch, 1.25)
    found = verdict(model(0.99), what)
    assert (found.model, found.missed) == (None, False)
    assert found.reason == "the cut model would be slower: 0.80x"


def test_what_takes_the_same_time_is_not_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 1.01)
    assert verdict(model(0.99)).model is not None


def test_a_latency_is_that_which_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    races = timed(monkeypatch, 0.52)
    found = verdict(model(0.99), "latency", share=0.1)
    assert found.model is not None
    assert found.reason.startswith("0.520 of the latency is left; SQNR")
    assert races.count == 1
    races = timed(monkeypatch, 0.6)
    found = verdict(model(0.99), "latency", share=0.1, exhausted=True)
    assert (found.model, found.missed) == (None, True)
    assert found.reason == "latency cannot be brought to 0.5 of the original's, 0.600 is the least"
    assert races.count == 3


def test_one_race_that_was_disturbed_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    races = timed(monkeypatch, 0.9, 0.8, 0.5)
    found = verdict(model(0.99), "latency")
    assert found.details["speedup"] == [1.25, 1.25]
    assert found.model is None
    assert races.count == 3
    races = timed(monkeypatch, 0.9, 0.5)
    verdict(model(0.99), "macs")
    assert races.count == 1, "for a goal in size one tells enough"


# Changes that change nothing


def test_what_should_be_the_same_is_the_same() -> None:
    kept = Judge(model(), get("portable"), ROWS, [], Goal("macs", 0.5), Budget(), 1)
    kept.same(model(), model(1.0001), "writing")
    with pytest.raises(NotApplicable, match=r"writing changed the outputs by 1\.0e-02 of their"):
        kept.same(model(), model(1.1), "writing")
    with pytest.raises(NotApplicable, match="please report this model"):
        kept.same(model(), model(1.0, "Log"), "writing")

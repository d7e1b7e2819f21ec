"""Which of the candidates is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt import ir
from graphopt.measure import Budget, Quality, Trial
from graphopt.quant.measure import (
    _SLACK,
    Candidate,
    best,
    judge,
    raced,
    summary,
)
from graphopt.targets import get

MODEL = ir.parse_text(
    '<ir_version: 8, opset_import: ["": 17]>\ng (float[n,4] x) => (float[n,4] y) { y = Relu(x) }'
)


def candidate(
    name: str,
    ratio: float = math.nan,
    sqnr: float | None = 30.0,
    agreement: float | None = 1.0,
    slowest: float | None = None,
) -> Candidate:
    quality = None if sqnr is None else Quality(sqnr, 0.99, agreement, 100)
    worst = ratio if slowest is None else slowest
    return Candidate(name, MODEL, ratio=ratio, slowest=worst, quality=quality)


def choose(candidates: list[Candidate], budget: Budget | None = None) -> tuple[str | None, str]:
    chosen, reason = best(candidates, budget or Budget())
    return None if chosen is None else chosen.name, reason


def test_nothing_to_choose_from() -> None:
    assert choose([]) == (None, "none of its nodes would be faster on integers")


def test_nothing_is_faster() -> None:
    name, reason = choose([candidate("a", 1.2), candidate("b", 1.02)])
    assert name is None
    assert reason == "its int8 form would not be faster than the original: 0.98x"
    assert choose([candidate("a", 0.99)])[0] is None  # within the noise of measuring
    # Faster on average, but not on every input.
    assert choose([candidate("a", 0.6, slowest=1.1)])[0] is None


def test_without_a_budget_accuracy_decides_between_those_nearly_as_fast() -> None:
    near = 0.5 * (1 + _SLACK) / 2
    found = [candidate("a", 0.50, 20), candidate("b", near, 30), candidate("c", 0.55, 50)]
    name, reason = choose(found)
    assert name == "b"
    assert reason == f"{1 / near:.2f}x as fast as the original"
    assert choose(found[::2])[0] == "a"


def test_with_a_budget_the_fastest_within_it() -> None:
    found = [candidate("a", 0.50, 20), candidate("b", 0.52, 30), candidate("c", 0.60, 50)]
    assert choose(found, Budget(sqnr_db=15))[0] == "a"
    assert choose(found, Budget(sqnr_db=20))[0] == "a"
    assert choose(found, Budget(sqnr_db=20.5))[0] == "b"
    assert choose(found, Budget(sqnr_db=40))[0] == "c"


def test_budgets_that_cannot_be_met() -> None:
    found = [candidate("a", 0.5, 20, 0.9), candidate("b", 0.6, 30, 0.98)]
    name, reason = choose(found, Budget(sqnr_db=99))
    assert name is None
    assert reason == "no int8 form keeps within the budget: SQNR 30.0 dB is below 99 dB"
    name, reason = choose(found, Budget(drop=1.0))
    assert name is None
    assert "2.00 % of the predictions change, more than 1 %" in reason
    assert choose(found, Budget(drop=2.5))[0] == "b"


def test_a_budget_of_predictions_needs_predictions() -> None:
    name, reason = choose([candidate("a", 0.5, agreement=None)], Budget(drop=1.0))
    assert name is None
    assert "no output is [rows, classes]" in reason


def test_candidates_of_one_name() -> None:
    # Two divisions may have equally many nodes.
    found = [candidate("a", 0.5, 10), candidate("a", 0.6, 40)]
    chosen, _ = best(found, Budget(sqnr_db=20))
    assert chosen is found[1]
    chosen, _ = best(found[::-1], Budget(sqnr_db=20))
    assert chosen is found[1]


def test_what_was_not_measured() -> None:
    name, reason = choose([candidate("a"), candidate("b", sqnr=50)])
    assert name == "a"
    assert reason == "its latency was not measured"
    assert choose([candidate("a", sqnr=5)], Budget(sqnr_db=10))[0] is None
    assert choose([candidate("a", sqnr=None)])[0] == "a"
    # Beside measured ones, it does not count.
    assert choose([candidate("a"), candidate("b", 0.5)])[0] == "b"


@pytest.mark.parametrize("sqnr", [-math.inf, math.nan])
def test_broken_outputs_are_in_no_budget(sqnr: float) -> None:
    assert choose([candidate("a", 0.5, sqnr)], Budget(sqnr_db=0.0))[0] is None


def test_as_data() -> None:
    rows = summary([candidate("a", 0.5), candidate("b", sqnr=math.inf), candidate("c", sqnr=None)])
    assert rows[0] == {
        "name": "a", "speedup": 2.0, "sqnr_db": 30.0, "cosine": 0.99, "agreement": 1.0,
        "samples": 100,
    }  # fmt: skip
    assert rows[1]["speedup"] is rows[1]["sqnr_db"] is None
    assert rows[2]["cosine"] is None


def test_judged_and_raced() -> None:
    data = [{"x": np.ones((2, 4), np.float32)}]
    (found,) = judge([Candidate("same", MODEL)], Trial(MODEL, data))
    assert found.quality == Quality(math.inf, 1.0, 1.0, 2)
    (timed,) = raced(MODEL, [found], data, target=get("cpu-x64"), seconds=0.01)
    assert timed.quality == found.quality
    assert 0 < timed.ratio <= timed.slowest < math.inf


def test_without_a_budget_there_is_a_floor() -> None:
    name, reason = choose([candidate("a", 0.5, 3.0), candidate("b", 0.9, 12.0)])
    assert name == "b"
    name, reason = choose([candidate("a", 0.5, 3.0), candidate("b", 0.9, -math.inf)])
    assert name is None
    assert reason == "no int8 form keeps within the budget: SQNR 3.0 dB is below 10 dB"
    assert choose([candidate("a", 0.5, 3.0)], Budget(sqnr_db=2))[0] == "a"
    assert choose([candidate("a", 0.5, 3.0)], Budget(drop=1))[0] == "a"

"""Which samples are fitted on, and which are kept aside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import Samples, from_batches
from graphopt.errors import CalibrationError, NotApplicable
from graphopt.measure import Budget
from graphopt.pruning.batches import check_budget, first, split

MODEL = ir.parse_text(
    '<ir_version: 8, opset_import: ["": 17]>\nm (float[N,2] x) => (float[N,2] y) { y = Relu(x) }'
)


def batches(*sizes: int) -> list[dict[str, Any]]:
    return [{"x": np.full((n, 2), i, np.float32)} for i, n in enumerate(sizes)]


def samples(*sizes: int) -> Samples:
    return from_batches(batches(*sizes), MODEL)


def sizes(found: Any) -> list[int]:
    return [len(feeds["x"]) for feeds in found]


@pytest.mark.parametrize(
    ("given", "count", "fit", "aside"),
    [
        ([8] * 8, 64, [8] * 7, [8]),
        ([8] * 8, 512, [8] * 7, [8]),
        ([8] * 16, 512, [8] * 14, [8] * 2),
        ([8] * 16, 20, [8, 8, 5], [3]),  # an eighth of three batches is a part of one
        ([64], 512, [56], [8]),
        ([1] * 4, 512, [1] * 3, [1]),
        ([1], 512, [1], []),
        ([8, 8, 1], 512, [8, 7], [1, 1]),
        ([8] * 8, 1, [7], [1]),
    ],
)
def test_an_eighth_is_kept_aside(
    given: list[int], count: int, fit: list[int], aside: list[int]
) -> None:
    found = split(samples(*given), count)
    assert (sizes(found[0]), sizes(found[1])) == (fit, aside)


def test_those_kept_aside_are_the_last_in_their_order() -> None:
    fit, aside = split(samples(*[1] * 16), 16)
    assert [feeds["x"][0, 0] for feeds in (*fit, *aside)] == list(range(16))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("float[4,2] x", "float[4,2] y"),  # a model of one size
        ("float[N,2] x, float[M,2] z", "float[N,2] y"),  # axes that have nothing in common
        ("float[N,2] x, float z", "float[N,2] y"),
    ],
)
def test_batches_that_cannot_be_cut(inputs: str, outputs: str) -> None:
    model = ir.parse_text(
        f'<ir_version: 8, opset_import: ["": 17]>\nm ({inputs}) => ({outputs}) {{ y = Relu(x) }}'
    )
    feeds = {"x": np.ones((4, 2), np.float32)}
    if "z" in inputs:
        feeds["z"] = np.ones((4, 2) if "M" in inputs else (), np.float32)
    fit, aside = split(from_batches([feeds], model), 8)
    assert (len(fit), aside) == (1, [])
    check_budget(Budget(), aside)
    with pytest.raises(NotApplicable, match="need samples that nothing is fitted to"):
        check_budget(Budget(drop=1.0), aside)


def test_few_samples_do_not_tell_changed_predictions() -> None:
    _, aside = split(samples(*[8] * 7), 512)
    check_budget(Budget(sqnr_db=10.0), aside)
    with pytest.raises(NotApplicable, match=r"on the 7 samples .* give 64 or more"):
        check_budget(Budget(drop=1.0), aside)
    check_budget(Budget(drop=1.0), split(samples(*[8] * 8), 512)[1])


def test_without_samples_there_are_none() -> None:
    assert split(None, 8) == ([], [])


def test_empty_batches_are_left_out() -> None:
    fit, aside = split(samples(0, 4, 0, 4), 512)
    assert sizes([*fit, *aside]) == [4, 3, 1]


def test_samples_that_are_all_empty_are_none() -> None:
    with pytest.raises(CalibrationError, match="all samples are empty"):
        split(samples(0, 0), 8)


def test_the_first_samples() -> None:
    assert sizes(first(batches(4, 4, 4), 6)) == [4, 4]
    assert sizes(first(batches(4, 4, 4), 100)) == [4, 4, 4]
    assert first([], 4) == []

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from graphopt.reconstruct import obs_sparse
from graphopt.reconstruct.obs_sparse import Zeros, allocate, magnitude, optimal, path, refit

Array = np.ndarray[Any, Any]
PATTERNS = [
    Zeros(0.5), Zeros(0.75), Zeros(0.5, group=4), Zeros(0.75, group=4), Zeros(0.25, group=8),
    Zeros(0.5, block=(1, 4)), Zeros(0.5, block=(4, 1)), Zeros(0.5, block=(2, 2)),
]  # fmt: skip


def problem(
    out: int = 16, columns: int = 48, *, rank: int = 80, seed: int = 0
) -> tuple[Array, Array]:
    """Weights, and the Gram matrix of inputs that are correlated and differ in size."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, columns)) * np.exp(rng.normal(size=columns))
    x = rng.normal(size=(4 * columns, rank)) @ mixing
    return rng.normal(size=(out, columns)), x.T @ x / len(x)


def error(found: Array, weight: Array, gram: Array) -> float:
    d = found - weight
    return float(((d @ gram) * d).sum())


def fits(found: Array, zeros: Zeros) -> None:
    """Zeros are as many as asked for, and where."""
    r, c = zeros.block
    blocks = (found != 0).reshape(found.shape[0] // r, r, -1, c).swapaxes(1, 2).reshape(-1, r * c)
    gone = ~blocks.any(axis=1)
    assert gone.sum() == round(len(blocks) * zeros.ratio)
    assert blocks[~gone].all()
    if zeros.group is not None:
        kept = (found != 0).reshape(-1, zeros.group).sum(axis=1)
        assert (kept == round(zeros.group * (1 - zeros.ratio))).all()


@pytest.mark.parametrize("zeros", PATTERNS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_zeros_asked_for_at_less_error(zeros: Zeros, seed: int) -> None:
    weight, gram = problem(seed=seed)
    plain, found = magnitude(weight, zeros), optimal(weight, gram, zeros)
    fits(plain, zeros)
    fits(found, zeros)
    kept = plain != 0
    assert np.array_equal(plain[kept], weight[kept])
    refitted = refit(weight, gram, kept)
    errors = [error(w, weight, gram) for w in (found, refitted, plain)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("zeros", PATTERNS, ids=str)
def test_what_is_left_is_optimal(zeros: Zeros) -> None:
    weight, gram = problem()
    found = optimal(weight, gram, zeros, damping=1e-6)
    assert np.allclose(found, refit(weight, gram, found != 0, damping=1e-6), atol=1e-6)
    # The derivative of the error is zero along what may change.
    slope = (found - weight) @ (gram + 1e-6 * np.diag(gram).mean() * np.eye(len(gram)))
    assert np.abs(slope[found != 0]).max() < 1e-6 * np.abs(weight @ gram).max()


@pytest.mark.parametrize("zeros", PATTERNS, ids=str)
def test_one_inverse_for_all_rows(zeros: Zeros, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(32, 64, rank=100)
    best = error(optimal(weight, gram, zeros), weight, gram)
    # A budget for refitting, but not for elimination; then for neither.
    found = []
    for work in (32 * 64**3 - 1 if zeros.block[0] == 1 else 8 * 64**3 - 1, 0):
        monkeypatch.setattr(obs_sparse, "_WORK", work)
        found.append(optimal(weight, gram, zeros))
        fits(found[-1], zeros)
    errors = [error(w, weight, gram) for w in found]
    assert best < errors[1] < error(magnitude(weight, zeros), weight, gram)
    assert errors[0] <= errors[1] * (1 + 1e-9)
    assert errors[0] < errors[1] or zeros.block[0] > 1


def test_close_to_the_best_mask_of_all() -> None:
    # Small enough to try every choice of four columns of eight, row by row.
    weight, gram = problem(60, 8, rank=12)
    best = total = 0.0
    for row in weight:
        kept = np.zeros((70, 8), bool)
        for i, columns in enumerate(itertools.combinations(range(8), 4)):
            kept[i, list(columns)] = True
        tried = refit(np.tile(row, (70, 1)), gram, kept, damping=1e-9)
        d = tried - row
        best += float(((d @ gram) * d).sum(axis=1).min())
        one = optimal(row[None], gram, Zeros(0.5), damping=1e-9)
        total += error(one, row[None], gram)
    assert best <= total * (1 + 1e-9)
    assert total < 1.35 * best


def test_rows_compete() -> None:
    weight, gram = problem()
    weight[:8] *= 0.01
    found = optimal(weight, gram, Zeros(0.5))
    assert (found[:8] != 0).sum() < 0.2 * (found[8:] != 0).sum()


@pytest.mark.parametrize("zeros", [Zeros(0.75), Zeros(0.75, block=(2, 1)), Zeros(0.75, group=4)])
@pytest.mark.parametrize("work", [None, 0])
def test_a_path_leads_where_each_ratio_does(
    zeros: Zeros, work: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = problem()
    if work is not None:
        monkeypatch.setattr(obs_sparse, "_WORK", work)
    ratios = (0.0, 0.25, 0.5, 0.75)
    found = path(weight, gram, ratios, zeros)
    assert [float((w == 0).mean()) for w in found] == list(ratios)
    errors = [error(w, weight, gram) for w in found]
    assert errors[0] == pytest.approx(0, abs=1e-9)
    assert errors == sorted(errors)
    alone = error(optimal(weight, gram, zeros), weight, gram)
    assert errors[-1] == pytest.approx(alone, rel=0.2)


def test_zeros_go_where_they_cost_least() -> None:
    ratios = (0.25, 0.5, 0.75, 0.9)
    curve = np.exp(8 * np.array(ratios))
    even = allocate([100, 300], np.stack([curve, 3 * curve]), ratios, 0.5)
    assert even == pytest.approx([0.5, 0.5], abs=0.01)  # the same noise per zero
    shares = allocate([100, 100, 200], np.stack([curve, 30 * curve, 2 * curve]), ratios, 0.5)
    assert shares[1] < shares[0]
    assert shares[0] == pytest.approx(shares[2], abs=0.01)
    assert np.average(shares, weights=[1, 1, 2]) == pytest.approx(0.5, abs=1e-9)

    def noise(picked: list[float]) -> float:
        return float(np.exp(8 * np.array(picked)) @ [1, 30, 2])

    for i, j in itertools.permutations(range(3), 2):
        sizes = [100, 100, 200]
        moved = list(shares)
        moved[i], moved[j] = moved[i] + 2 / sizes[i], moved[j] - 2 / sizes[j]
        assert noise(moved) > noise(shares)


@pytest.mark.parametrize("total", [0.0, 0.1, 0.5, 0.9])
def test_the_total_is_met(total: float) -> None:
    rng = np.random.default_rng(0)
    noises = np.cumsum(rng.random((7, 4)) * 10.0 ** rng.integers(-9, 9, (7, 1)), axis=1)
    noises[3] = 0.0
    sizes = [10, 1000, 30, 500, 7, 80, 2000]
    found = allocate(sizes, noises, (0.25, 0.5, 0.75, 0.9), total)
    assert np.average(found, weights=sizes) == pytest.approx(total, abs=1e-9)
    assert min(found) >= 0
    assert max(found) <= 0.9


def test_zeros_that_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match=r"noises of shape \(2, 1\) for 1 x 1"):
        allocate([10], np.ones((2, 1)), (0.5,), 0.5)
    with pytest.raises(ValueError, match=r"the total is in \[0, 0.5\], not 0.6"):
        allocate([10], np.ones((1, 1)), (0.5,), 0.6)


def test_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem()
    together = error(optimal(weight, gram, Zeros(0.5)), weight, gram)
    monkeypatch.setattr(obs_sparse, "_BYTES", 8 * 48 * 48 * 5)
    found = optimal(weight, gram, Zeros(0.5))
    assert (found == 0).sum() == found.size // 2
    assert error(found, weight, gram) < 1.5 * together


def test_inputs_that_are_always_zero() -> None:
    weight, gram = problem()
    gram[:10] = gram[:, :10] = 0
    found = optimal(weight, gram, Zeros(0.5))
    assert np.isfinite(found).all()
    assert not found[:, :10].any()
    assert np.isfinite(optimal(weight, np.zeros_like(gram), Zeros(0.5))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, r"ratio of zeros is in \[0, 1\), not 1.0"),
        ({"ratio": -0.1}, "ratio of zeros"),
        ({"ratio": float("nan")}, "ratio of zeros"),
        ({"ratio": 0.5, "group": 1}, "no groups of 1"),
        ({"ratio": 0.5, "block": (0, 1)}, "no groups of None or blocks of"),
        ({"ratio": 0.5, "group": 4, "block": (1, 4)}, "in groups or in blocks, not both"),
    ],
)
def test_bad_zeros(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Zeros(**arguments)


@pytest.mark.parametrize(
    "zeros", [Zeros(0.5, group=4), Zeros(0.5, block=(1, 4)), Zeros(0.5, block=(4, 1))]
)
def test_sizes_that_do_not_fit(zeros: Zeros) -> None:
    weight, gram = problem(7, 7)
    with pytest.raises(ValueError, match=r"are no (groups|blocks) of"):
        magnitude(weight, zeros)
    with pytest.raises(ValueError, match=r"are no (groups|blocks) of"):
        optimal(weight, gram, zeros)

"""Comparing forms of a model with the original."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import CalibrationError, SessionError
from graphopt.measure import Quality, Trial

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["": 17]>\ng '


def model(body: str, inputs: str = "float[n,4] x", outputs: str = "float[n,4] y") -> ir.Model:
    constants = "<float half = {0.5}, float zero = {0}, float big = {1e30}, int64[1] one = {1}>"
    return ir.parse_text(f"{HEAD}({inputs}) => ({outputs}) {constants} {{ {body} }}")


def batches(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(5, 4)).astype(np.float32)} for _ in range(count)]


def noisy(amounts: dict[int, float]) -> ir.Model:
    """Identity, but for an error on some of the channels."""
    k = ", ".join(str(amounts.get(i, 0.0)) for i in range(4))
    return ir.parse_text(
        f"{HEAD}(float[n,4] x) => (float[n,4] y) <float[4] k = {{{k}}}> "
        "{ e = Mul(x, k) y = Add(x, e) }"
    )


IDENTITY = "y = Identity(x)"


def test_the_model_itself() -> None:
    trial = Trial(model(IDENTITY), batches())
    assert trial.noise(model(IDENTITY)) == 0
    assert trial.quality(model(IDENTITY)) == Quality(math.inf, 1.0, 1.0, 15)


def test_noise_is_what_it_should_be_and_adds_up() -> None:
    data = batches()
    trial = Trial(model(IDENTITY), data)
    x = np.concatenate([b["x"] for b in data]).astype(np.float64)
    first = trial.noise(noisy({0: 0.1}))
    second = trial.noise(noisy({2: -0.2}))
    assert first == pytest.approx(0.01 * (x[:, 0] ** 2).sum() / (x**2).sum(), rel=1e-5)
    assert trial.noise(noisy({0: 0.1, 2: -0.2})) == pytest.approx(first + second, rel=1e-5)
    assert trial.quality(noisy({0: 0.1})).sqnr_db == pytest.approx(-10 * math.log10(first))


def test_many_variants_come_back_in_order() -> None:
    trial = Trial(model(IDENTITY), batches())
    amounts = [0.1 * i for i in range(12)]
    found = trial.noises(lambda a: noisy({1: a}), amounts)
    assert found == sorted(found)
    assert found == [trial.noise(noisy({1: a})) for a in amounts]
    assert trial.noises(noisy, []) == []


def test_predictions() -> None:
    data = [{"x": np.array([[1, 2, 0, 0], [3, 0, 0, 1]], np.float32)}]
    trial = Trial(model(IDENTITY), data)
    found = trial.quality(noisy({0: 2.0}))  # the first row becomes 3, 2, 0, 0
    assert found.agreement == 0.5
    assert found.samples == 2
    assert "50.00 % same predictions" in str(found)


def test_outputs_that_are_no_classes() -> None:
    three = model("y = Unsqueeze(x, one)", outputs="float[n,1,4] y")
    found = Trial(three, batches()).quality(three)
    assert found == Quality(math.inf, 1.0, None, 15)
    assert "predictions" not in str(found)


def test_the_worst_output_counts() -> None:
    outs = "float[n,4] y, float[n,4] z, int64[2] s"
    two = model("y = Identity(x) z = Identity(x) s = Shape(x)", outputs=outs)
    worse = model("y = Identity(x) z = Mul(x, half) s = Shape(x)", outputs=outs)
    found = Trial(two, batches()).quality(worse)
    assert found.sqnr_db == pytest.approx(10 * math.log10(4))
    assert found.agreement == 1
    assert found.samples == 15  # not counted twice
    assert Trial(two, batches()).noise(worse) == pytest.approx(0.125)  # the mean of 0 and 1/4


def test_no_samples() -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        Trial(model(IDENTITY), [])


def test_no_float_output() -> None:
    ints = model("y = Shape(x)", outputs="int64[2] y")
    with pytest.raises(CalibrationError, match="no float output"):
        Trial(ints, batches())


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(SessionError):
        Trial(model(IDENTITY), [{"x": np.zeros((2, 5), np.float32)}])


@pytest.mark.parametrize("body", ["z = Sub(x, x) y = Div(z, z)", "b = Mul(x, big) y = Mul(b, b)"])
def test_outputs_that_become_nan_or_infinite(body: str) -> None:
    trial = Trial(model(IDENTITY), batches())
    assert trial.noise(model(body)) == math.inf
    found = trial.quality(model(body))
    assert found.sqnr_db == -math.inf
    assert math.isfinite(found.cosine)


def test_outputs_that_are_infinite_in_the_original() -> None:
    # log(max(x, 0)): minus infinity where x is negative, as masked scores are.
    logs = "r = Relu(x) y = Log(r)"
    trial = Trial(model(logs), batches())
    assert trial.noise(model(logs)) == 0
    assert trial.quality(model(logs)).sqnr_db == math.inf
    shifted = trial.quality(model("r = Relu(x) l = Log(r) y = Add(l, half)"))
    assert 0 < shifted.sqnr_db < 40
    assert trial.quality(model("y = Identity(x)")).sqnr_db == -math.inf


def test_outputs_of_zeros() -> None:
    zeros = model("y = Mul(x, zero)")
    trial = Trial(zeros, batches())
    assert trial.quality(zeros) == Quality(math.inf, 1.0, 1.0, 15)
    found = trial.quality(model(IDENTITY))
    assert found.sqnr_db == -math.inf
    assert found.cosine == 0
    assert Trial(model(IDENTITY), batches()).quality(zeros).cosine == 0


def test_outputs_of_another_shape() -> None:
    # How many elements there are depends on the numbers.
    positive = model("p = Relu(x) i = NonZero(p) y = Cast<to=1>(i)", outputs="float[2,m] y")
    all_of_them = model("p = Abs(x) i = NonZero(p) y = Cast<to=1>(i)", outputs="float[2,m] y")
    trial = Trial(positive, batches())
    assert trial.noise(positive) == 0
    assert trial.noise(all_of_them) == math.inf
    found = trial.quality(all_of_them)
    assert found.sqnr_db == -math.inf
    assert found.agreement == 0


def test_empty_and_scalar_outputs() -> None:
    empty = model("z = Mul(x, zero) i = NonZero(z) y = Cast<to=1>(i)", outputs="float[2,m] y")
    assert Trial(empty, batches()).quality(empty) == Quality(math.inf, 1.0, None, 15)
    scalar = model("y = ReduceSum<keepdims=0>(x)", outputs="float y")
    assert Trial(scalar, batches()).quality(scalar) == Quality(math.inf, 1.0, None, 15)

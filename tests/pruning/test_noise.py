"""What the loss of channels adds to the outputs, and in which order they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pruning.networks import lstm, mobilenet_v2
from reconstruct.single import network, normal

from graphopt import PassManager, ir
from graphopt.analyses import Channels
from graphopt.calibration import from_batches
from graphopt.errors import NotApplicable
from graphopt.measure import Trial
from graphopt.pruning import Scores, bypass, find_blocks
from graphopt.pruning.biases import with_biases
from graphopt.pruning.masking import masked
from graphopt.pruning.noise import measure_noise, order_by_score, order_channels
from graphopt.pruning.units import Unit, find_units
from graphopt.reconstruct import layers, observe
from graphopt.rewrite import Rewriter


def residual() -> ir.Model:
    body = """
        s = Conv<pads = [1, 1, 1, 1]>(x, w) t = Relu(s)
        a = Conv<pads = [1, 1, 1, 1]>(t, u) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, v)
        d = Add(t, c) g = GlobalAveragePool(d) f = Flatten(g) y = Gemm(f, z, k)
    """
    return network(
        body, "N,3,6,6", w=normal(6, 3, 3, 3) / 3, u=normal(8, 6, 3, 3, seed=1) / 5,
        v=normal(6, 8, 3, 3, seed=2) / 6, z=normal(6, 4, seed=3), k=normal(4, seed=4),
    )  # fmt: skip


def images(*sizes: int) -> list[dict[str, Any]]:
    return [{"x": normal(n, 3, 6, 6, seed=i)} for i, n in enumerate(sizes)]


class Case:
    """A model with its groups, and what is measured of it."""

    def __init__(self, model: ir.Model, batches: list[dict[str, Any]], **options: Any) -> None:
        self.model = model = with_biases(model)
        self.batches = batches
        self.channels = Channels(model)
        blocks = [b for b in find_blocks(model) if b.reason is None]
        given = {"kind": "channels", "least": 0.1, "multiple": None, "skip": (), **options}
        self.units, _ = find_units(self.channels, list(layers(model)), blocks, **given)
        self.scores = Scores(self.channels, data=from_batches(batches, model))
        self.trial = Trial(model, batches)
        names = {read.layer for unit in self.units for read in unit.reads}
        self.problems = observe(model, batches, names)

    def measured(self, *, fitted: bool) -> list[dict[int, float]]:
        measure_noise(self.channels, self.units, self.problems if fitted else {}, self.trial)
        return [dict(unit.noise) for unit in self.units]

    def masked(self, unit: Unit, left: int) -> float:
        dead = np.zeros(self.channels.count, bool)
        dead[unit.dead(left)] = True
        return self.trial.noise(masked(self.channels, dead))


def test_without_problems_noise_is_that_of_the_mask() -> None:
    case = Case(residual(), images(8, 8))
    order_by_score(case.units, case.scores, "l2")
    case.measured(fitted=False)
    for unit in case.units:
        assert set(unit.noise) == set(unit.levels)
        assert unit.noise[unit.size] == 0.0
        for n in unit.levels[1:]:
            if n:
                assert unit.noise[n] == pytest.approx(case.masked(unit, n), rel=1e-6)


def test_of_a_layer_that_goes_whole_noise_is_that_of_its_shortcut() -> None:
    case = Case(residual(), images(64))
    order_by_score(case.units, case.scores, "l2")
    (unit,) = (u for u in case.units if u.block is not None)
    measure_noise(case.channels, case.units, case.problems, case.trial, recover=False)
    copy = ir.clone(case.model)
    bypass(Rewriter(copy), next(b for b in find_blocks(copy) if b.name == "d"))
    alone = case.trial.noise(copy)
    assert unit.noise[0] == pytest.approx(alone, rel=1e-6)
    measure_noise(case.channels, case.units, case.problems, case.trial)  # those behind make up
    assert unit.noise[0] < 0.9 * alone


@pytest.mark.parametrize("name", ["residual", "mobilenet", "lstm"])
def test_layers_that_make_up_leave_less_noise(name: str) -> None:
    made = {"mobilenet": mobilenet_v2, "lstm": lstm}
    if name == "residual":
        case = Case(residual(), images(32))
    else:
        net = made[name]()
        case = Case(PassManager("O2").run(net.model).model, net.feeds)
    order_channels(case.units, case.problems, case.scores)
    plain, fitted = case.measured(fitted=False), case.measured(fitted=True)
    pairs = [
        (one[n], other[n])
        for unit, one, other in zip(case.units, plain, fitted, strict=True)
        for n in unit.levels[1:]
        if n
    ]
    assert sum(b for _, b in pairs) <= sum(a for a, _ in pairs)
    if name == "residual":  # the readers' own outputs are what is fitted; the outputs follow
        assert np.mean([b <= a * 1.001 for a, b in pairs]) >= 0.9


def test_what_is_not_read_by_layers_alone_is_masked_and_fitted() -> None:
    """A sum without weights reads the channels, too: it has to lose them in what is tried."""
    body = "a = MatMul(x, w) h = Relu(a) p = MatMul(h, v) s = ReduceSum(h, last) y = Add(p, s)"
    text = f"last = Constant<value_ints = [1]>() {body}"
    model = PassManager("O1").run(
        network(text, "N,3", w=normal(3, 8), v=normal(8, 2, seed=1))
    ).model  # fmt: skip
    case = Case(model, [{"x": normal(64, 3)}])
    (unit,) = case.units
    assert unit.others
    order_channels(case.units, case.problems, case.scores)
    case.measured(fitted=True)
    fitted = unit.noise[4]
    case.measured(fitted=False)
    assert unit.noise[4] == pytest.approx(case.masked(unit, 4), rel=1e-5)
    assert fitted < unit.noise[4]
    assert fitted > 0.0


def test_channels_that_others_can_replace_go_first() -> None:
    w = normal(3, 8)
    w[:, 5] = w[:, 2]  # of two equal channels one is not needed
    v = normal(8, 2, seed=1)
    model = network("a = MatMul(x, w) h = Tanh(a) y = MatMul(h, v)", "N,3", w=w, v=v)
    case = Case(model, [{"x": normal(256, 3)}], multiple=1)
    (unit,) = case.units
    order_channels(case.units, case.problems, case.scores)
    assert unit.order[0] in (2, 5)
    assert sorted(unit.order) == list(range(8))
    case.measured(fitted=True)
    assert unit.noise[7] < 1e-4
    assert list(unit.dead(7)) == [unit.group.classes[unit.order[0]]]


def test_a_channel_that_is_never_there_goes_first() -> None:
    u = normal(3, 8)
    u[:, 3] = 0
    model = network("a = MatMul(x, u) h = Relu(a) y = MatMul(h, v)", "N,3", u=u, v=normal(8, 2))
    case = Case(model, [{"x": normal(64, 3)}])
    order_channels(case.units, case.problems, case.scores)
    assert case.units[0].order[0] == 3


def test_inputs_of_zeros_miss_nothing() -> None:
    model = network("a = MatMul(x, u) h = Relu(a) m = MatMul(h, v) y = Sigmoid(m)", "N,3",
                    u=normal(3, 8), v=normal(8, 2))  # fmt: skip
    case = Case(model, [{"x": np.zeros((4, 3), np.float32)}])
    order_channels(case.units, case.problems, case.scores)
    assert sorted(case.units[0].order) == list(range(8))
    assert set(case.measured(fitted=True)[0].values()) == {0.0}


def test_without_problems_norms_tell_the_order() -> None:
    case = Case(residual(), images(4))
    order_channels(case.units, {}, case.scores)
    for unit in case.units:
        expected = np.argsort(case.scores.of(unit.group, "l2"), kind="stable")
        np.testing.assert_array_equal(unit.order, expected)


def test_a_score_that_does_not_apply_is_said() -> None:
    case = Case(residual(), images(4))
    with pytest.raises(NotApplicable, match="no BatchNormalization scales the channels of %s"):
        order_by_score(case.units, case.scores, "bn-scale")


def test_the_model_stays_as_it_was() -> None:
    case = Case(residual(), images(4))
    before = ir.dump(case.model)
    order_channels(case.units, case.problems, case.scores)
    case.measured(fitted=True)
    assert ir.dump(case.model) == before

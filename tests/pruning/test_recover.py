"""Layers that stay make up for what goes, and cutting out changes nothing any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pruning.test_noise import Case, images, residual
from reconstruct.single import network, normal

from graphopt import PassManager, ir, load
from graphopt.calibration import load_data
from graphopt.measure import Trial
from graphopt.pruning.cut import cut
from graphopt.pruning.layers_out import take_out
from graphopt.pruning.noise import order_channels
from graphopt.pruning.recover import dead_of, recovered, used_columns
from graphopt.pruning.timing import shortened
from graphopt.reconstruct import Fit, Problem, layers, rebuild
from graphopt.reconstruct import problem as problems
from graphopt.rewrite import Rewriter


def small(whole: ir.Model, case: Case, left: list[int]) -> ir.Model:
    """What is left once the channels are cut out."""
    copy = ir.clone(whole)
    rw = Rewriter(copy)
    cut(rw, case.channels, dead_of(case.channels, case.units, left))
    take_out(rw, [u.block.name for u, n in zip(case.units, left, strict=True) if not n and u.block])
    ir.infer_shapes(copy)
    return copy


def check(case: Case, left: list[int]) -> tuple[float, float, list[Fit]]:
    """Noise with and without recovery."""
    order_channels(case.units, case.problems, case.scores)
    before = ir.dump(case.model)
    whole, wanted, fits = recovered(case.channels, case.units, left, case.batches)
    assert ir.dump(case.model) == before
    pruned = small(whole, case, left)
    ir.verify(pruned)
    assert Trial(wanted, case.batches).noise(pruned) < 1e-9
    raw = shortened(case.model, case.channels, case.units, left)
    return case.trial.noise(pruned), case.trial.noise(raw), fits


@pytest.mark.parametrize("left", [(4, 8), (6, 4), (3, 2), (6, 0), (4, 0)])
def test_cut_models_compute_what_the_masked_ones_do(left: tuple[int, int]) -> None:
    case = Case(residual(), images(32, 32))
    assert [u.size for u in case.units] == [6, 8]
    fitted, raw, fits = check(case, list(left))
    assert fitted < raw
    assert fits
    assert all(fit.reason is None for fit in fits)


def test_columns_that_are_cut_out_are_zero() -> None:
    case = Case(residual(), images(32))
    order_channels(case.units, case.problems, case.scores)
    left = [4, 4]
    whole, _, fits = recovered(case.channels, case.units, left, case.batches)
    assert [fit.name for fit in fits] == ["a", "c", "y"]
    for layer in layers(whole):
        used = used_columns(layer, case.units, left)
        if not used.all():
            assert not layer.matrix()[~used[:, None, :].repeat(layer.outputs, 1)].any()
    assert not used_columns(next(x for x in layers(whole) if x.name == "c"), case.units, left).all()


def test_a_layer_that_goes_whole_is_made_up_for_behind_it() -> None:
    case = Case(residual(), images(64))
    order_channels(case.units, case.problems, case.scores)
    whole, _, fits = recovered(case.channels, case.units, [6, 0], case.batches)
    assert [fit.name for fit in fits] == ["y"]
    (stand_in,) = (n for n in whole.graph if n.outputs[0].name == "d")
    assert stand_in.op_type == "Identity"


def test_what_no_layer_reads_is_made_up_for_behind_it() -> None:
    """Gates of a recurrent operator read their units; the layer behind it is fitted."""
    body = """
        t = Transpose<perm = [1, 0, 2]>(x) h = LSTM<hidden_size = 8>(t, wl, rl)
        one = Constant<value_ints = [1]>() f = Squeeze(h, one)
        m = ReduceMax<axes = [0], keepdims = 0>(f) q = Relu(m) y = MatMul(q, v)
    """
    model = PassManager("O1").run(
        network(body, "N,5,3", wl=normal(1, 32, 3) / 2, rl=normal(1, 32, 8, seed=1) / 2,
                v=normal(8, 2, seed=2))
    ).model  # fmt: skip
    batches = [{"x": normal(64, 5, 3, seed=s)} for s in range(2)]
    case = Case(model, batches)
    (unit,) = case.units
    fitted, raw, fits = check(case, [4])
    assert unit.others
    assert [fit.name for fit in fits] == ["y"]
    assert fitted < 0.8 * raw


def test_a_layer_that_is_too_large_to_fit_only_loses_its_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(problems, "_MOST", 10)
    case = Case(residual(), images(16))
    _, _, fits = check(case, [4, 4])
    assert {fit.name: fit.reason is None for fit in fits} == {"a": False, "c": False, "y": True}


def test_one_weight_of_two_layers() -> None:
    """Layers that share a weight read other channels and have weights of their own afterwards."""
    body = """
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) e = MatMul(d, v)
        y = MatMul(e, z)
    """
    model = network(body, "N,3", w=normal(3, 8), v=normal(8, 8, seed=1), z=normal(8, 2, seed=2))
    case = Case(model, [{"x": normal(64, 3)}])
    left = [4 if i == 0 else u.size for i, u in enumerate(case.units)]
    fitted, raw, _ = check(case, left)
    assert fitted < raw


def test_nothing_lost_is_nothing_changed() -> None:
    case = Case(residual(), images(8))
    order_channels(case.units, case.problems, case.scores)
    whole, wanted, fits = recovered(
        case.channels, case.units, [u.size for u in case.units], case.batches
    )
    assert fits == []
    assert ir.dump(whole) == ir.dump(wanted) == ir.dump(case.model)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("digits_vgg", marks=pytest.mark.slow),
        pytest.param("digits_resnet", marks=pytest.mark.slow),
        "digits_mobilenet",
        "digits_transformer",
        "digits_lstm",
    ],
)
def test_reference_models(models_dir: Path, name: str) -> None:
    model = PassManager("O2").run(load(models_dir / f"{name}.onnx")).model
    data = list(load_data(models_dir / "digits_calib.npz", model, batch_size=32))
    case = Case(model, data[:2])
    left = [u.levels[len(u.levels) // 3] for u in case.units]
    fitted, raw, _ = check(case, left)
    assert fitted < 0.5 * raw
    aside = Trial(model, data[2:3])
    whole, _, _ = recovered(case.channels, case.units, left, case.batches)
    assert aside.noise(small(whole, case, left)) < raw


def test_fits_go_on_from_one_to_the_next() -> None:
    """The last layer is best on what the changed layers before it give, not on the original's."""
    case = Case(residual(), images(64))
    order_channels(case.units, case.problems, case.scores)
    _, wanted, _ = recovered(case.channels, case.units, [3, 2], case.batches)
    found: list[float] = []
    for model in (wanted, ir.clone(case.model)):

        def change(problem: Problem) -> None:
            (layer,) = (each for each in layers(wanted) if each.name == "y")
            weights = layer.matrix().transpose(0, 2, 1)
            found.append(problem.error(np.concatenate([weights, layer.bias()[:, None]], axis=1)))

        rebuild(case.model, model, case.batches, change, wanted=lambda each: each.name == "y")
    assert found[0] < 1e-5
    assert found[1] > 1e-3

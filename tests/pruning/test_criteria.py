from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pruning.building import Net
from pruning.networks import NETWORKS

from graphopt import CalibrationError, NotApplicable, PassManager, ir, load
from graphopt.analyses import Channels, Group
from graphopt.calibration import Samples, from_batches, load_data
from graphopt.pruning.criteria import CRITERIA, Criterion, Scores, normalized
from graphopt.pruning.criteria_taylor import gated, output_changes
from graphopt.pruning.masking import masked
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]
V = np.array([[3, 0, -4, 0], [0, 1, 0, 0]], np.float32)  # makes four channels of two
W = np.array([[1, -1, 2], [2, 0, 0], [0, 0, 0], [1, 1, 1]], np.float32)  # makes three of four


def linear(between: str = "Identity", v: Array = V, w: Array = W) -> ir.Model:
    net = Net(exact=True)
    x = net.input("x", "n", v.shape[0])
    h = net.add(between, net.add("MatMul", x, net.const(v, "v"), name="hidden"))
    net.add("MatMul", h, net.const(w, "w"), name="y")
    model = net.network(y=("n", w.shape[1])).model
    ir.infer_shapes(model)
    return model


def group(channels: Channels, name: str) -> Group:
    return next(g for g in channels.groups if g.name == name and g.reason is None)


def of(model: ir.Model, criterion: Criterion, name: str = "hidden", **options: Any) -> list[float]:
    channels = Channels(model)
    found = Scores(channels, **options).of(group(channels, name), criterion)
    assert found.dtype == np.float64
    return [float(v) for v in found]


def samples(model: ir.Model, x: Array) -> Samples:
    return from_batches([{"x": x.astype(np.float32)}], model)


def test_norms_count_makers_and_readers() -> None:
    assert of(linear(), "l1") == [3 + 4, 1 + 2, 4 + 0, 0 + 3]
    assert of(linear(), "l1", makers_only=True) == [3, 1, 4, 0]
    assert of(linear(), "l2") == pytest.approx(np.sqrt([9 + 6, 1 + 4, 16 + 0, 0 + 3]))


def test_the_median_is_near_the_others() -> None:
    """Distances of [3,0], [0,1], [-4,0] and [0,0] from each other, summed up."""
    a, b = np.sqrt(10), np.sqrt(17)
    assert of(linear(), "median") == pytest.approx([a + 7 + 3, a + b + 1, 7 + b + 4, 3 + 1 + 4])


def test_activation_weighs_readers_by_what_they_read() -> None:
    model = linear("Relu")
    x = np.array([[1, 1], [-1, 2]])  # hidden: [3, 1, 0, 0] and [0, 2, 4, 0]
    norms = np.sqrt((W**2).sum(axis=1))
    wanted = norms * np.sqrt([9 / 2, 5 / 2, 16 / 2, 0])
    assert of(model, "activation", data=samples(model, x)) == pytest.approx(wanted)


def test_a_sum_without_weights_reads_everything_with_a_weight_of_one() -> None:
    net = Net(exact=True)
    h = net.add("MatMul", net.input("x", "n", 2), net.const(V, "v"), name="hidden")
    net.add("ReduceSum", h, net.const(np.array([1])), name="y", keepdims=0)
    model = net.network(y=("n",)).model
    ir.infer_shapes(model)
    found = of(model, "activation", data=samples(model, np.array([[1, 1], [1, -1]])))
    assert found == pytest.approx([3, 1, 4, 0])


def test_scales_of_batch_normalizations() -> None:
    net = Net(exact=True)
    x = net.conv(net.input("x", "n", 3, 4, 4), 3, 4, bias=False, name="hidden")
    given = [net.const(np.array(v)) for v in ([0.5, -2, 0, 1], [0.0] * 4, [0.0] * 4, [1.0] * 4)]
    x = net.add("BatchNormalization", x, *given)
    net.head(x, 4)
    model = net.network(logits=("n", 4)).model
    ir.infer_shapes(model)
    assert of(model, "bn-scale") == [0.5, 2, 0, 1]
    with pytest.raises(NotApplicable, match=r"no BatchNormalization scales .* %hidden"):
        of(linear(), "bn-scale")


def test_derivatives_of_a_linear_network_are_exact() -> None:
    """The outputs are a sum of what each channel adds, so the change without it is that."""
    model = linear()
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    hidden = x @ V
    parts = np.einsum("nc,co->cno", hidden, W.astype(float))
    wanted = (parts**2).sum(axis=(1, 2)) / ((hidden @ W) ** 2).sum()
    found = of(model, "taylor", data=samples(model, x))
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_with_few_runs_derivatives_are_right_on_average() -> None:
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(3, 24)), rng.normal(size=(24, 5))
    model = linear(v=v.astype(np.float32), w=w.astype(np.float32))
    channels = Channels(model)
    batches = [{"x": rng.normal(size=(8, 3)).astype(np.float32)}]
    classes = group(channels, "hidden").classes
    exact = output_changes(channels, batches, runs=32)[classes]
    rough = np.stack(
        [output_changes(channels, batches, runs=6, seed=s)[classes] for s in range(40)]
    )
    assert not np.allclose(rough[0], exact, rtol=0.2)
    # What would be negative is 0, which leaves some bias upwards.
    assert np.corrcoef(rough.mean(axis=0), exact)[0, 1] > 0.9
    assert rough.mean() == pytest.approx(exact.mean(), rel=0.5)


def test_random_scores_depend_on_the_seed_and_the_group_alone() -> None:
    model = PassManager("O2").run(NETWORKS["resnet_option_a"]().model).model
    first, again = Scores(Channels(model)), Scores(Channels(model))
    one, other = [g for g in first.channels.groups if g.reason is None and len(g.classes) == 8][:2]
    assert (first.of(one, "random") == again.of(one, "random")).all()
    assert (first.of(one, "random") != first.of(other, "random")).any()
    assert (first.of(one, "random") != Scores(first.channels, seed=1).of(one, "random")).any()


def test_scores_of_several_groups_compare_after_normalization() -> None:
    assert normalized(np.array([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert normalized(np.zeros(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_some_need_samples(criterion: Criterion) -> None:
    with pytest.raises(NotApplicable, match=f"{criterion} needs samples"):
        of(linear(), criterion)


def test_derivatives_need_runs_samples_and_finite_outputs() -> None:
    channels = Channels(linear("Exp"))
    with pytest.raises(ValueError, match="2 runs at least"):
        output_changes(channels, [], runs=1)
    with pytest.raises(CalibrationError, match="no samples"):
        output_changes(channels, [])
    with pytest.raises(CalibrationError, match="'y' is not finite"):
        output_changes(channels, [{"x": np.full((1, 2), 100, np.float32)}])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_criterion_scores_every_group(name: str) -> None:
    network = NETWORKS[name]()
    model = network.model if name == "qdq_cnn" else PassManager("O1").run(network.model).model
    ir.infer_shapes(model)
    channels = Channels(model)
    scores = Scores(channels, data=from_batches(network.feeds, model))
    groups = [g for g in channels.groups if g.reason is None]
    assert groups
    for each in groups:
        for criterion in CRITERIA:
            try:
                found = scores.of(each, criterion)
            except NotApplicable as e:
                # Values inside of branches are not seen, and not all channels are normalized.
                assert criterion == "bn-scale" or (name, criterion) == ("if_capture", "activation")
                assert f"%{each.name} " in str(e) or f"%{each.name}" in str(e)  # noqa: PT017
                continue
            assert found.shape == each.classes.shape
            assert (found >= 0).all()
            assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["resnet_option_a", "gru", "vit", "qdq_cnn"])
def test_gates_at_zero_are_a_mask(name: str) -> None:
    network = NETWORKS[name]()
    model = network.model if name == "qdq_cnn" else PassManager("O2").run(network.model).model
    ir.infer_shapes(model)
    channels = Channels(model)
    dead = np.zeros(channels.count, bool)
    for each in channels.groups:
        if each.reason is None:
            dead[each.classes[1::2]] = True
    copy, gates = gated(channels)
    with open_session(copy) as one, open_session(masked(channels, dead)) as other:
        feeds = network.feeds[0]
        found = one.run({**feeds, gates: (~dead).astype(np.float32)})
        for key, value in other.run(feeds).items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5)


def test_informed_criteria_choose_better_than_chance(models_dir: Path) -> None:
    """Without any recovery: the noise at the outputs without 15 % of the channels of a net."""
    model = PassManager("O1").run(load(models_dir / "digits_resnet.onnx")).model
    ir.infer_shapes(model)
    channels = Channels(model)
    data = load_data(models_dir / "digits_calib.npz", model)
    images = {"image": np.load(models_dir / "digits_test.npz")["image"][:128]}
    copy, gates = gated(channels)
    noise: dict[str, float] = {}
    with open_session(copy, optimize=True) as session:

        def outputs(dead: Array) -> Array:
            found = session.run({**images, gates: (~dead).astype(np.float32)})
            return np.asarray(next(iter(found.values())))

        whole = outputs(np.zeros(channels.count, bool))
        for criterion, seed in (("bn-scale", 0), ("taylor", 0), *(("random", s) for s in range(3))):
            scores = Scores(channels, data=data, seed=seed, runs=16)
            dead = np.zeros(channels.count, bool)
            for each in channels.groups:
                if each.reason is None:
                    order = np.argsort(scores.of(each, criterion))  # type: ignore[arg-type]
                    dead[each.classes[order[: len(order) * 15 // 100]]] = True
            error = ((outputs(dead) - whole) ** 2).sum() / (whole**2).sum()
            noise[criterion] = min(noise.get(criterion, np.inf), float(error))
    assert noise["bn-scale"] < noise["random"]
    assert noise["taylor"] < noise["random"]

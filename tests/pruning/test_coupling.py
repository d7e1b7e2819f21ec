"""Pruned architectures compute what the masked originals compute, and are smaller."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.building import Network
from pruning.networks import NETWORKS
from pruning.random_networks import networks

from graphopt import PassManager, ir
from graphopt.analyses import Channels
from graphopt.errors import SessionError
from graphopt.pruning.cut import cut
from graphopt.pruning.masking import masked
from graphopt.rewrite import Rewriter
from graphopt.runtime import Session, open_session, probe_feeds

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

# Prunable groups: first tensor, and how many channels or heads can go one by one.
EXPECTED: dict[str, list[tuple[str, int]]] = {
    # The stream of the first stage goes on in the middle of the wider ones, which add channels of
    # their own on both sides.
    "resnet_option_a": [
        ("stem", 8), ("outer2", 8), ("outer4", 8), ("inner0", 8), ("inner1", 8), ("inner2", 16),
        ("inner3", 16), ("inner4", 24), ("inner5", 24),
    ],
    "resnet_projection": [
        ("stem", 8), ("outer0", 16), ("outer2", 24), *((f"reduce{i}", 8) for i in range(4)),
        *((f"middle{i}", 8) for i in range(4)),
    ],
    # Four groups of four: whole groups. Two groups of eight: one channel of each.
    "resnext": [("stem", 12), ("reduce0", 4), ("reduce1", 8), ("grouped1", 8)],
    "mobilenet_v2": [("stem", 8), ("expand1", 24), ("project1", 12), ("expand2", 24), ("last", 32)],
    "mobilenet_v3": [
        ("stem", 8), ("expand0", 16), ("squeeze0", 8), ("expand1", 24), ("squeeze1", 8),
        ("project1", 12), ("expand2", 24), ("squeeze2", 8), ("last", 24), ("hidden", 20),
    ],
    # The shuffle brings channels of both groups into each group: two of either go together.
    "shufflenet_v1": [("stem", 8), ("reduce0", 4), ("outer1", 8), ("reduce1", 4), ("last", 20)],
    # Every unit couples a half of what goes by to what it makes.
    "shufflenet_v2": [
        ("stem", 8), ("right_in", 8), ("left", 4), ("left", 2), ("left", 2), ("in0", 8), ("in1", 8),
        ("last", 24),
    ],
    "densenet": [
        ("stem", 8), ("growth00", 4), ("growth01", 4), ("growth02", 4), ("transition", 10),
        ("growth10", 4), ("growth11", 4),
        *((f"bottleneck{i}", 8) for i in ("00", "01", "02", "10", "11")),
    ],
    "unet_transpose": [
        ("down0a", 8), ("down0b", 8), ("down1a", 12), ("down1b", 12), ("bottom", 16), ("up0", 12),
        ("merge0", 12), ("up1", 8), ("merge1", 8),
    ],
    "superres": [("stem", 8), ("inner", 12), ("wide", 6)],
    "superres_folded": [("stem", 6), ("deep", 5), ("wide", 7)],
    "conv1d": [("a", 8), ("b", 12), ("gate", 10)],
    "conv3d": [("a", 8), ("b", 12), ("hidden", 16)],
    "qdq_cnn": [("stem", 8), ("inner", 12)],
    "if_capture": [("stem", 12), ("captured", 8), ("inside", 6), ("then_out", 4)],
    "lstm": [("first", 10), ("second", 8)],
    "bilstm": [("layer0", 10), ("layer1", 8)],
    "gru": [("layer0", 10), ("layer1", 8)],
    "bigru": [("first", 10), ("states", 8)],
    "vit": [("qkv0", 5), ("fc0", 24), ("qkv1", 5), ("fc1", 24)],
    "bert": [("q0", 5), ("fc0", 24), ("q1", 5), ("fc1", 24), ("pooled", 16)],
    "gpt_expand": [("q0", 4), ("gate0", 24), ("q1", 4), ("gate1", 24)],
}  # fmt: skip
EXPECTED["unet_resize"] = EXPECTED["unet_transpose"]
EXPECTED["gpt_tile"] = EXPECTED["gpt_expand"]

# A tensor that keeps all its channels, and a word of the reason.
FROZEN = {
    **dict.fromkeys(NETWORKS, ("logits", "output")),
    "unet_transpose": ("map", "output"),
    "unet_resize": ("map", "output"),
    "superres": ("image", "output"),
    "superres_folded": ("image", "output"),
    "bilstm": ("tags", "output"),
    "gru": ("tags", "output"),
    "vit": ("patches", "LayerNormalization"),
    "bert": ("embedded", "LayerNormalization"),
    "gpt_expand": ("embedded", "ReduceMean"),
    "gpt_tile": ("embedded", "ReduceMean"),
}
HEADS = {"qkv0", "qkv1", "q0", "q1"}


def optimized(model: ir.Model) -> ir.Model:
    return PassManager("freeze-inputs,O2").run(model).model


def drawn(channels: Channels, seed: int, share: float = 0.3) -> Array:
    """Classes that go: a random share of each prunable group, at least one, never all."""
    rng = np.random.default_rng(seed)
    dead = np.zeros(channels.count, bool)
    for group in channels.groups:
        if group.reason is None and len(group.classes) > 1:
            count = min(max(1, round(share * len(group.classes))), len(group.classes) - 1)
            dead[rng.choice(group.classes, count, replace=False)] = True
    return dead


def pruned(channels: Channels, dead: Array) -> ir.Model:
    copy = ir.clone(channels.model)
    cut(Rewriter(copy), channels, dead)
    return copy


def outputs(model: ir.Model, feeds: list[Feeds]) -> list[Array]:
    """All outputs; ONNX Runtime's optimizations are off."""
    with open_session(model, optimize=False) as session:
        return [value for each in feeds for value in session.run(each).values()]


def size(model: ir.Model) -> int:
    """Bytes of the parameters, those of nested graphs included."""
    return sum(
        value.const_value.nbytes
        for graph in ir.all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def check(channels: Channels, dead: Array, feeds: list[Feeds], *, exact: bool) -> ir.Model:
    """Prune a model and compare it with its masked original; returns the pruned one."""
    model = channels.model
    before = ir.dump(model)
    result = pruned(channels, dead)
    mask = masked(channels, dead)
    assert ir.dump(model) == before, "the model itself was changed"
    ir.verify(result)
    ir.check(model, result)
    assert ir.interface_difference(model, result) is None
    made = any(dead[maker.factor].any() for maker in channels.makers)  # not all have parameters
    assert size(result) < size(model) if made else size(result) <= size(model)
    wants, gots = outputs(mask, feeds), outputs(result, feeds)
    for want, got in zip(wants, gots, strict=True):
        if exact:
            np.testing.assert_array_equal(got, want)
        else:
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * scale)
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_pruned(name: str) -> None:
    channels = Channels(optimized(NETWORKS[name]().model))
    found = [g for g in channels.groups if g.reason is None]
    assert sorted((g.name, len(g.classes)) for g in found) == sorted(EXPECTED[name])
    for group in found:
        assert channels.free[group.classes].all()
        assert group.kind == ("heads" if group.name in HEADS else "channels"), group.name
    tensor, word = FROZEN[name]
    reasons = [
        channels.why(int(c))
        for value, factors in channels.labels.items()
        if value.name == tensor
        for factor in factors
        for c in np.unique(factor)
    ]
    assert reasons
    assert all(reason is not None and word in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_pruned_equals_masked(name: str, seed: int) -> None:
    network = NETWORKS[name]()
    channels = Channels(optimized(network.model))
    result = check(channels, drawn(channels, seed), network.feeds, exact=network.exact)
    assert size(result) < 0.9 * size(channels.model)
    # The channels that went mattered: or else any cut would pass.
    whole, less = outputs(network.model, network.feeds), outputs(result, network.feeds)
    assert not any(np.allclose(a, b) for a, b in zip(whole, less, strict=True))


@pytest.mark.parametrize("name", ["resnet_option_a", "unet_resize", "gru", "gpt_expand"])
def test_each_group_alone(name: str) -> None:
    network = NETWORKS[name]()
    channels = Channels(optimized(network.model))
    for group in channels.groups:
        if group.reason is None:
            dead = np.zeros(channels.count, bool)
            dead[group.classes[1:]] = True  # only one is left
            check(channels, dead, network.feeds, exact=network.exact)


def test_nothing_to_remove_changes_nothing() -> None:
    model = optimized(NETWORKS["shufflenet_v2"]().model)
    channels = Channels(model)
    result = pruned(channels, np.zeros(channels.count, bool))
    assert ir.dump(result) == ir.dump(model)


def test_removing_twice_is_removing_at_once() -> None:
    network = NETWORKS["densenet"]()
    channels = Channels(optimized(network.model))
    once = pruned(channels, drawn(channels, 0))
    channels = Channels(once)
    twice = check(channels, drawn(channels, 1), network.feeds, exact=True)
    assert size(twice) < size(once)


@pytest.mark.parametrize("name", ["mobilenet_v2", "lstm"])
def test_bad_requests(name: str) -> None:
    channels = Channels(optimized(NETWORKS[name]().model))
    every = np.zeros(channels.count, bool)
    group = next(g for g in channels.groups if g.reason is None)
    every[group.classes] = True
    with pytest.raises(ValueError, match=group.name):
        pruned(channels, every)
    frozen = np.zeros(channels.count, bool)
    frozen[np.flatnonzero(~channels.free)[0]] = True
    with pytest.raises(ValueError, match="cannot be removed"):
        pruned(channels, frozen)


# --- random networks -----------------------------------------------------------------------------


@given(network=networks(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_random_networks(network: Network, seed: int) -> None:
    channels = Channels(optimized(network.model))
    dead = drawn(channels, seed, share=0.4)
    if dead.any():
        check(channels, dead, network.feeds, exact=True)


# --- real exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("digits_vgg", 288), ("digits_resnet", 256), ("digits_mobilenet", 728),
        ("digits_transformer", 396), ("digits_lstm", 48),
    ],
)  # fmt: skip
def test_reference_models(models_dir: Path, name: str, count: int) -> None:
    check_file(models_dir / f"{name}.onnx", count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "left"),
    [
        ("ultraface_rfb_320", 1716, 0.6), ("resnet56", 1072, 0.5), ("mobilenetv2_cifar", 3016, 0.6),
        ("silero_vad", 706, 0.8), ("mnist", 24, 0.7), ("minilm_l6", 9288, 0.9),
    ],
)  # fmt: skip
def test_shared_models(shared_data: Path, name: str, count: int, left: float) -> None:
    check_file(shared_data / "models" / f"{name}.onnx", count, left)


def check_file(file: Path, count: int, left: float = 0.8) -> None:
    """Prune 30 % of so many channels; no more than a share of the bytes is left."""
    model = optimized(ir.load(file))
    channels = Channels(model)
    assert sum(len(g.classes) for g in channels.groups if g.reason is None) == count
    with open_session(model, optimize=False) as session:
        feeds = probe_feeds(model, runs=functools.partial(accepts, session))
    assert feeds
    result = check(channels, drawn(channels, 0), feeds, exact=False)
    assert size(result) < left * size(model)


def accepts(session: Session, feeds: Feeds) -> bool:
    try:
        session.run(feeds)
    except SessionError:
        return False
    return True

"""Which groups may be pruned, down to how many channels, and which columns of layers read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pruning.transformers import bert
from reconstruct.single import Array, network, normal, run

from graphopt import PassManager, ir
from graphopt.analyses import Channels
from graphopt.pruning import find_blocks
from graphopt.pruning.masking import masked
from graphopt.pruning.units import Unit, find_units
from graphopt.reconstruct import layers
from graphopt.rewrite import Rewriter


def found(
    model: ir.Model, *, whole: bool = True, **options: Any
) -> tuple[Channels, list[Unit], dict[str, str]]:
    channels = Channels(model)
    blocks = find_blocks(model) if whole else []
    given = {"kind": "channels", "least": 0.1, "multiple": None, "skip": (), **options}
    return channels, *find_units(channels, list(layers(model)), blocks, **given)


def mlp(hidden: int) -> ir.Model:
    w, v = normal(3, hidden, seed=1), normal(hidden, 2, seed=2)
    return network("a = MatMul(x, w) h = Relu(a) y = MatMul(h, v)", "N,3", w=w, v=v)


OUTPUT = {"y": "'y' is an output of the model"}


@pytest.mark.parametrize(
    ("hidden", "options", "levels"),
    [
        (3, {}, (3, 2, 1)),
        (8, {}, (8, 6, 4, 2)),
        (13, {}, (13, 12, 10, 8, 6, 4, 2)),
        (16, {}, (16, 12, 8, 4)),
        (16, {"least": 0.5}, (16, 12, 8)),
        (20, {"least": 0.0}, (20, 16, 12, 8, 4)),
        (48, {}, tuple(range(48, 4, -4))),
        (64, {}, (64, 56, 48, 40, 32, 24, 16, 8)),
        (70, {"multiple": 1, "least": 0.1}, (70, 64, 56, 48, 40, 32, 24, 16, 8)),
        (10, {"multiple": 8}, (10, 8)),
        (6, {"multiple": 1}, (6, 5, 4, 3, 2, 1)),
    ],
)
def test_levels(hidden: int, options: dict[str, Any], levels: tuple[int, ...]) -> None:
    _, (unit,), reasons = found(mlp(hidden), **options)
    assert (unit.levels, unit.size, reasons) == (levels, hidden, OUTPUT)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_a_share_that_has_to_stay_is_not_rounded_up(share: float) -> None:
    # 0.7 * 10 is 7.000000000000001 in some orders of factors.
    _, (unit,), _ = found(mlp(10), least=share, multiple=1)
    assert unit.levels[-1] == round(10 * share)


@pytest.mark.parametrize("options", [{"multiple": 8}, {"least": 0.99}])
def test_a_group_of_one_level_is_none(options: dict[str, Any]) -> None:
    _, units, reasons = found(mlp(8), **options)
    assert (units, reasons) == (
        [],
        {"a": "it has too few channels for another number (least, round-to)", **OUTPUT},
    )


HEAD = "g = GlobalAveragePool(h) f = Flatten(g) y = Gemm<transB = 1>(f, wl, bl)"
IMAGE = {"w": normal(6, 3, 3, 3, seed=1), "b": normal(6, seed=2), "bl": normal(2, seed=3)}
READERS: dict[str, tuple[str, str, dict[str, Array], int]] = {
    # body, input, constants, number of reads of the first group
    "convolution": (
        f"a = Conv(x, w, b) r = Relu(a) h = Conv(r, v) {HEAD}",
        "N,3,6,6",
        IMAGE | {"v": normal(4, 6, 3, 3, seed=4), "wl": normal(2, 4, seed=5)},
        1,
    ),
    "convolution of few groups": (
        f"a = Conv(x, w, b) r = Relu(a) h = Conv<group = 2>(r, v) {HEAD}",
        "N,3,6,6",
        IMAGE | {"v": normal(4, 3, 3, 3, seed=4), "wl": normal(2, 4, seed=5)},
        2,
    ),
    "whole groups of a convolution": (
        f"a = Conv(x, w, b) r = Relu(a) h = Conv<group = 3>(r, v) {HEAD}",
        "N,3,6,6",
        IMAGE | {"v": normal(3, 2, 1, 1, seed=4), "wl": normal(2, 3, seed=5)},
        1,
    ),
    "two layers": (
        f"a = Conv(x, w, b) r = Relu(a) p = Conv(r, v) q = Conv(r, u) h = Add(p, q) {HEAD}",
        "N,3,6,6",
        IMAGE
        | {"v": normal(4, 6, 1, 1, seed=4), "u": normal(4, 6, 1, 1), "wl": normal(2, 4, seed=5)},
        2,
    ),
    "a product behind Flatten": (
        "a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, wl, bl)",
        "N,3,6,6",
        IMAGE | {"wl": normal(96, 2, seed=5)},
        1,
    ),
    "a product without bias": (
        "a = MatMul(x, w) h = Tanh(a) y = MatMul(h, v)",
        "N,4,3",
        {"w": normal(3, 6, seed=1), "v": normal(6, 2, seed=2)},
        1,
    ),
    "twice in one layer": (
        "a = MatMul(x, w) r = Relu(a) s = Sigmoid(a) h = Concat<axis = -1>(r, s) y = MatMul(h, v)",
        "N,3",
        {"w": normal(3, 6, seed=1), "v": normal(12, 2, seed=2)},
        1,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_columns_that_are_read_are_those_that_a_mask_silences(name: str) -> None:
    body, x, constants, count = READERS[name]
    model = network(body, x, **constants)
    channels, units, _ = found(model)
    unit = units[0]
    assert (len(unit.reads), unit.others) == (count, False)
    unit.order = np.random.default_rng(0).permutation(unit.size)
    dead = np.zeros(channels.count, bool)
    dead[unit.dead(unit.levels[1])] = True
    assert dead.sum() == unit.size - unit.levels[1]
    copy = ir.clone(model)
    rw = Rewriter(copy)
    for layer in layers(copy):
        weights = layer.matrix()
        for read in unit.reads:
            if read.layer == layer.name:
                gone = unit.order[: unit.size - unit.levels[1]]
                weights[read.part][:, read.columns[gone].reshape(-1)] = 0
        layer.write(rw, weights, None)
    data = normal(*(2 if d == "N" else int(d) for d in x.split(",")), seed=9)
    np.testing.assert_allclose(run(copy, data), run(masked(channels, dead), data), 1e-4, 1e-5)
    assert not np.allclose(run(copy, data), run(model, data), 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("body", "name", "reads"),
    [
        # Queries meet keys in a product that has no weights.
        (
            "q = MatMul(x, w) k = MatMul(x, u) t = Transpose<perm = [0, 2, 1]>(k)"
            " s = MatMul(q, t) y = Softmax(s)",
            "q",
            0,
        ),
        # A sum that has no weights beside one that has.
        (
            "a = MatMul(x, w) p = MatMul(a, v) s = ReduceSum(a, last) y = Add(p, s)",
            "a",
            1,
        ),
        # Hidden units are read at the next step, too.
        (
            "t = Transpose<perm = [1, 0, 2]>(x) h = RNN<hidden_size = 6>(t, wr, rr)"
            " f = Squeeze(h, one) y = MatMul(f, v)",
            "h",
            1,
        ),
    ],
)
def test_what_no_layer_can_make_up_for(body: str, name: str, reads: int) -> None:
    constants = {
        "w": normal(3, 6), "u": normal(3, 6, seed=1), "v": normal(6, 2),
        "wr": normal(1, 6, 3), "rr": normal(1, 6, 6),
    }  # fmt: skip
    body = f"""
        last = Constant<value_ints = [2]>() one = Constant<value_ints = [1]>() {body}
    """
    model = PassManager("O1").run(network(body, "N,4,3", **constants)).model
    _, units, _ = found(model)
    (unit,) = (u for u in units if u.group.name == name)
    assert (len(unit.reads), unit.others) == (reads, True)


def test_channels_that_are_read_twice_are_a_group_of_their_own() -> None:
    body = """
        some = Constant<value_ints = [0, 0, 1, 1, 2, 3, 4, 5]>()
        a = MatMul(x, w) r = Gather<axis = 2>(a, some) y = MatMul(r, v)
    """
    model = PassManager("O1").run(network(body, "N,4,3", w=normal(3, 6), v=normal(8, 2))).model
    _, units, _ = found(model)
    assert [(len(unit.group.classes), unit.reads[0].columns.shape) for unit in units] == [
        (2, (2, 2)),
        (4, (4, 1)),
    ]


@pytest.mark.parametrize("skip", ["a", "h", "[a-b]", "rel*"])
def test_channels_of_values_that_are_named_stay(skip: str) -> None:
    model = mlp(8)
    model.graph.node(1).name = "relu"
    _, units, reasons = found(model, skip=[skip])
    assert (units, reasons) == ([], {"a": "it is to be skipped", **OUTPUT})
    assert len(found(model, skip=["z", "nothing"])[1]) == 1


RESIDUAL = (
    "s = MatMul(x, w) a = MatMul(s, u) b = Relu(a) c = MatMul(b, v) r = Add(s, c) y = MatMul(r, z)"
)
SQUARES = {
    "w": normal(3, 6, seed=1),
    "u": normal(6, 8, seed=2),
    "v": normal(8, 6, seed=3),
    "z": normal(6, 2, seed=4),
}


def test_a_layer_beside_a_shortcut_may_go_with_its_only_group() -> None:
    model = network(RESIDUAL, "N,3", **SQUARES)
    _, units, _ = found(model)
    stream, inner = units
    assert (stream.group.name, stream.block, stream.levels[-1]) == ("s", None, 1)
    assert inner.block is not None
    assert (inner.block.name, inner.levels) == ("r", (8, 6, 4, 2, 0))
    assert not len(inner.dead(0)), "its block takes them out"
    assert [u.block for u in found(model, whole=False)[1]] == [None, None]


@pytest.mark.parametrize(
    ("old", "new", "extra"),
    [
        # Two groups inside of one layer: neither decides alone.
        (
            "c = MatMul(b, v)",
            "d = MatMul(b, t) e = Relu(d) c = MatMul(e, v)",
            {"t": normal(8, 8, seed=5)},
        ),
        # What is inside is read outside.
        (
            "y = MatMul(r, z)",
            "q = MatMul(b, t) p = Add(r, q) y = MatMul(p, z)",
            {"t": normal(8, 6)},
        ),
    ],
)
def test_a_layer_that_one_group_does_not_decide_on_stays(
    old: str, new: str, extra: dict[str, Array]
) -> None:
    _, units, _ = found(network(RESIDUAL.replace(old, new), "N,3", **SQUARES, **extra))
    assert len(units) > 1
    assert all(u.block is None and 0 not in u.levels for u in units)


def test_a_layer_with_a_graph_inside_of_a_node_does_not_go_whole() -> None:
    body = """
        s = MatMul(x, w) a = MatMul(s, u) b = Relu(a) c = MatMul(b, v)
        m = ReduceMax<keepdims = 0>(c) zero = Constant<value_float = 0.0>() k = Greater(m, zero)
        d = If(k) <then_branch = yes () => (float p) { p = Constant<value_float = 1.0>() },
                   else_branch = no () => (float q) { q = Constant<value_float = 0.5>() }>
        e = Mul(c, d) r = Add(s, e) y = MatMul(r, z)
    """
    model = network(body, "N,3", **SQUARES)
    (block,) = (b for b in find_blocks(model) if b.name == "r")
    assert block.reason is None
    assert "If" in {node.op_type for node in block.branch}
    _, units, _ = found(model)
    assert [(u.group.name, u.block) for u in units] == [("a", None)]


def test_heads_are_a_kind_of_their_own() -> None:
    model = PassManager("O2").run(bert().model).model
    _, heads, _ = found(model, kind="heads")
    assert heads
    for unit in heads:
        assert unit.group.kind == "heads"
        assert unit.levels[: unit.size] == tuple(range(unit.size, 0, -1)), "each head counts"
        (read,) = unit.reads
        assert len(read.columns) == unit.size
    _, channels, _ = found(model, kind="channels")
    assert channels
    assert all(u.group.kind == "channels" for u in channels)


def test_nothing_to_prune_has_reasons() -> None:
    model = network("a = MatMul(x, w) b = Softmax(a) y = MatMul(b, v)", "N,3",
                    w=normal(3, 4), v=normal(4, 2))  # fmt: skip
    _, units, reasons = found(model)
    assert units == []
    assert "Softmax" in reasons["a"]

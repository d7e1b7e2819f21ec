from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pruning.building import Net
from pruning.networks import NETWORKS

from graphopt import PassManager, ir
from graphopt.analyses import Channels, Cost
from graphopt.pruning.cut import cut
from graphopt.pruning.sizes import Measure, Sizes
from graphopt.rewrite import Rewriter

Array = np.ndarray[Any, Any]


def prepared(name: str) -> ir.Model:
    model = NETWORKS[name]().model
    made = model if name == "qdq_cnn" else PassManager("O2").run(model).model
    ir.infer_shapes(made)
    return made


def chain(width: int) -> ir.Model:
    """Two convolutions with `width` channels between them."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv(net.input("x", "n", 3, 8, 8), 3, width, name="inner"))
    net.head(net.conv(x, width, 5, name="outer"), 5)
    model = net.network(logits=("n", 4)).model
    ir.infer_shapes(model)
    return model


def stored(model: ir.Model, *, integers: bool | None = None) -> tuple[int, int]:
    """Elements and bytes of constants: of all, or of those that are int64 or not."""
    tensors = [
        value.const_value
        for graph in ir.all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
        and integers in (None, value.const_value.dtype == ir.DataType.INT64)
    ]
    return sum(t.size for t in tensors), sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_of_what_is_left_are_those_of_the_cut_model(name: str) -> None:
    model = prepared(name)
    channels = Channels(model)
    sizes = Sizes(model, channels)
    none = np.zeros(channels.count, bool)
    assert (sizes.macs(none), sizes.parameters(none)) == (Cost(model).macs, Cost(model).parameters)

    dead, alive = none.copy(), sizes.full.copy()
    for i, group in enumerate(channels.groups):
        if group.reason is None and len(group.classes) > 1:
            gone = group.classes[:: 2 + i % 2][: len(group.classes) - 1]
            dead[gone] = True
            alive[i] -= len(gone)
    assert dead.any()
    smaller = ir.clone(model)
    cut(Rewriter(smaller), Channels(smaller), dead)
    assert sizes.macs(dead) == pytest.approx(Cost(smaller).macs, rel=1e-12)
    # Constants that several nodes share part where one of them loses something: shapes, mostly.
    elements, nbytes = stored(smaller)
    parted = stored(smaller, integers=True)[0] + (2 if name == "if_capture" else 0)
    assert elements - parted <= sizes.parameters(dead) <= elements
    assert nbytes - 8 * parted <= sizes.bytes(dead) <= nbytes
    if not parted:
        assert (sizes.parameters(dead), sizes.bytes(dead)) == (elements, nbytes)
    measures: tuple[tuple[Measure, float], ...] = (
        ("macs", sizes.macs(dead)),
        ("params", sizes.parameters(dead)),
        ("bytes", sizes.bytes(dead)),
    )
    for what, wanted in measures:
        assert sizes.at(what, alive) == pytest.approx(wanted, rel=1e-9)


def test_a_narrower_network_costs_what_one_built_so_costs() -> None:
    wide, narrow = chain(8), chain(5)
    channels = Channels(wide)
    sizes = Sizes(wide, channels)
    (inner,) = [i for i, g in enumerate(channels.groups) if g.name == "inner"]
    alive = sizes.full.copy()
    alive[inner] = 5
    cost = Cost(narrow)
    assert sizes.at("macs", alive) == cost.macs
    assert sizes.at("params", alive) == cost.parameters
    assert sizes.at("bytes", alive) == stored(narrow)[1]


def test_the_marginal_is_what_one_channel_costs() -> None:
    model = prepared("resnet_option_a")
    channels = Channels(model)
    sizes = Sizes(model, channels)
    alive = sizes.full * 0.75
    for what in ("macs", "params"):
        found = sizes.marginal(what, alive)
        for i, group in enumerate(channels.groups):
            step = np.zeros_like(alive)
            step[i] = 0.5
            slope = sizes.at(what, alive + step) - sizes.at(what, alive - step)
            assert found[i] == pytest.approx(slope, rel=1e-9), group.name
    # Of inner channels it is exact: nothing reads and writes them at once.
    inner = [i for i, g in enumerate(channels.groups) if g.name.startswith("inner")]
    alive = sizes.full.copy()
    for i in inner:
        fewer = alive.copy()
        fewer[i] -= 1
        saved = sizes.at("macs", alive) - sizes.at("macs", fewer)
        assert sizes.marginal("macs", alive)[i] == pytest.approx(saved, rel=1e-12)


def test_the_wrong_number_of_classes_is_refused() -> None:
    model = chain(4)
    channels = Channels(model)
    with pytest.raises(ValueError, match=f"of {channels.count} classes"):
        Sizes(model, channels).macs(np.zeros(3, bool))

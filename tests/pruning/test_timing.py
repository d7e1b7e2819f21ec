"""What groups save of the time, measured in forms of the whole model. No clock takes part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reconstruct.single import network, normal

from graphopt import ir
from graphopt.analyses import Channels, Cost
from graphopt.measure import LatencyTable
from graphopt.pruning import find_blocks, timing
from graphopt.pruning.timing import measure_savings, shortened
from graphopt.pruning.units import Unit, find_units
from graphopt.reconstruct import layers
from graphopt.runtime import open_session
from graphopt.targets import get

FEEDS = {"x": np.ones((4, 3), np.float32)}


class Race:
    """Forms take the time that their multiply-accumulates take."""

    def __init__(self) -> None:
        self.forms: list[ir.Model] = []
        self.calls: list[int] = []

    def __call__(
        self, original: ir.Model, models: Sequence[ir.Model], inputs: Sequence[Any], **_: Any
    ) -> list[list[float]]:
        self.forms += models
        self.calls.append(len(models))
        return [[Cost(m).macs / Cost(original).macs] * len(inputs) for m in models]


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Race:
    found = Race()
    monkeypatch.setattr(timing, "race", found)
    return found


def residual(layers_of: int = 2, width: int = 8) -> ir.Model:
    """Layers of one shape beside a stream."""
    body = "s0 = MatMul(x, w) "
    constants = {"w": normal(3, 4), "z": normal(4, 2)}
    for i in range(layers_of):
        body += f"a{i} = MatMul(s{i}, u{i}) b{i} = Relu(a{i}) c{i} = MatMul(b{i}, v{i}) "
        body += f"s{i + 1} = Add(s{i}, c{i}) "
        constants |= {f"u{i}": normal(4, width, seed=i), f"v{i}": normal(width, 4, seed=i)}
    return network(f"{body} y = MatMul(s{layers_of}, z)", "N,3", **constants)


def units(model: ir.Model) -> tuple[Channels, list[Unit]]:
    channels = Channels(model)
    blocks = [b for b in find_blocks(model) if b.reason is None]
    found, _ = find_units(
        channels, list(layers(model)), blocks, kind="channels", least=0.1, multiple=None, skip=()
    )
    for unit in found:
        unit.order = np.arange(unit.size)
    return channels, found


def save(channels: Channels, found: list[Unit], table: LatencyTable | None = None) -> LatencyTable:
    table = table or LatencyTable(None, "")
    measure_savings(channels, found, FEEDS, target=get("cpu"), threads=1, table=table)
    return table


def test_each_level_saves_its_part(race: Race) -> None:
    model = residual(1)
    channels, found = units(model)
    save(channels, found)
    inner = next(u for u in found if u.group.name == "a0")
    macs = 3 * 4 + 2 * 4 * 8 + 4 * 2
    assert inner.levels == (8, 6, 4, 2, 0)
    for n in inner.levels:
        assert inner.saved[n] == pytest.approx(2 * 4 * (8 - n) / macs)
    assert all(u.saved[u.size] == 0.0 for u in found)
    assert all(set(u.saved) == set(u.levels) for u in found)


def test_operators_of_equal_shapes_are_measured_once_all_together(race: Race) -> None:
    model = residual(3)
    channels, found = units(model)
    save(channels, found)
    inner = [u for u in found if u.group.name != "s0"]
    assert len(inner) == 3
    assert inner[0].saved == inner[1].saved == inner[2].saved
    stream = next(u for u in found if u.group.name == "s0")
    assert sum(race.calls) == len(inner[0].levels) - 1 + len(stream.levels) - 1
    macs = Cost(model).macs
    assert inner[0].saved[4] == pytest.approx(2 * 4 * 4 / macs)
    assert inner[0].saved[0] == pytest.approx(2 * 4 * 8 / macs)


def test_operators_of_other_shapes_are_measured_by_themselves(race: Race) -> None:
    constants = {"w": normal(3, 8), "v": normal(8, 6), "z": normal(6, 2)}
    model = network("a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, z)",
                    "N,3", **constants)  # fmt: skip
    channels, found = units(model)
    save(channels, found)
    first, second = found
    assert first.saved[4] == pytest.approx(4 * (3 + 6) / Cost(model).macs)
    assert second.saved[3] == pytest.approx(3 * (8 + 2) / Cost(model).macs)


def test_what_is_slower_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "race", lambda _, models, *a, **k: [[1.5]] * len(models))
    channels, found = units(residual(1))
    save(channels, found)
    assert {s for u in found for s in u.saved.values()} == {0.0}


def test_known_times_are_not_measured_again(race: Race, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    channels, found = units(residual())
    save(channels, found, LatencyTable(path, "here")).save()
    before = [u.saved for u in found]
    assert race.calls
    race.calls.clear()
    channels, found = units(residual())
    save(channels, found, LatencyTable(path, "here"))
    assert race.calls == []
    assert [u.saved for u in found] == before
    channels, found = units(residual(width=16))
    save(channels, found, LatencyTable(path, "here"))
    assert race.calls, "another model has times of its own"
    race.calls.clear()
    channels, found = units(residual())
    save(channels, found, LatencyTable(path, "there"))
    assert race.calls, "another machine has times of its own"


def test_times_hold_for_one_size_of_inputs(race: Race) -> None:
    channels, found = units(residual())
    table = save(channels, found)
    known = len(table.entries)
    measure_savings(
        channels, found, {"x": np.ones((2, 3), np.float32)}, target=get("cpu"), threads=1,
        table=table,
    )  # fmt: skip
    assert len(table.entries) == 2 * known == sum(race.calls)


@pytest.mark.parametrize("left", [(4, 8, 8), (2, 8, 0), (1, 2, 6), (2, 0, 0)])
def test_shortened_models_run_and_are_as_small_as_is_said(left: tuple[int, ...]) -> None:
    model = residual()
    channels, found = units(model)
    assert [u.size for u in found] == [4, 8, 8]
    before = ir.dump(model)
    form = shortened(model, channels, found, left)
    stream, one, other = left
    assert Cost(form).macs == 3 * stream + 2 * stream * (one + other) + 2 * stream
    ir.verify(form)
    ir.check(model, form)
    with open_session(form) as session:
        assert session.run(FEEDS)["y"].shape == (4, 2)
    assert ir.dump(model) == before

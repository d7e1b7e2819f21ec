"""What forms save of the time. No clock takes part: models take the time that their work takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decompose.decomposed import Clock
from reconstruct.single import network, normal

from graphopt import ir
from graphopt.decompose import KINDS, timing
from graphopt.decompose.parts import Part, find_parts
from graphopt.decompose.timing import changed, measure_savings
from graphopt.measure import LatencyTable
from graphopt.pruning.sizes import totals
from graphopt.runtime import Feeds, open_session
from graphopt.targets import get

FEEDS: Feeds = {"x": normal(2, 16, 32, 32)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing, "race", found.race)
    monkeypatch.setattr(timing, "seconds_of", found.seconds)
    return found


def convolutions(count: int, width: int = 16, last: int = 2) -> ir.Model:
    """Convolutions of equal shapes, and a small one of another shape behind them."""
    body, constants, value = "", {}, "x"
    for i in range(count):
        body += f"a{i} = Conv<pads = [1, 1, 1, 1]>({value}, w{i}) b{i} = Relu(a{i}) "
        constants[f"w{i}"], value = normal(width, width, 3, 3, seed=i) / 12, f"b{i}"
    body += f"p = GlobalAveragePool({value}) f = Flatten(p) y = MatMul(f, z)"
    return network(body, f"N,{width},32,32", **constants, z=normal(width, last))


def parts_of(model: ir.Model) -> list[Part]:
    return find_parts(model, KINDS, ())[0]


def save(
    model: ir.Model, parts: Sequence[Part], table: LatencyTable | None = None, feeds: Feeds = FEEDS
) -> LatencyTable:
    table = table or LatencyTable(None, "")
    measure_savings(model, parts, feeds, target=get("cpu"), threads=1, table=table)
    return table


def test_each_form_saves_its_part_however_it_is_measured(clock: Clock) -> None:
    model = convolutions(2, last=12)
    parts = parts_of(model)
    save(model, parts)
    assert {p.name for p in parts} == {"a0", "a1", "y"}
    assert clock.raced
    assert clock.alone, "the small one is measured by itself"
    before = totals(model)["macs"]
    for part in parts:
        assert part.faster[0] == 0.0
        np.testing.assert_allclose(part.faster, part.saved["macs"] / before, atol=1e-12)
        assert part.faster[1:].all()


def test_layers_of_equal_shapes_are_measured_once_all_together(clock: Clock) -> None:
    model = convolutions(3)
    parts = parts_of(model)
    save(model, parts)
    alike = [p for p in parts if p.name.startswith("a")]
    assert len(alike) == 3
    assert len(clock.raced) == len(alike[0].forms) - 1
    for part in alike:
        np.testing.assert_array_equal(part.faster, alike[0].faster)
    for model in clock.raced:
        kinds = [node.op_type for node in model.graph]
        assert kinds.count("Conv") >= 6, "all three are changed at once"


def test_layers_that_are_alike_need_not_have_the_same_forms(clock: Clock) -> None:
    model = convolutions(2)
    one, other, *_ = parts_of(model)
    assert one.sign == other.sign
    half = [0, *range(1, len(one.forms), 2)]
    one.forms = tuple(one.forms[i] for i in half)
    rest = [0, *range(2, len(other.forms), 2)]
    other.forms = tuple(other.forms[i] for i in rest)
    save(model, [one, other])
    for part, places in ((one, half), (other, rest)):
        saved = part.saved["macs"][places] / totals(model)["macs"]
        np.testing.assert_allclose(part.faster, saved)


def test_forms_of_small_layers_are_run_by_themselves(clock: Clock) -> None:
    model = convolutions(1, last=12)
    (small,) = (p for p in parts_of(model) if p.name == "y")
    save(model, [small])
    assert clock.raced == []
    assert len(clock.alone) == len(small.forms) - 1
    for each in clock.alone:
        assert {node.op_type for node in each.graph} == {"MatMul"}


def test_what_is_slower_saves_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "race", lambda _, models, *a, **k: [[1.5]] * len(models))
    model = convolutions(2)
    parts = [p for p in parts_of(model) if p.name.startswith("a")]
    save(model, parts)
    assert {v for p in parts for v in p.faster[1:]} == {-0.25}


def test_known_times_are_not_measured_again(clock: Clock, tmp_path: Path) -> None:
    path, model = tmp_path / "latency.json", convolutions(2, last=12)
    parts = parts_of(model)
    save(model, parts, LatencyTable(path, "here")).save()
    before = [p.faster for p in parts]
    assert clock.measured
    clock.clear()
    parts = parts_of(model)
    save(model, parts, LatencyTable(path, "here"))
    assert clock.measured == 0
    for part, faster in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.faster, faster)
    save(model, parts, LatencyTable(path, "there"))
    assert clock.measured, "another machine has times of its own"
    clock.clear()
    deeper = convolutions(3, last=12)
    save(deeper, parts_of(deeper), LatencyTable(path, "here"))
    assert clock.measured, "another model has times of its own"


def test_times_hold_for_one_size_of_inputs(clock: Clock) -> None:
    model = convolutions(2)
    table = save(model, parts_of(model))
    known = len(table.entries)
    assert known == clock.measured
    save(model, parts_of(model), table, {"x": normal(5, 16, 32, 32)})
    assert len(table.entries) == 2 * known == clock.measured


def test_a_real_clock_gives_a_number_for_each() -> None:
    model = convolutions(1, last=12)
    parts = find_parts(model, ["output"], ())[0]
    save(model, parts)
    for part in parts:
        assert part.faster.shape == (len(part.forms),)
        assert np.isfinite(part.faster).all()
        assert (part.faster < 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_changed_models_run_and_are_as_small_as_is_said(kind: Any) -> None:
    model = convolutions(2)
    before = ir.dump(model)
    for part in find_parts(model, [kind], ())[0]:
        for i, form in enumerate(part.forms):
            found = changed(model, {part.name: form})
            ir.verify(found)
            ir.check(model, found)
            assert totals(found) == {
                what: size - part.saved[what][i] for what, size in totals(model).items()
            }
            with open_session(found) as session:
                assert session.run(FEEDS)["y"].shape == (2, 2)
    assert ir.dump(model) == before

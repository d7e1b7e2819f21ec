"""What holds for every registered pass and pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import Exactness, PassManager, Pipeline, default_registry, ir, parse
from graphopt.manager.registry import validate

REGISTRY = default_registry()
PIPELINES = REGISTRY.pipelines()
PASSES = [name for name in REGISTRY.names() if name not in PIPELINES]
HEADINGS = (
    "What it does", "Exactness", "Needs", "Options", "Example", "Declines when", "References",
)  # fmt: skip
EMPTY = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2] x) => (float[2] x) { }'
ROOT = Path(__file__).parents[1]


def test_the_built_in_table_loads() -> None:
    assert REGISTRY.problems() == []
    assert len(PASSES) >= 15
    assert {"cleanup", "O0", "O1", "O2", "O3"} <= set(PIPELINES)


@pytest.mark.parametrize("name", PASSES)
def test_documented_under_every_heading(name: str) -> None:
    found = REGISTRY.describe(name)
    assert found.summary.endswith(".")
    assert tuple(found.sections) == HEADINGS
    assert all(found.sections.values())


@pytest.mark.parametrize("name", PASSES)
def test_valid_and_immutable(name: str) -> None:
    each = REGISTRY.get(name)
    validate(each)
    assert isinstance(each.exactness, Exactness)
    assert each() == each()
    assert hash(each()) == hash(each())
    with pytest.raises(AttributeError):
        each().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", [*PASSES, *PIPELINES])
def test_text_round_trips(name: str) -> None:
    pipeline = parse(name)
    assert parse(str(pipeline)) == pipeline


@pytest.mark.parametrize("name", PASSES)
def test_leaves_an_empty_model_alone(name: str) -> None:
    model = ir.parse_text(EMPTY)
    result = PassManager(name).run(model)
    assert not result.report.changed
    assert not result.report.reverted
    assert ir.dump(result.model) == ir.dump(model)


@pytest.mark.parametrize("name", PASSES)
def test_has_tests(name: str) -> None:
    stem = REGISTRY.get(name).__name__
    texts = (p.read_text(encoding="utf-8") for p in (ROOT / "tests" / "passes").rglob("test_*.py"))
    assert any(stem in text or name in text for text in texts)


def test_o1_is_bitwise_and_o2_rounds() -> None:
    assert parse("cleanup").promise is Exactness.BITWISE
    assert parse("O1").promise is Exactness.BITWISE
    assert parse("O2").promise is Exactness.ROUNDING
    assert parse("O0") == Pipeline()

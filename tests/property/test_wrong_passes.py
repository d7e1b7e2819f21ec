"""The oracle catches wrong passes, names them, and bisect finds the rule."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt import NumericalMismatch, PassManager, Pipeline, bisect, ir

FILE = Path(__file__).parents[2] / "benchmarks" / "wrong_rules.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("wrong_rules", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wrong_rules"] = module
    spec.loader.exec_module(module)
    return module


WRONG = _load().WRONG


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.rule)
def test_caught_and_named(case: Any) -> None:
    model = ir.load(case.model())
    before = ir.dump(model)
    for mode in ("each", "end"):
        result = PassManager(Pipeline(passes=(case.made(),)), oracle=mode).run(model)
        (record,) = result.report.passes
        assert record.status == "reverted"
        assert ir.dump(result.model) == before
        with pytest.raises(NumericalMismatch):
            PassManager(case.made(), oracle=mode, on_mismatch="raise").run(model)
    found = bisect(model, case.made())
    assert (found.action or "").startswith(case.rule)


def test_there_are_at_least_five() -> None:
    assert len(WRONG) >= 5

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graphopt import Pass, PassManager, ir
from graphopt.testing import assert_equivalent


@pytest.fixture
def rewrite() -> Callable[..., ir.Model]:
    """Run a pass that has to change a model, compare the bits, and run it again."""

    def run(each: Pass, text: str, *, opset: int = 17) -> ir.Model:
        model = ir.parse_text(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
        manager = PassManager(each, on_mismatch="raise", objective=None)
        result = manager.run(model)
        assert result.report.changed
        ir.check(model, result.model)
        assert_equivalent(model, result.model, each.exactness)
        assert not manager.run(result.model).report.changed
        return result.model

    return run


@pytest.fixture
def declined() -> Callable[[Any], str]:
    """The reasons that the one pass of a run gave for what it did not do."""

    def reasons(result: Any) -> str:
        (record,) = result.report.passes
        return "; ".join(record.declined)

    return reasons

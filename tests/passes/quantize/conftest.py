from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graphopt import Pass, ir
from graphopt.manager.runner import Result
from graphopt.testing import check_pass

Check = Callable[..., Result]
HEAD = '<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'


@pytest.fixture
def check() -> Check:
    """``check_pass`` on ONNX text without its head; after None the pass must not change it."""

    def run(
        each: Pass | str, graph: str, after: str | None, *, opset: int = 17, **options: Any
    ) -> Result:
        before = HEAD.format(opset=opset) + "\ng " + graph
        return check_pass(each, before, after, **{"target": "cpu-x64", **options})

    return run


@pytest.fixture
def constants() -> Callable[[Result], dict[str, Any]]:
    """The constants of a result, as nested lists by name."""

    def read(result: Result) -> dict[str, Any]:
        return {
            name: ir.array(value).tolist()  # type: ignore[union-attr]
            for name, value in result.model.graph.initializers.items()
        }

    return read


@pytest.fixture
def declined() -> Callable[[Result], str]:
    """The reasons that the one pass of a run gave for what it did not do."""

    def reasons(result: Result) -> str:
        (record,) = result.report.passes
        return "; ".join(record.declined)

    return reasons

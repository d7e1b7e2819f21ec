"""Where latency can be measured, on which inputs, and against what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.measure import race, runs_here, settings
from graphopt.targets import get


def test_each_form_has_a_ratio_for_each_input() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\n'
        "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }"
    )
    data = [{"x": np.ones((n, 4), np.float32)} for n in (1, 2)]
    found = race(model, [model], data, target=get("cpu-x64"), seconds=0.01)
    assert [len(each) for each in found] == [2]
    assert all(ratio > 0 for ratio in found[0])


def test_where_latency_can_be_measured() -> None:
    here = get("cpu")
    assert runs_here(here) is None
    other = get("cpu-arm64" if runs_here(get("cpu-arm64")) else "cpu-x64")
    assert "another processor" in (runs_here(other) or "")
    assert runs_here(get("portable")) == "portable is for other runtimes"
    for name in ("nnapi", "qnn"):
        assert "does not run here" in (runs_here(get(name)) or "")


def feeds(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("inputs", "given", "want"),
    [
        ("float[n,4] x", {"x": (8, 4)}, [1, 8]),
        ("float[n,4] x", {"x": (1, 4)}, [1]),
        ("float[8,4] x", {"x": (8, 4)}, [8]),
        ("float[n,4] x, float[n,4] y", {"x": (8, 4), "y": (8, 4)}, [1, 8]),
        ("float[n,4] x, float[m,4] y", {"x": (8, 4), "y": (3, 4)}, [8]),
        ("float[n,4] x, float y", {"x": (8, 4), "y": ()}, [8]),
        ("float[?,4] x, float[?,4] y", {"x": (8, 4), "y": (3, 4)}, [8]),
    ],
)  # fmt: skip
def test_inputs_to_measure_on(
    inputs: str, given: dict[str, tuple[int, ...]], want: list[int]
) -> None:
    model = ir.parse_text(
        f'<ir_version: 8, opset_import: ["": 17]>\ng ({inputs}) => (float[?,4] o) {{ o = Relu(x) }}'
    )
    batch = feeds(**given)
    found = settings(batch, model)
    assert [len(f["x"]) for f in found] == want
    assert found[-1] is batch

"""Pruning a model as a whole, and checks of what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pruning.test_noise import images

from graphopt import ir
from graphopt.calibration import from_batches
from graphopt.measure import Goal, Outcome
from graphopt.pruning import Options, prune
from graphopt.runtime import open_session
from graphopt.targets import get

__all__ = ["IMAGES", "Data", "elements", "pruned", "valid"]

Data = list[dict[str, Any]]
IMAGES = images(*[8] * 8)


def pruned(
    model: ir.Model,
    what: str,
    left: float,
    data: Data | None = IMAGES,
    *,
    cache: Path | None = None,
    target: str = "portable",
    **options: Any,
) -> Outcome:
    """Prune, where nothing is measured in time unless a test says how long things take."""
    samples = None if data is None else from_batches(data, model)
    given = Options(Goal(what, left), **options)  # type: ignore[arg-type]
    return prune(model, get(target), samples, given, cache=cache)


def elements(model: ir.Model) -> tuple[int, int]:
    """Numbers and bytes of the constants that something reads."""
    tensors = [
        v.const_value
        for graph in ir.all_graphs(model)
        for v in graph.initializers.values()
        if v.const_value is not None
    ]
    return sum(t.size for t in tensors), sum(t.nbytes for t in tensors)


def valid(model: ir.Model, found: Outcome, data: Data = IMAGES) -> ir.Model:
    """The result, after it was checked and run with ONNX Runtime's optimizations on and off."""
    assert found.model is not None, found.reason
    ir.verify(found.model)
    ir.check(model, found.model)
    plain = []
    for optimize in (False, True):
        with open_session(found.model, optimize=optimize) as session:
            plain.append([np.asarray(v) for x in data for v in session.run(x).values()])
    for one, other in zip(*plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    return found.model

"""Samples in batches of the size that a model takes, also after its shapes were fixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.calibration.samples import Samples
from graphopt.calibration.sources import from_batches
from graphopt.runtime.probe import input_specs
from graphopt.runtime.values import Feeds

__all__ = ["fitting"]


def fitting(data: Samples | Iterable[Mapping[str, Any]], model: ir.Model) -> Samples:
    """Samples of a model's inputs as the model is now.

    Where its inputs have one fixed first dimension, batches that are a multiple of it are cut.

    Args:
        data: Samples, or batches as for ``from_batches``.
        model: The model.

    Raises:
        CalibrationError: There are no batches, or one lacks an input.
    """
    specs = input_specs(ir.inputs(model))
    firsts = {s.dims[0] if s.dims else None for s in specs}
    size = next(iter(firsts)) if len(firsts) == 1 else None
    if not isinstance(size, int) or size < 1:
        return data if isinstance(data, Samples) else from_batches(data, model)
    rows = size
    if not isinstance(data, Samples):
        given = [data] if isinstance(data, Mapping) else data
        return from_batches([part for batch in given for part in _cut(batch, rows)], model)
    samples = data

    def batches() -> Iterator[tuple[str, Feeds]]:
        for where, feeds in samples.named():
            parts = list(_cut(feeds, rows))
            for i, part in enumerate(parts):
                yield (where if len(parts) == 1 else f"{where}, part {i}"), part

    length = len(samples) if samples.count is None else max(1, samples.count // rows)
    return Samples(
        samples.source, specs, batches, length, count=samples.count, remarks=samples.remarks
    )


def _cut(feeds: Mapping[str, Any], rows: int) -> Iterator[Feeds]:
    arrays = {name: np.asarray(v) for name, v in feeds.items() if not isinstance(v, (list, dict))}
    lengths = {len(a) if a.ndim else 0 for a in arrays.values()}
    total = next(iter(lengths), 0)
    if len(arrays) < len(feeds) or len(lengths) > 1 or total <= rows or total % rows:
        yield dict(feeds)
        return
    for start in range(0, total, rows):
        yield {name: a[start : start + rows] for name, a in arrays.items()}

"""More samples of models that look up embeddings: the same with other rows of the tables.

A few hundred sentences hold a small part of a vocabulary. Layers that are fitted on them compute
the right thing for these words and something else for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.runtime import Feeds

__all__ = ["tables", "varied"]

Array = np.ndarray[Any, Any]

# Rows that a table has at least; a smaller one the samples cover.
_ROWS = 256
# Share of the ids that are replaced, and samples that are made of one.
_REPLACED, _COPIES = 0.5, 4
# Share of the samples that have an id which marks something, such as where a sentence ends.
_MARK = 0.5


def tables(model: ir.Model) -> dict[str, int]:
    """Rows of the constant tables that integer inputs look up, by name of the input."""
    found: dict[str, int] = {}
    for value in ir.inputs(model):
        if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            continue
        sizes = []
        for use in value.uses():
            table = use.node.inputs[0]
            shape = ir.static_shape(table) if ir.const(table) is not None else None
            looks_up = use.node.op_type == "Gather" and use.idx == 1 and not use.node.domain
            if looks_up and shape and not ir.attr(use.node, "axis", 0):
                sizes.append(shape[0])
        if sizes and min(sizes) >= _ROWS:
            found[value.name or ""] = min(sizes)
    return found


def varied(model: ir.Model, batches: Sequence[Feeds]) -> list[Feeds]:
    """Batches, and four times as many in which half of the ids are others.

    Ids that at least half of the batches have stay, since they mark something; so do all other
    inputs.

    Args:
        model: The model.
        batches: Its inputs.

    Returns:
        Those batches alone where no input looks up a large table.
    """
    rows = tables(model)
    if not rows or not batches:
        return list(batches)
    marks = {name: _marks([feeds[name] for feeds in batches if name in feeds]) for name in rows}
    rng = np.random.default_rng(0)
    found = list(batches)
    for _ in range(_COPIES):
        for feeds in batches:
            new = dict(feeds)
            for name, count in rows.items():
                if name in feeds:
                    ids = np.asarray(feeds[name])
                    other = rng.integers(0, count, ids.shape).astype(ids.dtype)
                    replaced = rng.random(ids.shape) < _REPLACED
                    new[name] = np.where(replaced & ~np.isin(ids, marks[name]), other, ids)
            found.append(new)
    return found


def _marks(arrays: Sequence[Any]) -> Array:
    """Ids that most samples have."""
    samples = [row for each in arrays for row in np.atleast_2d(np.asarray(each))]
    ids = np.concatenate([np.unique(row) for row in samples])
    values, counts = np.unique(ids, return_counts=True)
    return np.asarray(values[counts >= _MARK * len(samples)])

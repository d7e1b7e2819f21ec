"""Sizes and costs of models, for reports and for the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.manager.report import PassRecord, Size

__all__ = ["compared", "file_bytes", "measure"]


def measure(model: ir.Model, cost: Cost | None = None) -> Size:
    """Size and estimated cost of a model."""
    found = Cost(model) if cost is None else cost
    return Size(
        nodes=found.count,
        bytes=ir.nbytes(model),
        parameters=found.parameters,
        cost=found.seconds,
    )


def compared(records: Sequence[PassRecord], gains: Mapping[int, float], cost: float) -> None:
    """Restate the costs of all records by what the last pass knows of the shapes.

    The estimate of the result is the best informed; what each pass saved leads back from there.
    """
    for i, record in reversed(list(enumerate(records))):
        record.after = dataclasses.replace(record.after, cost=cost)
        cost += gains.get(i, 0.0)
        record.before = dataclasses.replace(record.before, cost=cost)


def file_bytes(model: ir.Model) -> int:
    """Bytes of the model's file: exact, external data included, without serializing weights."""
    weights = 0

    def count(value: ir.Value, _proto: object) -> bool:
        nonlocal weights
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.StringTensor):
            return False
        weights += tensor.nbytes + (6 if tensor.nbytes > 127 else 2)
        return True

    source = ir.source_bytes(model)
    return source if source is not None else ir.to_proto(model, external=count).ByteSize() + weights

"""Why each node is quantized or not, as data."""

from __future__ import annotations

import math
from typing import Any

from graphopt.quant.costs import Costs
from graphopt.quant.measure import Candidate
from graphopt.quant.static import StaticForm
from graphopt.quant.units import Units

__all__ = ["explain"]


def explain(
    units: Units, form: StaticForm, costs: Costs | None, chosen: Candidate | None
) -> list[dict[str, Any]]:
    """A row for each node that could be quantized, and for each that has no integer kernel.

    Args:
        units: The units of the model.
        form: Its static form.
        costs: Measured seconds, or None.
        chosen: The form that was taken, or None.
    """
    integer = frozenset() if chosen is None else chosen.integer
    rows: list[dict[str, Any]] = []
    for unit in units:
        root = units.root(unit.output).name or ""
        low, high = form.ranges.get(root, (math.nan, math.nan))
        row: dict[str, Any] = {
            "name": unit.name,
            "op": unit.node.op_type,
            "form": "static" if unit.name in integer else "float",
            "range": None if math.isnan(low) else [low, high],
            "noise_db": _db(form.noise.get(root)),
            "weight_noise_db": _db(form.weight_noise.get(unit.name)),
        }
        if costs is not None:
            row["float_us"] = 1e6 * costs.floating[unit.name]
            row["integer_us"] = 1e6 * costs.integer[unit.name]
        if unit.name not in integer:
            row["reason"] = _reason(row)
        rows.append(row)
    rows += [
        {"name": node.outputs[0].name, "op": node.op_type, "form": "float", "reason": reason}
        for node, reason in units.reasons.items()
    ]
    order = {n.outputs[0].name: i for i, n in enumerate(units.model.graph)}
    return sorted(rows, key=lambda r: order.get(r["name"], 0))


def _reason(row: dict[str, Any]) -> str:
    if "float_us" not in row:
        return "it was left out"
    if row["integer_us"] >= row["float_us"]:
        return (
            f"its integer kernel takes {row['integer_us']:.1f} us, in floating point it takes "
            f"{row['float_us']:.1f} us"
        )
    return "what it gains would not pay for conversions, or for the noise it adds"


def _db(noise: float | None) -> float | None:
    """Noise in units of the output's energy as a ratio of signal to noise in dB."""
    return None if noise is None or noise <= 0 else -10 * math.log10(noise)

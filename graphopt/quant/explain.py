"""Why each node is quantized or not, as data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from graphopt import ir
from graphopt.quant.costs import Costs
from graphopt.quant.dynamic_form import DynamicForm
from graphopt.quant.measure import Candidate
from graphopt.quant.static import StaticForm
from graphopt.quant.units import Unit, Units, is_float

__all__ = ["explain"]


def explain(
    units: Units,
    dynamic: DynamicForm,
    chosen: Candidate | None,
    *,
    form: StaticForm | None = None,
    costs: Costs | None = None,
    infinite: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A row for each node that computes floating-point numbers, in order.

    Args:
        units: What of the model has a static form.
        dynamic: What of it has a dynamic form.
        chosen: The form of the model that was taken, or None.
        form: The static form, where there is one.
        costs: Measured seconds, where latency is measured.
        infinite: Names of nodes that were left alone for what they read or write.

    Returns:
        Rows with the keys ``name`` (of the value that the node computes), ``op`` and ``form``
        (``static``, ``dynamic``, ``weights`` or ``float``); ``reason`` of those that stay in
        floating point; and what was measured: ``range``, ``noise_db`` and ``weight_noise_db`` (what
        the output, and the weight, alone on integers do to the model's outputs), ``float_us`` and
        ``integer_us``.
    """
    absorbed = {u.activation for u in units}
    tables = frozenset() if chosen is None else _lost(units.model, chosen.model)
    rows: list[dict[str, Any]] = []
    for node in ir.all_nodes(units.model):
        if node in absorbed or not any(map(is_float, node.outputs)) or any(ir.subgraphs(node)):
            continue
        name, unit = node.outputs[0].name or "", units.units.get(node)
        row: dict[str, Any] = {"name": name, "op": node.op_type, "form": "float"}
        if chosen is not None and name in chosen.dynamic:
            row |= {"form": "dynamic", "noise_db": _db(dynamic.noises.get(name))}
        elif chosen is not None and name in chosen.integer:
            row["form"] = "static"
        elif node.op_type == "Gather" and node.inputs[0] in tables:
            row["form"] = "weights"
        if unit is not None and row["form"] != "dynamic":
            row |= _measured(unit, units, form, costs)
        if row["form"] == "float":
            row["reason"] = (
                "it reads or writes NaN or infinity"
                if name in infinite
                else _reason(node, row, units, dynamic, chosen)
            )
        rows.append(row)
    return rows


def _lost(before: ir.Model, after: ir.Model) -> frozenset[ir.Value]:
    """Constants that a form no longer holds as they were."""
    kept = after.graph.initializers
    return frozenset(v for v in before.graph.initializers.values() if v.name not in kept)


def _measured(
    unit: Unit, units: Units, form: StaticForm | None, costs: Costs | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if form is not None:
        root = units.root(unit.output).name or ""
        found = {
            "range": list(form.ranges[root]) if root in form.ranges else None,
            "noise_db": _db(form.noise.get(root)),
            "weight_noise_db": _db(form.weight_noise.get(unit.name)),
        }
    if costs is not None:
        found["float_us"] = 1e6 * costs.floating[unit.name]
        found["integer_us"] = 1e6 * costs.integer[unit.name]
    return found


def _reason(
    node: ir.Node,
    row: Mapping[str, Any],
    units: Units,
    dynamic: DynamicForm,
    chosen: Candidate | None,
) -> str:
    if chosen is not None and chosen.dynamic and not chosen.integer:
        obstacle = dynamic.obstacle(node)
        if obstacle is not None or node.outputs[0].name in dynamic.names:
            return obstacle or "on integers it would add more noise to the outputs than most"
    if node.graph is not units.model.graph:
        return "it is inside of a branch or a loop"
    if node in units.reasons:
        return units.reasons[node]
    if "integer_us" in row and row["integer_us"] >= row["float_us"]:
        return (
            f"its integer kernel takes {row['integer_us']:.1f} us, in floating point it takes "
            f"{row['float_us']:.1f} us"
        )
    if chosen is None:
        return "the model as a whole stays as it is"
    return "what it gains would not pay for conversions, or for the noise it adds"


def _db(noise: float | None) -> float | None:
    """Noise in units of the output's energy as a ratio of signal to noise in dB."""
    return None if noise is None or noise <= 0 else -10 * math.log10(noise)

"""``graphopt inspect``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from graphopt.cli.common import console, json_option, write_json

__all__ = ["command", "describe"]


@click.command("inspect")
@click.argument("model", type=click.Path())
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Nodes to list.")
@click.option("--all", "everything", is_flag=True, help="List every node, in program order.")
@json_option
def command(model: str, top: int, everything: bool, json_file: str | None) -> None:
    """Show what MODEL is made of and what it costs.

    Costs are estimates per sample: dynamic dimensions count as 1. Measure with graphopt bench.
    """
    from graphopt import api

    data = describe(api.load(model))
    if not write_json(data, json_file):
        _show(data, len(data["nodes"]) if everything else top, by_cost=not everything)


def describe(model: Any) -> dict[str, Any]:
    """Everything ``inspect`` knows, as data."""
    from graphopt import ir
    from graphopt.analyses import Cost

    cost = Cost(model)
    nodes = [
        {
            "op": f"{n.domain}.{n.op_type}" if n.domain else n.op_type,
            "name": n.name or "",
            "inputs": [None if v is None else v.name for v in n.inputs],
            "outputs": [v.name for v in n.outputs],
            "shapes": [_dims(ir.dims(v)) for v in n.outputs],
            "macs": cost.nodes[n].macs,
            "bytes": cost.nodes[n].bytes,
            "seconds": cost.nodes[n].seconds,
        }
        for n in ir.all_nodes(model)
    ]
    return {
        "ir_version": model.ir_version,
        "opsets": dict(model.opset_imports),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [_value(v) for v in ir.inputs(model)],
        "outputs": [_value(v) for v in model.graph.outputs],
        "operators": dict(Counter(n["op"] for n in nodes).most_common()),
        "node_count": len(nodes),
        "parameters": cost.parameters,
        "bytes": ir.source_bytes(model) or ir.nbytes(model),
        "macs": cost.macs,
        "seconds": cost.seconds,
        "remarks": ir.remarks(model),
        "nodes": nodes,
    }


def _dims(dims: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if dims is None else list(dims)


def _value(value: Any) -> dict[str, Any]:
    from graphopt import ir

    dtype = value.dtype.name.lower() if value.dtype is not None else None
    kind = dtype or (str(value.type).lower() if value.type is not None else None)
    return {"name": value.name, "type": kind, "shape": _dims(ir.dims(value))}


def _shape(shape: list[int | str | None] | None) -> str:
    if shape is None:
        return "?"
    return "x".join("?" if d is None else str(d) for d in shape) or "scalar"


def _show(data: dict[str, Any], top: int, *, by_cost: bool) -> None:
    from rich.table import Table

    from graphopt.manager.report_view import format_bytes, format_seconds

    out = console()

    def line(key: str, text: str) -> None:
        out.print(f"{key:11} {text}", markup=False, highlight=False)

    opsets = ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in data["opsets"].items())
    line("format", f"IR {data['ir_version']}, opset {opsets}; {data['producer'] or 'no producer'}")
    for kind in ("inputs", "outputs"):
        for v in data[kind]:
            line(kind[:-1], f"{v['name']}: {v['type'] or '?'} {_shape(v['shape'])}")
    line("nodes", f"{data['node_count']:,}")
    line("parameters", f"{data['parameters']:,} in {format_bytes(data['bytes'])}")
    line("MACs", f"{data['macs']:,} per sample")
    line("cost", f"{format_seconds(data['seconds'])} per sample, estimated")
    line("operators", ", ".join(f"{n} {op}" for op, n in data["operators"].items()))
    for remark in data["remarks"]:
        line("remark", remark)
    nodes = data["nodes"]
    if by_cost:
        nodes = sorted(nodes, key=lambda n: -n["seconds"])
    if not top or not nodes:
        return
    out.print()
    table = Table(box=None, pad_edge=False)
    for heading in ("operator", "output", "shape", "MACs", "bytes", "estimate"):
        table.add_column(heading, justify="right" if heading in ("MACs", "bytes") else "left")
    for n in nodes[:top]:
        table.add_row(
            n["op"],
            n["outputs"][0] if n["outputs"] else "",
            _shape(n["shapes"][0] if n["shapes"] else None),
            f"{n['macs']:,}",
            format_bytes(n["bytes"]),
            format_seconds(n["seconds"]),
        )
    out.print(table)

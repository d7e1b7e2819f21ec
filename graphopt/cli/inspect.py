"""``graphopt inspect``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import check_json, json_option, output, show_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "command", "describe"]

SCHEMA = "graphopt.inspect/1"

_COLUMNS = ("operator", "output", "shape", ">MACs", ">bytes", ">time", ">share")


@click.command("inspect")
@click.argument("model", type=click.Path())
@click.option(
    "--top", type=click.IntRange(0), default=10, show_default=True, metavar="N",
    help="How many of the most expensive nodes to list.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List every node, in program order.")
@json_option
def command(model: str, top: int, everything: bool, json_file: str | None) -> None:
    """Show what MODEL is made of and what it costs.

    Costs are estimates per sample: dynamic dimensions count as 1. Measure with graphopt bench.
    """
    from graphopt import api
    from graphopt.cli.progress import busy

    check_json(json_file, Path(model))
    with busy(f"reading {model}"):
        data = {"schema": SCHEMA, "model": os.fspath(model), **describe(api.load(model))}
    if not show_json(data, json_file):
        with output() as out:
            _show(out, data, None if everything else top)


def describe(model: Any) -> dict[str, Any]:
    """Everything ``inspect`` knows, as data. What nobody looked into is None."""
    from graphopt import ir
    from graphopt.analyses import Cost

    data: dict[str, Any] = {
        "ir_version": model.ir_version,
        "opsets": dict(model.opset_imports),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [_value(v) for v in ir.inputs(model)],
        "outputs": [_value(v) for v in model.graph.outputs],
        "bytes": ir.source_bytes(model) or ir.nbytes(model),
        "remarks": ir.remarks(model),
        "operators": None,
        "node_count": None,
        "parameters": None,
        "macs": None,
        "seconds": None,
        "nodes": None,
    }
    if ir.opaque(model) is not None:
        return data
    cost = Cost(model)
    nodes = [
        {
            "op": f"{n.domain}.{n.op_type}" if n.domain else n.op_type,
            "name": n.name or "",
            "depth": depth,
            "inputs": [None if v is None else v.name for v in n.inputs],
            "outputs": [v.name for v in n.outputs],
            "shapes": [_dims(ir.dims(v)) for v in n.outputs],
            "macs": cost.nodes[n].macs,
            "bytes": cost.nodes[n].bytes,
            "seconds": cost.nodes[n].seconds,
            "subgraphs": len(list(ir.subgraphs(n))),
        }
        for n, depth in _walk(model.graph)
    ]
    return {
        **data,
        "operators": dict(Counter(n["op"] for n in nodes).most_common()),
        "node_count": len(nodes),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "seconds": cost.seconds,
        "nodes": nodes,
    }


def _walk(graph: Any) -> list[tuple[Any, int]]:
    """Nodes in program order, those of subgraphs after their owner, with the depth they are at."""
    from graphopt import ir

    found: list[tuple[Any, int]] = []
    pending = [(iter(graph), 0)]
    while pending:
        nodes, depth = pending[-1]
        node = next(nodes, None)
        if node is None:
            pending.pop()
            continue
        found.append((node, depth))
        pending += [(iter(g), depth + 1) for g in reversed(list(ir.subgraphs(node)))]
    return found


def _dims(dims: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if dims is None else list(dims)


def _value(value: Any) -> dict[str, Any]:
    from graphopt import ir

    dtype = value.dtype.name.lower() if value.dtype is not None else None
    kind = dtype or (str(value.type).lower() if value.type is not None else None)
    return {"name": value.name, "type": kind, "shape": _dims(ir.dims(value))}


def _shape(shape: list[int | str | None] | None) -> str:
    """A shape for people; the symbols that shape inference makes up say nothing to them."""
    if shape is None:
        return "?"
    known = ("?" if d is None or str(d).startswith("unk__") else str(d) for d in shape)
    return "x".join(known) or "scalar"


def _show(out: Console, data: dict[str, Any], top: int | None) -> None:
    from rich.table import Table

    from graphopt.manager.report_view import format_bytes, format_seconds, make_text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")

    def fact(key: str, text: str) -> None:
        facts.add_row(key, make_text(text))

    opsets = ", ".join(f"{k or 'ai.onnx'} {v}" for k, v in data["opsets"].items()) or "none"
    made = f"; made by {data['producer']}" if data["producer"] else ""
    fact("format", f"IR {data['ir_version']}, opset {opsets}{made}")
    for kind in ("inputs", "outputs"):
        for v in data[kind]:
            fact(kind[:-1], f"{v['name']}: {v['type'] or '?'} {_shape(v['shape'])}")
    fact("size", format_bytes(data["bytes"]))
    if data["nodes"] is not None:
        fact("parameters", f"{data['parameters']:,}")
        fact("MACs", f"{data['macs']:,} per sample")
        fact("time", f"{format_seconds(data['seconds'])} per sample, estimated")
        counts = ", ".join(f"{n} {op}" for op, n in data["operators"].items())
        fact("nodes", f"{data['node_count']:,}{': ' if counts else ''}{counts}")
    for remark in data["remarks"]:
        fact("remark", remark)
    out.print(facts)
    if data["nodes"] and top != 0:
        out.print()
        out.print(_nodes(data, top, out.width))


def _nodes(data: dict[str, Any], top: int | None, width: int) -> Any:
    """The table of nodes: all of them in program order, or the ``top`` most expensive."""
    from graphopt.manager.report_view import format_bytes, format_seconds, make_table, make_text

    if top is None:
        shown = data["nodes"]
    else:
        # The cost of a node with subgraphs is that of the nodes inside, which are listed as well.
        leaves = (n for n in data["nodes"] if not n["subgraphs"])
        shown = sorted(leaves, key=lambda n: -n["seconds"])[:top]
    total = data["seconds"]
    rows = [
        (
            ("  " * n["depth"] if top is None else "") + n["op"],
            (n["outputs"] or [""])[0],
            _shape(n["shapes"][0] if n["shapes"] else None),
            f"{n['macs']:,}" if n["macs"] else "",
            format_bytes(n["bytes"]) if n["bytes"] else "",
            format_seconds(n["seconds"]),
            f"{100 * n['seconds'] / total:.1f} %" if total else "",
        )
        for n in shown
    ]
    # Names give way where the terminal is narrow; their end tells them apart.
    widths = [max(len(text) for text in column) + 2 for column in zip(_COLUMNS, *rows, strict=True)]
    room = max(16, width - (sum(widths) - widths[1]))
    table = make_table(*_COLUMNS)
    for column in table.columns:
        column.no_wrap = True
    for op, name, *rest in rows:
        cropped = name if len(name) <= room else f"...{name[3 - room :]}"
        table.add_row(*map(make_text, (op, cropped, *rest)))
    return table

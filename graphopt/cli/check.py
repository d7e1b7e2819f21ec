"""``graphopt check``."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.common import check_json, json_option, output, show_json, target_option

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA", "command", "judge"]

SCHEMA = "graphopt.check/1"

# Nodes that are listed of each rule without -v.
_SHOWN = 3


@click.command("check")
@click.argument("model", type=click.Path())
@target_option
@click.option(
    "--strict", is_flag=True, help="Exit with code 5 where the target does not take everything."
)
@click.option("-v", "--verbose", is_flag=True, help="List every node, also supported ones.")
@json_option
def command(
    model: str, target: str | None, strict: bool, verbose: bool, json_file: str | None
) -> int:
    """Tell which nodes of MODEL a target computes, and of the others why it does not.

    What a target does not compute is left to ONNX Runtime's CPU provider. Rules come from
    documentation and sources that are named; they are no promise of a device.
    """
    from graphopt import api
    from graphopt.cli.progress import busy
    from graphopt.targets import get

    check_json(json_file, Path(model))
    chosen = get(target or "cpu")
    with busy(f"reading {model}"):
        loaded = api.load(model)
    data = {"schema": SCHEMA, "model": os.fspath(model), **judge(loaded, chosen)}
    if not show_json(data, json_file):
        with output() as out:
            _show(out, data, verbose=verbose)
    bad = any(not each["slow"] for each in data["violations"])
    return 5 if strict and bad else 0


def judge(model: Any, target: Any) -> dict[str, Any]:
    """Everything ``check`` knows, as data; a violation names its node by the index among nodes."""
    from graphopt import ir
    from graphopt.targets import check

    found = check(model, target)
    index = {node: i for i, node in enumerate(ir.all_nodes(model))}
    blocked = {each.node for each in found if not each.slow}
    nodes = [
        {
            "name": node.name or node.outputs[0].name or "",
            "operator": f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            "supported": node not in blocked,
        }
        for node in index
    ]
    return {
        "target": target.name,
        "node_count": len(nodes),
        "supported": sum(n["supported"] for n in nodes),
        "nodes": nodes,
        "violations": [
            {
                "node": None if each.node is None else index[each.node],
                "rule": each.rule,
                "reason": each.reason,
                "hint": each.hint,
                "fix": each.fix,
                "source": each.source,
                "slow": each.slow,
            }
            for each in found
        ],
    }


def _show(out: Console, data: dict[str, Any], *, verbose: bool) -> None:
    from graphopt.manager.report_view import make_table, print_line

    nodes, violations = data["nodes"], data["violations"]
    counts = Counter(n["operator"] for n in nodes)
    good = Counter(n["operator"] for n in nodes if n["supported"])
    table = make_table("operator", ">nodes", ">supported")
    for name, count in sorted(counts.items(), key=lambda item: (good[item[0]] - item[1], item)):
        table.add_row(name, str(count), str(good[name]))
    out.print(table)
    if violations:
        out.print()
        out.print(_rules(violations))
        out.print()
        out.print(_every_node(nodes, violations) if verbose else _examples(nodes, violations))
    out.print()
    total, supported = data["node_count"], data["supported"]
    fine = all(each["slow"] for each in violations)
    text = f"{data['target']} computes {supported:,} of {total:,} nodes"
    more = "" if verbose or not violations else "; -v tells about every node"
    print_line(out, text + more, "bold green" if fine else "bold yellow")


def _rules(violations: list[dict[str, Any]]) -> Any:
    """What to do about each rule, and where it is known from."""
    from graphopt.manager.report_view import make_table

    table = make_table("rule", ">times", "what to do", "known from")
    counts = Counter((v["rule"], _remedy(v), v["source"]) for v in violations)
    for (rule, remedy, source), count in counts.items():
        table.add_row(rule, str(count), remedy, source)
    return table


def _remedy(violation: dict[str, Any]) -> str:
    hint, fix = violation["hint"], violation["fix"]
    text = f"{hint} ({fix})" if hint and fix else hint or fix
    return f"slow, but runs: {text}" if violation["slow"] else text


def _examples(nodes: list[dict[str, Any]], violations: list[dict[str, Any]]) -> Any:
    """The first few nodes that each rule is about."""
    from graphopt.manager.report_view import make_table, make_text

    table = make_table("rule", "node", "operator", "why not")
    of_rule = defaultdict(list)
    for each in violations:
        of_rule[each["rule"]].append(each)
    for rule, found in of_rule.items():
        for each in found[:_SHOWN]:
            node = {"name": "", "operator": ""} if each["node"] is None else nodes[each["node"]]
            table.add_row(*map(make_text, (rule, node["name"], node["operator"], each["reason"])))
        if len(found) > _SHOWN:
            table.add_row(rule, f"and {len(found) - _SHOWN:,} more", "", "")
    return table


def _every_node(nodes: list[dict[str, Any]], violations: list[dict[str, Any]]) -> Any:
    from graphopt.manager.report_view import make_table, make_text

    reasons = defaultdict(list)
    for each in violations:
        reasons[each["node"]].append(f"{each['rule']}: {each['reason']}")
    table = make_table("node", "operator", "verdict")
    if None in reasons:
        table.add_row("(the model)", "", *map(make_text, ["; ".join(reasons[None])]))
    for i, node in enumerate(nodes):
        verdict = "; ".join(reasons[i]) or "ok"
        table.add_row(*map(make_text, (node["name"], node["operator"], verdict)))
    return table

"""What is reported of constants with few values."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

from graphopt import Context, ir
from graphopt.passes.sharing._levels import Choice
from graphopt.reconstruct.rebuild import Fit

__all__ = ["tell", "tell_misnamed"]


def tell_misnamed(model: ir.Model, skip: Sequence[str], ctx: Context) -> None:
    """Tell which patterns skip nothing."""
    nodes, names = list(ir.all_nodes(model)), list(model.graph.initializers)
    for pattern in skip:
        if not fnmatch.filter(names, pattern) and not any(
            ir.matches(node, [pattern]) for node in nodes
        ):
            ctx.remark(f"nothing matches {pattern!r}, which was to be skipped")


def tell(choices: Sequence[Choice], fits: Sequence[Fit], ctx: Context) -> None:
    """List constants, and what each got."""
    known = {each.name: each for each in fits}
    rows = []
    for each in choices:
        constant = each.constant
        fit = None if constant.layer is None else known.get(constant.layer.name)
        rows.append({
            "constant": constant.name, "entries": each.level.entries, "block": each.level.block,
            "unit": each.level.unit,
            "numbers": constant.tensor.size, "noise": each.noise,
            "bytes_before": constant.tensor.nbytes, "bytes_after": round(each.nbytes),
            "fit": None if fit is None else dataclasses.asdict(fit),
        })  # fmt: skip
    ctx.details["shared"] = rows
    size = sum(each.constant.tensor.size for each in choices)
    ctx.remark(f"{size:,} numbers in {len(choices)} constants have few values")

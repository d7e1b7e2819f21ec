"""Whether a target takes a model, node by node."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator

from graphopt import ir
from graphopt.errors import UnsupportedFeature
from graphopt.ir.external import MappedTensor
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.rules import key
from graphopt.targets.table import get

__all__ = ["Violation", "check"]


@dataclasses.dataclass(frozen=True)
class Violation:
    """What a target does not take.

    Attributes:
        node: The node, or None where the whole model is meant.
        rule: Name of the requirement, or of the attribute of the target that says so.
        reason: What is wrong.
        hint: What to do about it; empty where nobody knows.
        fix: A pass that does it, or empty.
        source: Where the rule is known from.
        slow: It runs, but slower than it could.
    """

    node: ir.Node | None
    rule: str
    reason: str
    hint: str = ""
    fix: str = ""
    source: str = ""
    slow: bool = False


def check(model: ir.Model, target: str | Target) -> list[Violation]:
    """What of a model a target does not take.

    A node without a violation is one that the target computes itself. Other nodes are left to
    ONNX Runtime's CPU provider, or make the model fail to load where there is none.

    Args:
        model: The model; its types and shapes are taken as inferred.
        target: A target or its name.

    Returns:
        Violations: those of the whole model first, then by node in program order.

    Raises:
        ConfigError: There is no such target.
        UnsupportedFeature: The model has a part that has no representation, so that nobody knows.
    """
    chosen = get(target)
    if (why := ir.opaque(model)) is not None:
        raise UnsupportedFeature(f"what the model is made of is not known: {why}")
    found = list(_whole(model, chosen))
    by_operator: dict[str, list[Requirement]] = defaultdict(list)
    for each in chosen.requirements:
        for name in each.operators or ("",):
            by_operator[name].append(each)
    for node in ir.all_nodes(model):
        found += _of_node(node, chosen, [*by_operator[""], *by_operator.get(key(node), ())])
    return found


def _whole(model: ir.Model, target: Target) -> Iterator[Violation]:
    low, high = target.opsets
    opset = ir.opset(model)
    if not low <= opset <= high:
        yield Violation(
            None,
            "opsets",
            f"the model is of opset {opset}; {target.name} takes {low} to {high}",
            f"convert it to opset {low if opset < low else high}",
            "convert-opset",
            target.sources.get("opsets", ""),
        )
    if model.ir_version > target.ir_version:
        yield Violation(
            None,
            "ir_version",
            f"the file format is version {model.ir_version}; {target.name} reads up to "
            f"{target.ir_version}",
            "save it with an older one",
            source=target.sources.get("ir_version", ""),
        )
    if not target.external_data and _has_external_data(model):
        yield Violation(
            None,
            "external_data",
            f"weights are in a file of their own; {target.name} takes them in the model only",
            "save it with the weights inside (--inline)",
            source=target.sources.get("external_data", ""),
        )


def _of_node(node: ir.Node, target: Target, requirements: list[Requirement]) -> Iterator[Violation]:
    name = key(node)
    if node.domain and node.domain not in target.domains and name not in (target.operators or ()):
        yield Violation(
            node,
            "domains",
            f"{target.name} takes no operators of {node.domain}",
            "give it the model as it was before operators were fused, or express them by others",
            "lower-ops",
            target.sources.get("domains", ""),
        )
    elif target.operators is not None and name not in target.operators:
        yield Violation(
            node,
            "operators",
            f"{target.name} does not compute {name}",
            "some can be expressed by others",
            "lower-ops",
            target.sources.get("operators", ""),
        )
    yield from _tensors(node, target)
    for each in requirements:
        if (reason := each.why(node)) is not None:
            yield Violation(node, each.name, reason, each.hint, each.fix, each.source, each.slow)


def _tensors(node: ir.Node, target: Target) -> Iterator[Violation]:
    """What is wrong with the tensors that a node reads and makes, constants aside."""
    read = [v for v in node.inputs if v is not None and ir.const(v) is None]
    values = list(dict.fromkeys([*read, *node.outputs]))

    def violation(attribute: str, reason: str, hint: str = "", fix: str = "") -> Violation:
        return Violation(node, attribute, reason, hint, fix, target.sources.get(attribute, ""))

    if target.static_shapes and (open_ := [v for v in values if ir.static_shape(v) is None]):
        yield violation(
            "static_shapes",
            f"{_names(open_)}: sizes are not known",
            "give the inputs a fixed size",
            "fix-shapes",
        )
    limit = target.max_rank
    if limit is not None and (deep := [v for v in values if (ir.rank(v) or 0) > limit]):
        yield violation("max_rank", f"{_names(deep)}: more than {limit} dimensions")
    types = {v: v.dtype for v in values if v.dtype is not None}
    halves = [v for v, dtype in types.items() if dtype == ir.DataType.FLOAT16]
    if halves and target.fp16 != "native":
        found = violation("fp16", f"{_names(halves)}: 16-bit floats", "keep 32-bit floats")
        yield dataclasses.replace(found, slow=target.fp16 == "slow")
    if target.dtypes is not None:
        odd = [
            v
            for v, dtype in types.items()
            if dtype.name.lower() not in target.dtypes and v not in halves
        ]
        if odd:
            names = dict.fromkeys(types[v].name.lower() for v in odd)
            yield violation(
                "dtypes",
                f"{_names(odd)}: elements of type {', '.join(names)}",
                "where they are shapes, they fold away once sizes are fixed",
                "fix-shapes, fold-constants",
            )


def _names(values: list[ir.Value]) -> str:
    shown = ", ".join(repr(v.name) for v in values[:2])
    return f"{shown} and {len(values) - 2} more" if len(values) > 2 else shown


def _has_external_data(model: ir.Model) -> bool:
    return any(
        isinstance(v.const_value, MappedTensor)
        for graph in ir.all_graphs(model)
        for v in graph.initializers.values()
    )

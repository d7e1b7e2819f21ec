"""The manifest: what somebody needs to know who runs an exported model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt import ir
from graphopt.targets import Target, Violation

__all__ = ["SCHEMA", "describe"]

SCHEMA = "graphopt.export/1"


def describe(
    model: ir.Model,
    target: Target,
    *,
    pipeline: str,
    reports: Sequence[Mapping[str, Any]],
    violations: Sequence[Violation],
) -> dict[str, Any]:
    """Describe an exported model, but for its files.

    Args:
        model: The model as it is written.
        target: What it is for.
        pipeline: What was run.
        reports: Reports of the runs, as JSON.
        violations: What the target does not take of it.
    """
    return {
        "schema": SCHEMA,
        "versions": reports[-1]["versions"] if reports else {},
        "target": target.name,
        "providers": [
            {"name": name, "options": dict(options)} for name, options in target.with_options
        ],
        "session": {
            "graph_optimization_level": "ORT_ENABLE_ALL" if target.optimize else "ORT_DISABLE_ALL",
            "config": dict(target.session),
        },
        "opset": {
            domain or "ai.onnx": v for domain, v in sorted(model.graph.opset_imports.items())
        },
        "ir_version": model.ir_version,
        "inputs": [_value(v) for v in ir.inputs(model)],
        "outputs": [_value(v) for v in model.graph.outputs],
        "operators": dict(sorted(Counter(map(_key, ir.all_nodes(model))).items())),
        "quantization": _scheme(model, target),
        "violations": [_violation(v) for v in violations],
        "pipeline": pipeline,
        "runs": [_run(each) for each in reports],
    }


def _key(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _value(value: ir.Value) -> dict[str, Any]:
    dims = ir.dims(value)
    tensor = isinstance(value.type, ir.TensorType) and value.dtype is not None
    return {
        "name": value.name,
        "dtype": value.dtype.name.lower() if tensor and value.dtype is not None else None,
        "shape": None if dims is None else list(dims),
    }


def _scheme(model: ir.Model, target: Target) -> str | None:
    """The quantization scheme, if anything is quantized."""
    quantized = any(
        "uantizeLinear" in node.op_type or node.op_type.startswith("QLinear")
        for node in ir.all_nodes(model)
    )
    return target.scheme.name if quantized and target.scheme is not None else None


def _violation(each: Violation) -> dict[str, Any]:
    node = each.node
    return {
        "node": None if node is None else node.name or node.outputs[0].name,
        "operator": None if node is None else _key(node),
        "rule": each.rule,
        "reason": each.reason,
        "slow": each.slow,
    }


def _run(report: Mapping[str, Any]) -> dict[str, Any]:
    passes = [
        {"pass": p["text"], "status": p["status"], "reason": p["reason"]}
        for p in report["passes"]
        if p["status"] in ("ok", "reverted", "not-applicable")
    ]
    return {
        "pipeline": report["pipeline"],
        "before": report["before"],
        "after": report["after"],
        "passes": passes,
        "oracle": report["oracle"],
    }

"""Patterns that runtimes compute by one kernel, and that a fusion must therefore not take apart."""

from __future__ import annotations

from graphopt import ir

__all__ = ["end_of_kernel"]


def end_of_kernel(value: ir.Value) -> str | None:
    """What a multiplication or addition of ``value`` and a constant may be the last step of.

    ONNX Runtime looks for these patterns node by node (its GeluFusion, LayerNormFusion and
    SimplifiedLayerNormFusion). Folding the last step into the operator behind it saves one node and
    costs the kernel.

    Returns:
        "Gelu", "LayerNormalization", or None.
    """
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return None
    made_by = [_producer(v) for v in node.inputs]
    for other in made_by:
        if other is None:
            continue
        if other.op_type in ("Sqrt", "Reciprocal"):
            return "LayerNormalization"
        # x * (1 + Erf(x / sqrt(2))) * 0.5, and the same with Tanh
        steps = [_producer(v) for v in other.inputs]
        if other.op_type == "Add" and any(s and s.op_type in ("Erf", "Tanh") for s in steps):
            return "Gelu"
        # The multiplication by gamma, behind which beta is added
        if any(s and s.op_type in ("Sqrt", "Reciprocal") for s in steps) and (
            other.op_type in ("Mul", "Div")
        ):
            return "LayerNormalization"
    return None


def _producer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and not node.domain else None

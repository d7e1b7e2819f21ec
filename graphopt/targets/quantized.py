"""What targets require of models that are quantized already, as requirements made to measure."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from graphopt import ir
from graphopt.targets.profile import Requirement
from graphopt.targets.rules import given, quantized_role

__all__ = ["activation_types", "constant_scales", "float_bias", "weight_types", "zero_points_of_0"]

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def activation_types(
    allowed: Collection[str], source: str, *, hint: str = "", slow: bool = False
) -> Requirement:
    """Activations are quantized to one of these integer types."""

    def why(node: ir.Node) -> str | None:
        found = quantized_role(node)
        if found is None or found[0] != "activation" or found[1] is None:
            return None
        name = found[1].name.lower()
        return None if name in allowed else f"activations are {name}, not {' or '.join(allowed)}"

    return Requirement("activation-type", why, _QDQ, slow=slow, hint=hint, source=source)


def weight_types(allowed: Collection[str], source: str, *, hint: str = "") -> Requirement:
    """Constant weights are quantized to one of these integer types."""

    def why(node: ir.Node) -> str | None:
        found = quantized_role(node)
        if found is None or found[0] != "weight" or found[1] is None:
            return None
        name = found[1].name.lower()
        return None if name in allowed else f"weights are {name}, not {' or '.join(allowed)}"

    return Requirement("weight-type", why, _QDQ, hint=hint, source=source)


def constant_scales(source: str) -> Requirement:
    """Scales and zero points are constants."""

    def why(node: ir.Node) -> str | None:
        computed = [i for i in (1, 2) if (v := given(node, i)) is not None and ir.const(v) is None]
        return "its scale or zero point is computed, not constant" if computed else None

    return Requirement("constant-scales", why, _QDQ, hint="quantize statically", source=source)


def zero_points_of_0(source: str) -> Requirement:
    """Every zero point is 0."""

    def why(node: ir.Node) -> str | None:
        point = ir.array(given(node, 2))
        if point is None or not np.any(point):
            return None
        return "its zero point is not 0"

    return Requirement(
        "symmetric", why, _QDQ, hint="quantize symmetrically, to int8", source=source
    )


def float_bias(source: str) -> Requirement:
    """Biases are left in floating point."""

    def why(node: ir.Node) -> str | None:
        found = quantized_role(node)
        return "it is a quantized bias" if found is not None and found[0] == "bias" else None

    return Requirement(
        "float-bias", why, _QDQ, hint="leave biases in floating point", source=source
    )

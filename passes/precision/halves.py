"""What of a node can be 16-bit floats, by the types that its schema admits and by its numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from graphopt import calibration, ir

__all__ = ["LARGEST", "Peak", "Ports", "misfit", "ports"]

LARGEST = 65504.0
_HALF, _FLOAT = "tensor(float16)", "tensor(float)"
# Share of its norm that a constant may lose: rounding takes 0.0003, an epsilon of 1e-12 all of it.
_LOSS = 0.01
_CHUNK = 1 << 20
# ONNX Runtime computes these by their definitions where it has no kernel for 16 bits.
_OVERFLOWS = frozenset(
    {"MeanVarianceNormalization", "Mish", "ReduceL2", "ReduceLogSumExp", "Softplus"}
)


@dataclasses.dataclass(frozen=True)
class Ports:
    """Inputs and outputs of a node that change their type together.

    Attributes:
        inputs: Positions of 32-bit float inputs that become 16-bit ones.
        outputs: Positions of such outputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def ports(node: ir.Node) -> Ports | str | None:
    """What changes where a node computes in 16 bits.

    Returns:
        The ports; or why there are none; None where the node has nothing to do with 32-bit floats.
    """
    inputs = [i for i, v in enumerate(node.inputs) if _is_float(v)]
    outputs = [i for i, v in enumerate(node.outputs) if v.name and _is_float(v)]
    if not inputs and not outputs:
        return None
    if any(ir.subgraphs(node)):
        return "its subgraphs stay in 32 bits"
    values = (v for v in (*node.inputs, *node.outputs) if v is not None)
    if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
        return "its sequence stays in 32 bits"
    schema: Any = ir.schema(node.domain, node.op_type, ir.opset(node, node.domain))
    if schema is None:
        return "nobody knows which types it admits"
    if "uantize" in node.op_type or node.op_type.startswith("QLinear"):
        return "it belongs to what is quantized already"
    if node.op_type in _OVERFLOWS:
        return "what it computes on the way may overflow"
    if not node.domain and node.op_type == "Cast":
        # Its type is an attribute.
        if inputs or ir.attr(node, "to") != int(ir.DataType.FLOAT):
            return "it converts between types"
        known = node.inputs[0].dtype if node.inputs[0] is not None else None
        if known is None or known in (ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            return "it converts between types"
        return Ports((), tuple(outputs))
    admitted = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound = {_formal(schema.inputs, i) for i in range(len(node.inputs))}
    half_inputs = tuple(i for i in inputs if _HALF in admitted.get(_formal(schema.inputs, i), ()))
    for i in outputs:
        kind = _formal(schema.outputs, i)
        if kind not in bound:
            return "an attribute decides its type"
        if _HALF not in admitted.get(kind, ()):
            return f"{node.op_type} of this opset does not compute in 16 bits"
    if not half_inputs:
        return f"{node.op_type} of this opset does not compute in 16 bits"
    return Ports(half_inputs, tuple(outputs))


def _formal(parameters: Any, position: int) -> str:
    last: Any = parameters[min(position, len(parameters) - 1)]
    return str(last.type_str)


def _is_float(value: ir.Value | None) -> bool:
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype == ir.DataType.FLOAT
    )


def misfit(data: np.ndarray[Any, Any]) -> str | None:
    """Why a constant cannot be stored in 16 bits, or None."""
    flat = data.reshape(-1)
    lost = norm = 0.0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK].astype(np.float64)
        finite = np.isfinite(piece)
        if not finite.all():
            piece = np.where(finite, piece, 0.0)  # infinity and NaN are what they are in 16 bits
        if np.abs(piece).max(initial=0.0) > LARGEST:
            return f"holds {np.abs(piece).max():.3g}, beyond 65504"
        lost += float(np.square(piece - piece.astype(np.float16)).sum())
        norm += float(np.square(piece).sum())
    if lost > _LOSS**2 * norm:
        return "holds numbers too small for 16 bits"
    return None


class Peak(calibration.Observer):
    """The largest magnitude.

    Attributes:
        largest: Largest magnitude of a number so far; infinite ones do not count.
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, array: np.ndarray[Any, Any]) -> None:
        """See the base class."""
        size = np.abs(array)
        self.largest = max(self.largest, float(size.max(initial=0.0, where=np.isfinite(size))))

    def merge(self, other: Peak) -> None:
        """See the base class."""
        self.largest = max(self.largest, other.largest)

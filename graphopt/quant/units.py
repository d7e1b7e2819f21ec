"""What of a model could compute on integers: units, tensors between them, and why not others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from graphopt import ir
from graphopt.targets import IntegerKernel, Scheme

__all__ = ["Unit", "Units"]

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_CLIPS = frozenset({"Relu", "Clip"})
# ONNX Runtime 1.32 moves DequantizeLinear behind these (qdq_propagation.cc), and aborts the process
# where a subgraph reads what they write.
_PASSED = frozenset(
    {"Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """A node that has an integer kernel, with the activation that rounding to integers does.

    Attributes:
        node: The node.
        kernel: Its integer kernel.
        activation: A Relu or Clip that is the only use of its result, or None.
        inputs: Activations that it reads, each once, constants among them.
        output: What it writes, behind the activation.
        weight: Its constant weight, or None.
        bias: Its constant bias, or None.
    """

    node: ir.Node
    kernel: IntegerKernel
    activation: ir.Node | None
    inputs: tuple[ir.Value, ...]
    output: ir.Value
    weight: ir.Value | None
    bias: ir.Value | None

    @property
    def moves(self) -> bool:
        """Whether the output holds elements of the input, and nothing is computed."""
        return self.kernel.passes_through

    @property
    def name(self) -> str:
        """Name of the value that the node computes."""
        return self.node.outputs[0].name or ""


class Units:
    """The units of a model's main graph for static quantization, in order.

    Attributes:
        units: By node.
        reasons: Why a floating-point node is none, by node.
    """

    def __init__(self, model: ir.Model, scheme: Scheme, *, skip: Sequence[str] = ()) -> None:
        """Find the units.

        Args:
            model: A model in normal form with types inferred.
            scheme: What the target has integer kernels for.
            skip: Glob patterns of names of nodes, or of values they compute, and operators, that
                stay as they are.
        """
        self.model, self.scheme = model, scheme
        self.units: dict[ir.Node, Unit] = {}
        self.reasons: dict[ir.Node, str] = {}
        self._parents: dict[ir.Value, ir.Value] = {}
        self._inward = _moved_inward(model)
        absorbed: set[ir.Node] = set()
        for node in model.graph:
            if node in absorbed or not any(map(is_float, node.outputs)):
                continue
            found = self._unit(node, skip)
            if isinstance(found, str):
                self.reasons[node] = found
                continue
            self.units[node] = found
            if found.activation is not None:
                absorbed.add(found.activation)
            if found.moves:
                for value in found.inputs:
                    self._join(value, found.output)
                for other in outputs(found)[1:]:
                    self._join(found.output, other)

    def __iter__(self) -> Iterator[Unit]:
        """Iterate over the units in the order of the graph."""
        return iter(self.units.values())

    def __len__(self) -> int:
        """Number of units."""
        return len(self.units)

    def root(self, value: ir.Value) -> ir.Value:
        """One value for all that have to share scale and zero point with ``value``."""
        while (parent := self._parents.get(value, value)) is not value:
            value = parent
        return value

    def group(self, value: ir.Value) -> list[ir.Value]:
        """All values that have to share scale and zero point with ``value``."""
        root = self.root(value)
        return [v for v in self._parents if self.root(v) is root] or [value]

    def tensors(self) -> list[ir.Value]:
        """Activations that some unit reads or writes, each once, in order."""
        found: dict[ir.Value, None] = {}
        for unit in self:
            found |= dict.fromkeys((*unit.inputs, *outputs(unit)))
        return list(found)

    def _join(self, one: ir.Value, other: ir.Value) -> None:
        for value in (one, other):
            self._parents.setdefault(value, value)
        self._parents[self.root(other)] = self.root(one)

    def _unit(self, node: ir.Node, skip: Sequence[str]) -> Unit | str:
        if ir.matches(node, skip):
            return "it is among those to skip"
        kernel = self.scheme.kernel(node)
        if isinstance(kernel, str):
            return kernel
        weight = _constant(node, kernel.weight)
        positions = range(len(node.inputs)) if kernel.activations is None else kernel.activations
        inputs: dict[ir.Value, None] = {}
        for i in positions:
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and not (value is weight and i == kernel.weight):
                inputs[value] = None
        if kernel.weight is not None and weight is None:
            computed = node.inputs[kernel.weight]
            if computed is not None:
                inputs[computed] = None
        if not inputs or all(ir.const(v) is not None for v in inputs):
            return "it reads constants only"
        if not all(is_float(v) for v in (*inputs, node.outputs[0])):
            return "it does not compute in float32"
        if weight is not None and not finite(weight):
            return "its weight holds NaN or infinity"
        if weight is not None and 0 in (ir.dims(weight) or ()):
            return "its weight is empty"
        if weight is not None and node.op_type in _PRODUCTS and ir.rank(weight) != 2:
            return "its weight is no matrix"
        bias = _constant(node, kernel.bias)
        if bias is not None and not _by_channel(bias, weight, kernel.axis(node)):
            return f"its bias of shape {list(ir.dims(bias) or ())} is not one number per channel"
        constants = (*inputs, bias)
        if any(v is not None and ir.const(v) is not None and not finite(v) for v in constants):
            return "a constant that it reads holds NaN or infinity"
        if any(v in self._inward for v in node.outputs):
            return "what it writes is moved into a subgraph, and ONNX Runtime would abort"
        fixed = kernel.passes_through or kernel.output is not None  # its range ends elsewhere
        activation = None if fixed else self._activation(node, skip)
        if activation is not None and activation.outputs[0] in self._inward:
            return "what it writes is moved into a subgraph, and ONNX Runtime would abort"
        output = node.outputs[0] if activation is None else activation.outputs[0]
        return Unit(node, kernel, activation, tuple(inputs), output, weight, bias)

    def _activation(self, node: ir.Node, skip: Sequence[str]) -> ir.Node | None:
        """The Relu or Clip that a range ending where its bounds are makes redundant."""
        out = node.outputs[0]
        form = self.scheme.activation
        if not self.scheme.drops_relu or form.symmetric or out.is_graph_output():
            return None
        uses = tuple(out.uses())
        if len(uses) != 1 or uses[0].idx != 0:
            return None
        user = uses[0].node
        if user.domain or user.op_type not in _CLIPS or user.graph is not node.graph:
            return None
        if ir.matches(user, skip):
            return None
        low, high = clip_bounds(user)
        # The range contains 0, so that it has to be within the bounds, and they be known.
        return user if low <= 0 <= high and low < high else None


def _by_channel(bias: ir.Value, weight: ir.Value | None, axis: int) -> bool:
    """Whether a bias is a number, or one for each channel along the last axis."""
    shape, channels = ir.static_shape(bias), None if weight is None else ir.static_shape(weight)
    if shape is None or channels is None:
        return shape is not None
    allowed = (1, channels[axis % len(channels)])
    return all(d == 1 for d in shape[:-1]) and (not shape or shape[-1] in allowed)


def outputs(unit: Unit) -> tuple[ir.Value, ...]:
    """All activations that a unit writes; only what moves data has several of them."""
    return (unit.output, *(v for v in unit.node.outputs[1:] if v.name and is_float(v)))


def _moved_inward(model: ir.Model) -> set[ir.Value]:
    """Values that operators which ONNX Runtime moves DequantizeLinear behind bring to subgraphs."""
    found: set[ir.Value] = set()
    for node in reversed(model.graph):
        if node.op_type not in _PASSED or node.domain:
            continue
        reads = (use.node for v in node.outputs for use in v.uses())
        if any(r.graph is not model.graph for r in reads) or found & set(node.outputs):
            found |= {v for v in (*node.outputs, node.inputs[0]) if v is not None}
    return found


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Bounds of a Relu or Clip; NaN where they are computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if ir.opset(node) < 11:
        return float(ir.attr(node, "min", -np.inf)), float(ir.attr(node, "max", np.inf))
    bounds = []
    for i, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[i] if i < len(node.inputs) else None
        data = np.asarray(default) if value is None else ir.array(value)
        bounds.append(float(data.reshape(())) if data is not None and data.size == 1 else np.nan)
    return bounds[0], bounds[1]


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype == ir.DataType.FLOAT
    )


def finite(value: ir.Value) -> bool:
    """Whether a constant holds finite numbers only."""
    data = ir.array(value)
    return data is not None and bool(np.isfinite(data).all())


def _constant(node: ir.Node, position: int | None) -> ir.Value | None:
    value = node.inputs[position] if position is not None and position < len(node.inputs) else None
    return value if ir.const(value) is not None else None

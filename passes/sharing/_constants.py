"""Which constants can share few values, and their data in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from graphopt import Context, ir
from graphopt.ir.content import Content
from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.problem import why_fixed
from graphopt.sharing.problems import ZEROS

__all__ = ["Constant", "constants", "pieces"]

Array = np.ndarray[Any, Any]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
# Operators whose 8-bit inputs are numbers, rather than anything that bytes can be.
_QUANTIZED = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
# Operators that sum products with what they read, or pick rows of it; anchors of detectors and
# tables of sines are read by others.
_WEIGHING = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "EmbedLayerNormalization", "FusedConv",
    "FusedGemm", "FusedMatMul", "GRU", "Gather", "Gemm", "LSTM", "MatMul", "MultiHeadAttention",
    "RNN",
})  # fmt: skip
# Operators whose result has the numbers of what they read.
_VIEWS = frozenset({
    "Cast", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
# Elements of a piece of a constant.
_PIECE = 1 << 22
# Elements of a piece that tell whether it has many values.
_SAMPLE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A constant whose numbers may become few.

    Attributes:
        value: The constant.
        layer: The layer that alone reads it, where its weights can be fitted; None otherwise.
        rows: Rows of it as a matrix: outputs of the layer, otherwise its first axis.
        columns: Columns of this matrix.
        listed: How many elements are not zero, where zeros stay zeros; None otherwise.
    """

    value: ir.Value
    layer: Layer | None
    rows: int
    columns: int
    listed: int | None

    @property
    def name(self) -> str:
        """Name of the constant."""
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        """Its data."""
        found = ir.const(self.value)
        assert found is not None
        return found

    @property
    def whole(self) -> bool:
        """Whether its numbers are integers, and stay so."""
        return self.tensor.dtype in _INTEGERS


def constants(
    model: ir.Model, skip: Sequence[str], least: int, entries: int, *, fit: bool, code: bool,
    ctx: Context | None = None,
) -> list[Constant]:  # fmt: skip
    """The constants that may get few values; the reasons of others are reported.

    Args:
        model: The model.
        skip: Patterns of names of constants, or of operators, names and outputs of nodes.
        least: Numbers that a constant has at least.
        entries: Values that it has more than.
        fit: Whether there are samples that layers can be fitted to.
        code: Whether they are to be stored in fewer bytes, which those of subgraphs cannot.
        ctx: Where reasons go, if anywhere.
    """
    fitted = {each.node.inputs[1]: each for each in layers(model) if why_fixed(each) is None}
    found = []
    above = set(model.graph)
    for value in model.graph.initializers.values():
        tensor = ir.const(value)
        if tensor is None or value.is_graph_output() or not value.uses():
            continue
        shape = tuple(tensor.shape.numpy())
        nodes = [use.node for use in value.uses()]
        numbers = tensor.dtype in _FLOATS or (
            tensor.dtype in _INTEGERS and all(n.op_type in _QUANTIZED for n in nodes)
        )
        if not numbers or sum(n > 1 for n in shape) < 2:
            continue  # vectors are few bytes, and much depends on each of their numbers
        layer = fitted.get(value)
        if layer is not None and layer.adds is not None:
            nodes.append(layer.adds)
        why = _why_not(value, nodes, skip, least) or _no_weight(value)
        if why is None and code and not above.issuperset(nodes):
            why = "a subgraph uses it, so that it would not take fewer bytes"
        why = why or _unlike(tensor, entries)
        if why is not None:
            if ctx is not None:
                ctx.decline("share", why)
        else:
            layer = layer if fit else None
            rows = shape[0] if layer is None else layer.outputs
            zeros = sum(int((part == 0).sum()) for part in pieces(tensor))
            found.append(Constant(
                value, layer, rows, tensor.size // rows,
                tensor.size - zeros if zeros >= ZEROS * tensor.size else None,
            ))  # fmt: skip
    return found


def pieces(tensor: ir.TensorProtocol, multiple: int = 1) -> Iterator[Array]:
    """The elements of a tensor, some at a time, so that those of a file stay there.

    Args:
        tensor: Of a type that NumPy knows.
        multiple: What the number of elements of each piece is divisible by.
    """
    content, dtype = Content(tensor), tensor.dtype.numpy()
    size = max(_PIECE // multiple, 1) * multiple * dtype.itemsize
    for at in range(0, content.nbytes, size):
        yield content.read(at, size).view(dtype)


def _why_not(
    value: ir.Value, nodes: Sequence[ir.Node], skip: Sequence[str], least: int
) -> str | None:
    """Why a constant is not asked for."""
    named = any(fnmatchcase(value.name or "", pattern) for pattern in skip)
    if named or any(ir.matches(node, skip) for node in nodes):
        return "skip names it"
    tensor = ir.const(value)
    if tensor is not None and tensor.size < least:
        return f"it has fewer than {least} numbers (min-weights)"
    return None


def _no_weight(value: ir.Value) -> str | None:
    """Why a constant need not be what products or rows of a table make of it."""
    pending: list[ir.Value] = [value]
    seen: set[ir.Value] = set()
    while pending:
        for use in pending.pop().uses():
            node = use.node
            if node.op_type in _VIEWS and not node.domain:
                pending += [made for made in node.outputs if made not in seen]
                seen.update(node.outputs)
            elif node.op_type not in _WEIGHING | _QUANTIZED:
                return f"{node.op_type} reads it, where each number may matter"
    return None


def _unlike(tensor: ir.TensorProtocol, entries: int) -> str | None:
    """Why numbers are not to be replaced: there are few already, or they are none."""
    distinct: Array = np.zeros(0)
    for part in pieces(tensor):
        if not np.isfinite(part).all():
            return "it holds NaN or infinity"
        if len(distinct) <= entries:
            # A sample tells most: only what has few values there is looked at in full.
            some = np.unique(part[:: max(len(part) // _SAMPLE, 1)])
            distinct = np.union1d(distinct, some if len(some) > entries else part)
    return None if len(distinct) > entries else f"it has no more than {entries} values already"

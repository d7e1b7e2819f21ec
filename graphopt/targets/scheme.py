"""How a target wants numbers quantized: formats of tensors, and operators with integer kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

from graphopt import ir

__all__ = ["Form", "Format", "IntegerKernel", "Predicate", "Scheme"]

Form = Literal["static", "dynamic", "weight-only"]
"""How a node computes: from activations quantized with known scales, from activations that are
quantized when their range is seen, or in floating point from weights stored as integers."""

Predicate = Callable[[ir.Node], "str | None"]
"""Why a node is not among those that a rule is about, or None if it is."""

_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "uint4": (0, 15),
    "int4": (-8, 7),
    "int32": (-(2**31), 2**31 - 1),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """How the elements of a tensor are stored as integers.

    Attributes:
        dtype: ONNX element type, in lower case.
        symmetric: The zero point is 0 for signed types and the middle for unsigned ones.
        granularity: One scale for the tensor, for each channel of it, or for each block of
            ``block`` elements along the input channels.
        block: Elements of a block; 0 without blocks.
        levels: Integers used, where these are fewer than the type holds (128 where products of
            pairs would saturate 16 bits); 0 for all.
    """

    dtype: str
    symmetric: bool = False
    granularity: Literal["tensor", "channel", "block"] = "tensor"
    block: int = 0
    levels: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer. Symmetric signed formats do without the smallest of all."""
        low, high = _RANGES[self.dtype]
        if self.levels:
            low, high = (-self.levels // 2, self.levels // 2 - 1) if low else (0, self.levels - 1)
        return (-high, high) if low and self.symmetric else (low, high)

    @property
    def bits(self) -> int:
        """Bits of the integers that are used."""
        low, high = self.limits
        return math.ceil(math.log2(high - low + 1))


@dataclasses.dataclass(frozen=True)
class IntegerKernel:
    """An operator that the target computes on integers.

    Attributes:
        forms: How it may compute.
        activations: Inputs that are quantized activations; None for all of them.
        weight: Input that may be a quantized constant, or None. Where it is no constant, it is an
            activation like the others.
        weight_axis: Axis of the weight that scales per channel lie along, that of the output
            channels. Of Gemm it is that of a weight that is not transposed; :meth:`axis` knows.
        more_weights: Further inputs that are quantized constants like the weight, such as the
            recurrent weight of an LSTM.
        granularity: Of the weight, where the operator takes less than the scheme's format offers.
        bias: Input that is a bias, or None.
        passes_through: The output holds elements of the input and so has its scale and zero point.
        on_integers: An operator that moves data has to stand directly on integers, whatever the
            scheme says of others.
        output: Scale and zero point that the operator fixes for its output, or None.
        float_output: In static form it may give floating point numbers, too: a last node needs no
            QuantizeLinear behind it.
        where: Why a node is not among those that have the kernel, or None.
        source: Where that is known from.
    """

    forms: tuple[Form, ...] = ("static",)
    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    weight_axis: int = 0
    more_weights: tuple[int, ...] = ()
    granularity: Literal["tensor", "channel", "block"] | None = None
    bias: int | None = None
    passes_through: bool = False
    on_integers: bool = False
    output: tuple[float, int] | None = None
    float_output: bool = False
    where: Predicate | None = None
    source: str = ""

    def axis(self, node: ir.Node) -> int:
        """Axis of the weight of ``node`` that scales per channel lie along."""
        return 0 if ir.attr(node, "transB", 0) else self.weight_axis


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a target wants a model quantized.

    Attributes:
        name: For people, such as ``u8s8``.
        activation: Format of activations.
        weight: Format of constant weights.
        bias: ``int32`` with the product of the scales of input and weight, or ``float``.
        kernels: Operators with integer kernels, by name; those of other domains as
            ``com.microsoft.Attention``. All others stay in floating point.
        spelling: ``qdq`` (QuantizeLinear and DequantizeLinear around the operator) or
            ``qoperator`` (QLinearConv and its like).
        drops_relu: A Relu or Clip disappears where the zero point of what follows is the lowest
            integer.
        moves: Operators that only move data stand between DequantizeLinear and QuantizeLinear, as
            all others do (``qdq``), or directly on the integers.
        whole: The target takes graphs that are quantized throughout, boundaries included.
        source: Where that is known from.
    """

    name: str
    activation: Format
    weight: Format
    kernels: Mapping[str, IntegerKernel]
    bias: Literal["int32", "float"] = "int32"
    spelling: Literal["qdq", "qoperator"] = "qdq"
    drops_relu: bool = True
    moves: Literal["qdq", "integers"] = "qdq"
    whole: bool = False
    source: str = ""

    def kernel(self, node: ir.Node, form: Form = "static") -> IntegerKernel | str:
        """The integer kernel of a node, or why it has none."""
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found = self.kernels.get(name)
        if found is None or form not in found.forms:
            return f"{self.name} has no {form} integer kernel for {name}"
        if form != "static":
            for position in (found.weight, *found.more_weights):
                if position is not None and ir.const(node.inputs[position]) is None:
                    return f"the {form} form needs a constant weight, and this one is computed"
        reason = None if found.where is None else found.where(node)
        return found if reason is None else reason

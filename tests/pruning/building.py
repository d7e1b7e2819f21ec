"""A small writer of models: nodes and weights in, ONNX text syntax out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt import ir

Array = np.ndarray[Any, Any]

_TYPES = {"float32": "float", "int64": "int64", "int32": "int32", "int8": "int8", "uint8": "uint8"}
_SIZES = {"n": 2, "s": 5}  # of the free dims when a network is fed


@dataclass(frozen=True, repr=False)
class Network:
    """A model, inputs to run it on, and whether all that it computes is exact in float32."""

    model: ir.Model
    feeds: list[dict[str, Array]]
    exact: bool


class Net:
    """Nodes and weights of a model that is being written.

    Weights are small integers, few of them other than zero, where `exact`: then no sum is rounded
    and the order in which kernels add does not matter. Otherwise they are as after initialization.
    """

    def __init__(self, *, exact: bool, opset: int = 17) -> None:
        self.exact = exact
        self.opset = opset
        self.rng = np.random.default_rng(0)
        self.lines: list[str] = []
        self.constants: list[str] = []
        self.inputs: dict[str, tuple[str, Sequence[int | str], int]] = {}
        self.count = 0

    def input(self, name: str, *shape: int | str, kind: str = "float", high: int = 4) -> str:
        """An input of the model; integers are drawn below `high`."""
        self.inputs[name] = (kind, shape, high)
        return name

    def const(self, data: Any, name: str = "") -> str:
        """A constant: floats become float32, integers int64 unless they are arrays."""
        array = np.asarray(data)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or self.fresh("k")
        values = ", ".join(str(v) for v in array.ravel().tolist())
        kind = _TYPES[str(array.dtype)] + _dims(array.shape)
        self.constants.append(f"{kind} {name} = {{{values}}}")
        return name

    def weight(self, *shape: int, fan: int) -> str:
        """A weight, of which `fan` elements make one output."""
        return self.const(self.draw(*shape, fan=fan))

    def draw(self, *shape: int, fan: int) -> Array:
        if not self.exact:
            return self.rng.normal(size=shape) / np.sqrt(fan)
        signs = self.rng.choice([-1.0, 1.0], shape)
        return signs * (self.rng.random(shape) < 6 / fan)

    def vector(self, size: int) -> Array:
        """For every channel a number that is not zero."""
        drawn = self.rng.normal(size=size) / 4 + 1
        return self.rng.choice([-1.0, 1.0], size) if self.exact else drawn

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        (output,) = self.multiple(op, *inputs, names=[name or self.fresh(op.lower())], **attributes)
        return output

    def multiple(
        self, op: str, *inputs: str, names: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Add a node; its outputs have these names, and absent ones are empty."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        given = ", ".join(f"{k} = {_attribute(v)}" for k, v in attributes.items())
        self.lines.append(
            f"{', '.join(names)} = {op}{f' <{given}>' if given else ''} ({', '.join(inputs)})"
        )
        return names

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count}"

    def network(self, **outputs: Sequence[int | str]) -> Network:
        """The model with these outputs, all float."""
        given = ", ".join(f"{k}{_dims(s)} {n}" for n, (k, s, _) in self.inputs.items())
        made = ", ".join(f"float{_dims(s)} {n}" for n, s in outputs.items())
        text = (
            f'<ir_version: 8, opset_import: ["": {self.opset}]>\n'
            f"net ({given}) => ({made}) <{', '.join(self.constants)}> {{\n"
            + "\n".join(self.lines)
            + "\n}"
        )
        return Network(ir.parse_text(text), [self._feeds(0), self._feeds(1)], self.exact)

    def _feeds(self, seed: int) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        found: dict[str, Array] = {}
        for name, (kind, dims, high) in self.inputs.items():
            shape = [_SIZES[d] if isinstance(d, str) else d for d in dims]
            if kind == "bool":  # each way once
                found[name] = np.full(shape, bool(seed))
            elif kind == "int64":
                found[name] = rng.integers(0, high, shape)
            else:
                drawn = rng.integers(-3, 4, shape) if self.exact else rng.normal(size=shape)
                found[name] = drawn.astype(np.float32)
        return found

    # --- layers ------------------------------------------------------------------------------

    def conv(
        self, x: str, inside: int, outside: int, k: int = 3, *, name: str = "", stride: int = 1,
        group: int = 1, dilation: int = 1, rank: int = 2, bias: bool = True,
    ) -> str:  # fmt: skip
        """A convolution whose output is as large as its input, divided by `stride`."""
        per = inside // group
        w = self.weight(outside, per, *[k] * rank, fan=per * k**rank)
        b = [self.const(self.vector(outside))] if bias else []
        extra = {"strides": [stride] * rank} if stride > 1 else {}
        extra |= {"dilations": [dilation] * rank} if dilation > 1 else {}
        if k > 1:
            extra["pads"] = [dilation * (k // 2)] * 2 * rank
        return self.add("Conv", x, w, *b, name=name, group=group, kernel_shape=[k] * rank, **extra)

    def conv_bn(self, x: str, inside: int, outside: int, k: int = 3, **options: Any) -> str:
        """A convolution, which carries the name, and its BatchNormalization."""
        return self.batch_norm(self.conv(x, inside, outside, k, bias=False, **options), outside)

    def batch_norm(self, x: str, channels: int) -> str:
        tiny = 2.0**-10  # with it the variance is one, exactly
        scale, shift, mean = (self.const(self.vector(channels)) for _ in range(3))
        variance = self.const(np.full(channels, 1 - tiny))
        return self.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=tiny)

    def linear(
        self, x: str, inside: int, outside: int, *, name: str = "", out: str = "", bias: bool = True
    ) -> str:
        """MatMul and Add, as for inputs of more than two dims; the product carries the name."""
        w = self.weight(inside, outside, fan=inside)
        if not bias:
            return self.add("MatMul", x, w, name=name or out)
        product = self.add("MatMul", x, w, name=name)
        return self.add("Add", self.const(self.vector(outside)), product, name=out)

    def gemm(self, x: str, inside: int, outside: int, name: str = "") -> str:
        w = self.weight(outside, inside, fan=inside)
        b = self.const(self.vector(outside))
        return self.add("Gemm", x, w, b, name=name, transB=1)

    def head(self, x: str, channels: int, classes: int = 4) -> str:
        """Global pooling and a classifier."""
        x = self.add("Flatten", self.add("GlobalAveragePool", x), axis=1)
        return self.gemm(x, channels, classes, name="logits")

    def reshape(self, x: str, *shape: int, name: str = "") -> str:
        return self.add("Reshape", x, self.const(np.array(shape, np.int64)), name=name)

    def transpose(self, x: str, *perm: int, name: str = "") -> str:
        return self.add("Transpose", x, name=name, perm=list(perm))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def dim(self, x: str, axis: int) -> str:
        """A dim of a tensor as a vector of one element, read at run time."""
        picked = self.add("Gather", self.add("Shape", x), self.const(np.array(axis, np.int64)))
        return self.add("Unsqueeze", picked, self.ints(0))

    def join(self, *parts: str) -> str:
        return self.add("Concat", *parts, axis=0)


def _dims(shape: Sequence[int | str]) -> str:
    return f"[{','.join(map(str, shape))}]" if shape else ""


def _attribute(value: Any) -> str:
    if isinstance(value, str):  # a graph is written as it is
        return value if "=>" in value else f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_attribute, value))}]"
    return str(value)

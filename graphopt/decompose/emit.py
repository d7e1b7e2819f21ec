"""The operators that compute a layer in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.decompose.forms import Form, shapes, split_axis
from graphopt.reconstruct import Layer
from graphopt.rewrite import Rewriter

__all__ = ["emit", "made_up", "stand_in"]

Array = np.ndarray[Any, Any]


def made_up(form: Form, layer: Layer, rng: np.random.Generator) -> list[Array]:
    """Factors of the right sizes, ``[groups, ...]``, under which numbers stay in range."""
    found = []
    for shape in shapes(form, layer):
        factor = rng.normal(size=(layer.groups, *shape))
        found.append(factor / np.sqrt(np.prod(shape) / shape[-1]))
    return found


def stand_in(rw: Rewriter, layer: Layer, form: Form, rng: np.random.Generator) -> None:
    """Replace a layer by parts with made-up weights, and the bias that fitting gives it."""
    if layer.takes_bias and layer.adds is None and layer.node.inputs[2:3] in ((), (None,)):
        rw.set_input(layer.node, 2, rw.const(np.zeros(layer.outputs, np.float32), "bias"))
    emit(rw, layer, form, made_up(form, layer, rng))


def emit(rw: Rewriter, layer: Layer, form: Form, factors: Sequence[Array]) -> None:
    """Replace a layer; its bias stays.

    Args:
        rw: Rewriter of the model.
        layer: The layer.
        form: How it is computed.
        factors: Those of all groups, ``[groups, ...]``.
    """
    weight = layer.node.inputs[1]
    assert weight is not None
    name, dtype = weight.name or "weight", np.float32
    arrays = [np.ascontiguousarray(f, dtype=dtype) for f in factors]
    with rw.at(layer.node):
        if layer.patches is None:
            _products(rw, layer, name, [f[0] for f in arrays])
            return
        out = _Convolutions(rw, layer, name).parts(form, arrays)
    rw.replace(layer.node.outputs[0], out)
    rw.erase(layer.node)


def _products(rw: Rewriter, layer: Layer, name: str, factors: Sequence[Array]) -> None:
    """Two matrix products; the second is the layer's own node, which knows where its bias is."""
    first, second = (f.reshape(-1, f.shape[-1]) for f in factors)
    inner = rw.op("MatMul", layer.input, rw.const(first, f"{name}.in"))
    rw.set_input(layer.node, 0, inner)
    alpha = ir.attr(layer.node, "alpha", 1.0) if layer.node.op_type == "Gemm" else 1.0
    last = second / np.float32(alpha)
    laid = last if layer.turned else np.ascontiguousarray(last.T)
    rw.set_input(layer.node, 1, rw.const(laid, f"{name}.out"))


@dataclasses.dataclass(frozen=True)
class _Convolutions:
    rw: Rewriter
    layer: Layer
    name: str

    def parts(self, form: Form, factors: Sequence[Array]) -> ir.Value:
        assert self.layer.patches is not None
        value, kernel = self.layer.input, self.layer.patches.kernel
        axes = tuple(range(len(kernel)))
        if form.kind == "depthwise":
            return self._depthwise(form, factors)
        if form.kind == "spatial":
            first, rest = (f.transpose(0, 3, 1, 2) for f in factors)
            at = split_axis(kernel)
            before, behind = kernel[:at], kernel[at:]
            inner = first.reshape(*first.shape[:3], *before, *(1 for _ in behind))
            outer = rest.reshape(*rest.shape[:3], *(1 for _ in before), *behind)
            value = self._conv(value, inner, "first", axes[:at])
            return self._conv(value, outer, "rest", axes[at:], last=True)
        if form.kind in ("input", "tucker"):
            value = self._conv(value, self._ones(factors[0].transpose(0, 2, 1)), "in", ())
        core = (factors[0] if form.kind == "output" else factors[1]).transpose(0, 3, 1, 2)
        laid = core.reshape(*core.shape[:3], *kernel)
        value = self._conv(value, laid, "core", axes, last=form.kind == "input")
        if form.kind == "input":
            return value
        return self._conv(value, self._ones(factors[-1].transpose(0, 2, 1)), "out", (), last=True)

    def _depthwise(self, form: Form, factors: Sequence[Array]) -> ir.Value:
        layer = self.layer
        assert layer.patches is not None
        kernels, points = factors  # [groups, terms, c, k] and [groups, terms, c, o]
        axes = tuple(range(len(layer.patches.kernel)))
        # Kernels of unit length, so that none is too small or large for integers.
        length = np.linalg.norm(kernels, axis=3, keepdims=True)
        length = np.where(length > 0, length, 1)
        kernels, points = kernels / length, points * length
        terms: list[ir.Value] = []
        for t in range(form.ranks[0]):
            single = kernels[:, t].reshape(-1, 1, 1, *layer.patches.kernel)
            terms.append(self._conv(layer.input, single, f"depth{t}", axes))
        if form.joined:
            whole = points[0].transpose(2, 0, 1).reshape(points.shape[3], -1)[None]
            joined = self.rw.op("Concat", *terms, axis=1)
            return self._conv(joined, self._ones(whole), "point", (), last=True)
        total: ir.Value | None = None
        for t, term in enumerate(terms):
            laid = self._ones(points[:, t].transpose(0, 2, 1))
            part = self._conv(term, laid, f"point{t}", (), last=t == 0)
            total = part if total is None else self.rw.op("Add", total, part)
        assert total is not None
        return total

    def _ones(self, weights: Array) -> Array:
        """``[groups, outputs, inputs]`` as kernels of one element."""
        assert self.layer.patches is not None
        return weights.reshape(*weights.shape, *(1 for _ in self.layer.patches.kernel))

    def _conv(
        self,
        value: ir.Value,
        weights: Array,
        part: str,
        axes: Sequence[int],
        *,
        last: bool = False,
    ) -> ir.Value:
        """A convolution that moves along some axes as the layer does, along others by ones.

        Args:
            value: What it reads.
            weights: Of each group, ``[groups, outputs, inputs, *kernel]``.
            part: What it is called.
            axes: The axes.
            last: Whether it adds the bias.
        """
        node, patches = self.layer.node, self.layer.patches
        assert patches is not None
        n = len(patches.kernel)
        strides, pads, more = patches.strides, patches.pads, None

        def along(values: Sequence[int], other: int) -> list[int]:
            return [v if i in axes else other for i, v in enumerate(values or (other,) * n)]

        transposed = self.layer.transposed and bool(axes)
        if transposed:
            # What it cuts off, which is not what its input is padded by.
            valid = ir.attr(node, "auto_pad", "NOTSET") == "VALID"
            strides, pads = patches.stretch, () if valid else tuple(ir.attr(node, "pads", ()))
            more = along(tuple(ir.attr(node, "output_padding", ())), 0)
            weights = weights.swapaxes(1, 2)
        pads = pads or (0,) * 2 * n
        laid = np.ascontiguousarray(weights.reshape(-1, *weights.shape[2:]))
        bias = node.inputs[2] if last and len(node.inputs) > 2 else None
        return self.rw.op(
            "ConvTranspose" if transposed else "Conv",
            value, self.rw.const(laid, f"{self.name}.{part}"), bias,
            kernel_shape=list(laid.shape[2:]), strides=along(strides, 1),
            pads=along(pads[:n], 0) + along(pads[n:], 0), dilations=along(patches.dilations, 1),
            group=len(weights), output_padding=more,
        )  # fmt: skip

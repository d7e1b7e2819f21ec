"""Dynamic quantization of a model: which nodes, and the forms worth trying."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Collection
from typing import Any

from graphopt import ir
from graphopt.calibration import Samples
from graphopt.measure import Quality, Trial
from graphopt.quant.dynamic import dynamic_obstacle, quantize_attention, quantize_lstm
from graphopt.quant.measure import Candidate
from graphopt.quant.products import quantize_products, quantize_tables
from graphopt.quant.residuals import keep_normalizations
from graphopt.quant.rounding import round_weights, weight_scales
from graphopt.rewrite import Rewriter
from graphopt.targets import Scheme, Target

__all__ = ["DynamicForm"]

_MICROSOFT = "com.microsoft"
_PRODUCTS = frozenset({"MatMul", "Gemm"})
# Shares of the noisiest products that are left in floating point in the forms that are tried.
_LEFT_OUT = (0.0, 0.05, 0.12, 0.25)

Finish = Callable[[ir.Model], None]


class DynamicForm:
    """The nodes of a model that a target computes with activations quantized when they are seen.

    Attributes:
        names: Names of the values that products compute; those of the main graph.
        layers: Names of the values that LSTMs and ONNX Runtime's Attention compute, those of
            subgraphs included.
        noises: Noise at the outputs from quantizing a product alone, by its name, once
            :meth:`candidates` has measured it.
    """

    def __init__(
        self, model: ir.Model, scheme: Scheme, target: Target, skip: tuple[str, ...] = ()
    ) -> None:
        """Find the nodes.

        Args:
            model: The model.
            scheme: What the target has kernels for.
            target: The target.
            skip: Patterns of what stays as it is.
        """
        self.model, self.scheme, self.target, self.skip = model, scheme, target, skip
        self.names = frozenset(
            n.outputs[0].name or "" for n in model.graph if self.fits(n) and n.op_type in _PRODUCTS
        )
        self.layers = frozenset(
            n.outputs[0].name or ""
            for n in ir.all_nodes(model)
            if n.op_type in _LAYERS and self.fits(n)
        )
        self.noises: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.names or self.layers)

    def fits(self, node: ir.Node) -> bool:
        """Whether a node has a dynamic form on the target."""
        return self.obstacle(node) is None

    def obstacle(self, node: ir.Node) -> str | None:
        """Why a node has no dynamic form on the target, or None if it has one."""
        if ir.matches(node, self.skip):
            return "it is among those to skip"
        kernel = self.scheme.kernel(node, "dynamic")
        if isinstance(kernel, str):
            return kernel
        if node.op_type in _LAYERS and _MICROSOFT not in self.target.domains:
            return f"{self.target.name} does not run operators of {_MICROSOFT}"
        return dynamic_obstacle(node)

    def write(
        self,
        model: ir.Model,
        data: Samples | None,
        *,
        without: Collection[str] = (),
        executor: concurrent.futures.Executor | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """Quantize a copy of the model in place.

        Args:
            model: The copy; nodes that are gone from it are passed over.
            data: Samples to smooth activations and round weights with, or None.
            without: Names of products that stay as they are.
            executor: Where samples run.
            cache: Folder where observations are kept.
        """
        ir.infer_shapes(model)
        rw = Rewriter(model)
        chosen = [
            n
            for n in model.graph
            if (name := n.outputs[0].name) in self.names
            and name not in without
            and n.op_type in _PRODUCTS
        ]
        granular = self.scheme.weight.granularity != "tensor"
        quantize_products(
            rw,
            chosen,
            data,
            limits=self.scheme.weight.limits,
            per_channel=granular,
            executor=executor,
            cache=cache,
        )
        for node in [n for n in ir.all_nodes(model) if n.op_type in _LAYERS and self.fits(n)]:
            _LAYERS[node.op_type](rw, node, self.scheme.weight.limits)
        quantize_tables(rw)
        if self.target.providers[0] == "CPUExecutionProvider":
            keep_normalizations(rw)
        rw.remove_initializers()

    def written(
        self, model: ir.Model, data: Samples | None, finish: Finish, **options: Any
    ) -> ir.Model:
        """A quantized copy of a model; see :meth:`write`."""
        copy = ir.clone(model)
        self.write(copy, data, **options)
        finish(copy)
        return copy

    def candidates(
        self,
        trial: Trial,
        data: Samples,
        finish: Finish,
        enough: Callable[[Quality], bool],
        *,
        executor: concurrent.futures.Executor | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> list[Candidate]:
        """The form with all products quantized; if that is not enough, others with fewer.

        Args:
            trial: The original on samples.
            data: Samples to smooth activations and round weights with.
            finish: Brings a quantized copy into its final spelling.
            enough: Whether a quality is, so that no more forms are needed.
            executor: Where samples run.
            cache: Folder where observations are kept.
        """
        found: list[Candidate] = []
        order: list[str] = []
        seen: set[int] = set()
        for share in _LEFT_OUT:
            count = round(share * len(order))
            if count in seen:
                continue
            seen.add(count)
            model = self.written(
                self.model, data, finish, without=order[:count], executor=executor, cache=cache
            )
            every = self.names | self.layers
            quantized = every.difference(order[:count])
            made = f"dynamic, {len(quantized)} of {len(every)} nodes"
            found.append(Candidate(made, model, dynamic=quantized))
            if enough(trial.quality(model)):
                break
            if not order and len(self.names) > 1:
                self.noises = self.noise(trial)
                order = sorted(self.noises, key=lambda n: -self.noises[n])
        return found

    def noise(self, trial: Trial) -> dict[str, float]:
        """Noise at the outputs from quantizing one product alone."""
        names = sorted(self.names)

        def build(name: str) -> ir.Model:
            copy = ir.clone(self.model)
            rw = Rewriter(copy)
            node = next(n for n in copy.graph if n.outputs[0].name == name)
            quantize_products(rw, [node], limits=self.scheme.weight.limits)
            rw.remove_initializers()
            return copy

        return dict(zip(names, trial.noises(build, names), strict=True))


def _attention(rw: Rewriter, node: ir.Node, limits: tuple[int, int]) -> None:
    data = ir.array(node.inputs[1])
    assert data is not None
    scale = weight_scales(data.T, limits)
    integers = round_weights(data.T, scale, limits).T.astype("int8")
    quantize_attention(rw, node, integers, scale[:, 0])


def _recurrent(rw: Rewriter, node: ir.Node, limits: tuple[int, int]) -> None:
    integers, scales = [], []
    for value in node.inputs[1:3]:
        data = ir.array(value)
        assert data is not None
        # A scale for each direction: the kernel is no faster, and no more accurate, with more.
        flat = data.reshape(len(data), -1)
        scale = weight_scales(flat, limits)
        integers.append(round_weights(flat, scale, limits).astype("int8").reshape(data.shape))
        scales.append(scale[:, 0])
    quantize_lstm(rw, node, (integers[0], integers[1]), (scales[0], scales[1]))


# What ONNX Runtime has operators of its own for, and what writes them.
_LAYERS = {"Attention": _attention, "LSTM": _recurrent}

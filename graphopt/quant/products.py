"""Dynamic int8 for the matrix products of a model, from sample data to the written form."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from graphopt import ir
from graphopt.calibration import ChannelStats, Observer, Samples, collect, from_batches
from graphopt.calibration.gram import BatchRanges, Gram
from graphopt.quant.constants import add_to_output
from graphopt.quant.dynamic import dynamic_obstacle, quantize_dynamic, quantize_rows
from graphopt.quant.rounding import mean_shift, round_weights, weight_scales
from graphopt.quant.smooth import Channels, Smoothed, smooth
from graphopt.rewrite import Rewriter

__all__ = ["Product", "quantize_products", "quantize_tables"]

Array = np.ndarray[Any, Any]
Data = Samples | Iterable[Mapping[str, Any]]

# Share of its squared largest value that counts as the least mean square of an input. Without it,
# weights of inputs that are large in few samples would be sacrificed for all others.
_PEAKS = 0.01


@dataclasses.dataclass(frozen=True)
class Product:
    """What became of a matrix product.

    Attributes:
        name: Name of the value that it computes.
        input: Name of the activation that it read.
        smoothed: What was done to the activation; None without sample data.
        snr: Expected power of the result over that of its error in dB; None without sample data.
    """

    name: str
    input: str
    smoothed: Smoothed | None
    snr: float | None


def quantize_products(
    rw: Rewriter,
    nodes: Iterable[ir.Node] | None = None,
    data: Data | None = None,
    *,
    limits: tuple[int, int] = (-127, 127),
    per_channel: bool = True,
    least: float = 2.0,
    rounding: Literal["nearest", "gram"] = "gram",
    correct_bias: bool = True,
    executor: concurrent.futures.Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> list[Product]:
    """Let MatMul and Gemm nodes compute on integers, their inputs quantized when they are there.

    With sample data, activations are smoothed first (see :func:`~graphopt.quant.smooth.smooth`),
    weights are rounded by what their errors do to outputs, and biases take back what that does to
    the means of outputs. Without, weights are rounded to the nearest integers.

    Args:
        rw: Rewriter of the model. Nodes are replaced.
        nodes: Nodes of the main graph, in program order; all that have a dynamic form if None.
            Those that have none are passed over.
        data: Samples, or batches of them as for ``from_batches``.
        limits: Smallest and largest integer of a weight, within int8.
        per_channel: A scale for each output channel.
        least: A Mul is inserted to smooth an activation where it divides the expected error by so
            much; infinity for never.
        rounding: To the ``nearest`` integer, or by the ``gram`` matrix of the inputs.
        correct_bias: Put back the means of outputs.
        executor: Where samples are observed, as for ``collect``.
        cache: Folder where observations are kept, as for ``collect``.

    Returns:
        What became of each node that was replaced.

    Raises:
        CalibrationError: The data do not fit the model.
    """
    chosen = [
        n for n in (rw.model.graph if nodes is None else nodes)
        if n.op_type in ("MatMul", "Gemm")
        and n.graph is rw.model.graph
        and dynamic_obstacle(n) is None
    ]  # fmt: skip
    names = [(n.outputs[0].name or "", n.inputs[0].name or "") for n in chosen]  # type: ignore[union-attr]
    smoothed: dict[str, Smoothed] = {}
    grams: dict[str, Gram] = {}
    spans: dict[str, BatchRanges] = {}
    if data is not None and chosen:
        samples = data if isinstance(data, Samples) else from_batches(data, rw.model)

        def look(*make: Observer) -> dict[str, list[Any]]:
            watch = {str(n.inputs[0].name): make for n in chosen}  # type: ignore[union-attr]
            return dict(collect(rw.model, watch, samples, executor=executor, cache=cache))

        seen = look(ChannelStats(-1), BatchRanges())
        channels = {n.inputs[0]: Channels.of(*seen[str(n.inputs[0].name)]) for n in chosen}  # type: ignore[union-attr]
        done = smooth(rw, chosen, channels, limits=limits, least=least)  # type: ignore[arg-type]
        smoothed = {v.name or "": d for v, d in done.items()}
        again = look(Gram(), BatchRanges())
        grams = {name: found[0] for name, found in again.items()}
        spans = {name: found[1] for name, found in again.items()}
    result = []
    for node, (name, read) in zip(chosen, names, strict=True):
        x = str(node.inputs[0].name)  # type: ignore[union-attr]
        weight = _weight(node)
        scale = weight_scales(weight, limits)
        if not per_channel:
            scale = np.full_like(scale, scale.max(initial=0))
        gram, snr = grams.get(x), None
        matrix = gram.moments(peaks=_PEAKS) if gram is not None and rounding == "gram" else None
        integers = round_weights(weight, scale, limits, matrix)
        if gram is not None:
            snr = _snr(weight, integers * scale, gram, spans[x])
            if correct_bias:
                # A product without a bias keeps the shift of its means: a node would cost time.
                moved = _alpha(node) * mean_shift(weight, integers, scale, gram.mean[0])
                add_to_output(rw, node, -moved)
        steps = scale[:, 0] if per_channel else scale[0, 0]
        quantize_dynamic(rw, node, integers.T.astype(np.int8), np.asarray(steps))
        result.append(Product(name, read, smoothed.get(read), snr))
    return result


def quantize_tables(
    rw: Rewriter,
    nodes: Iterable[ir.Node] | None = None,
    *,
    limits: tuple[int, int] = (-127, 127),
    least_bytes: int = 1 << 20,
) -> list[ir.Value]:
    """Store constant tables that Gather nodes read rows of as int8, with a scale for each row.

    Args:
        rw: Rewriter of the model. Nodes are replaced.
        nodes: Gather nodes; all of the model if None.
        limits: Smallest and largest integer, within int8.
        least_bytes: Smaller tables stay as they are: the nodes would cost more than they save.

    Returns:
        The tables, which nothing else uses.
    """
    tables = []
    for node in list(ir.all_nodes(rw.model) if nodes is None else nodes):
        table = node.inputs[0] if node.op_type == "Gather" and node.domain == "" else None
        tensor = ir.const(table)
        if (
            table is None
            or tensor is None
            or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
            or len(tensor.shape.numpy()) < 2
            or ir.attr(node, "axis", 0) != 0
            or tensor.nbytes < least_bytes
            or ir.use_count(table) > 1  # it would have to be stored twice
        ):
            continue
        data = tensor.numpy()
        rows = data.reshape(len(data), -1)
        scale = weight_scales(rows, limits)
        integers = round_weights(rows, scale, limits).astype(np.int8).reshape(data.shape)
        quantize_rows(rw, node, integers, scale.reshape(-1, *[1] * (data.ndim - 1)))
        tables.append(table)
    return tables


def _weight(node: ir.Node) -> Array:
    """``[out, in]`` of a MatMul or Gemm."""
    data = ir.array(node.inputs[1])
    assert data is not None
    turned = node.op_type == "Gemm" and ir.attr(node, "transB", 0)
    return (data if turned else data.T).astype(np.float64)


def _alpha(node: ir.Node) -> float:
    return float(ir.attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0


def _snr(weight: Array, rounded: Array, gram: Gram, spans: BatchRanges) -> float:
    moments = gram.moments()
    squares = gram.squares[0] / max(1, gram.count)
    if moments is None:
        moments = np.diag(squares)
    power = float(((weight @ moments) * weight).sum())
    d = rounded - weight
    high, low = spans.max.max(axis=1, initial=0), spans.min.min(axis=1, initial=0)
    step = (high - low).astype(np.float64) / 255
    error = float(((d @ moments) * d).sum()) + float((step**2).mean()) / 12 * float(
        (rounded**2).sum()
    )
    return 10 * math.log10(power / error) if power > 0 and error > 0 else math.inf

"""Dynamic int8 for the matrix products of a model, from sample data to the written form."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping
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

# Bytes of Gram matrices that are collected at a time; workers hold copies of them.
_BUDGET = 48 << 20
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
    names = [(n.outputs[0].name or "", _input(n)) for n in chosen]
    smoothed: dict[str, Smoothed] = {}
    rounded: list[_Rounded] = []
    method = _Method(limits, per_channel, rounding == "gram", correct_bias)
    if data is None:
        rounded = [_round(node, method) for node in chosen]
    elif chosen:
        samples = data if isinstance(data, Samples) else from_batches(data, rw.model)

        def look(part: list[ir.Node], *make: Observer) -> dict[str, list[Any]]:
            watch = {_input(n): make for n in part}
            return dict(collect(rw.model, watch, samples, executor=executor, cache=cache))

        seen = look(chosen, ChannelStats(-1), BatchRanges())
        channels = {n.inputs[0]: Channels.of(*seen[_input(n)]) for n in chosen}
        done = smooth(rw, chosen, channels, limits=limits, least=least)  # type: ignore[arg-type]
        smoothed = {v.name or "": d for v, d in done.items()}
        for part in _parts(chosen):
            found = look(part, Gram(), BatchRanges())
            rounded += [_round(node, method, *found[_input(node)]) for node in part]
    result = []
    for node, (name, read), new in zip(chosen, names, rounded, strict=True):
        if new.moved is not None:
            # A product without a bias keeps the shift of its means: a node would cost time.
            add_to_output(rw, node, -new.moved)
        quantize_dynamic(rw, node, new.integers, new.scale)
        result.append(Product(name, read, smoothed.get(read), new.snr))
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


@dataclasses.dataclass(frozen=True)
class _Method:
    limits: tuple[int, int]
    per_channel: bool
    gram: bool
    correct_bias: bool


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """A weight ``[in, out]`` in integers, and how far it moves the means of what is computed."""

    integers: Array
    scale: Array
    moved: Array | None
    snr: float | None


def _round(
    node: ir.Node, method: _Method, gram: Gram | None = None, spans: BatchRanges | None = None
) -> _Rounded:
    weight = _weight(node)
    scale = weight_scales(weight, method.limits)
    if not method.per_channel:
        scale = np.full_like(scale, scale.max(initial=0))
    moments = gram.moments(peaks=_PEAKS) if gram is not None and method.gram else None
    integers = round_weights(weight, scale, method.limits, moments)
    moved = snr = None
    if gram is not None and spans is not None:
        snr = _snr(weight, integers * scale, gram, spans)
        if method.correct_bias:
            alpha = float(ir.attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
            moved = alpha * mean_shift(weight, integers, scale, gram.mean[0])
    steps = scale[:, 0] if method.per_channel else scale[0, 0]
    return _Rounded(integers.T.astype(np.int8), np.asarray(steps), moved, snr)


def _parts(nodes: list[ir.Node]) -> Iterator[list[ir.Node]]:
    """Neighbours whose Gram matrices fit into the budget together, in order."""
    part: list[ir.Node] = []
    used: dict[str, int] = {}
    for node in nodes:
        columns = _weight_columns(node)
        used.setdefault(_input(node), 8 * columns * columns)
        if part and sum(used.values()) > _BUDGET:
            yield part
            part, used = [], {_input(node): 8 * columns * columns}
        part.append(node)
    if part:
        yield part


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    assert value is not None
    return value.name or ""


def _weight_columns(node: ir.Node) -> int:
    tensor = ir.const(node.inputs[1])
    assert tensor is not None
    turned = node.op_type == "Gemm" and ir.attr(node, "transB", 0)
    return int(tensor.shape.numpy()[1 if turned else 0])


def _weight(node: ir.Node) -> Array:
    """``[out, in]`` of a MatMul or Gemm."""
    data = ir.array(node.inputs[1])
    assert data is not None
    turned = node.op_type == "Gemm" and ir.attr(node, "transB", 0)
    return (data if turned else data.T).astype(np.float64)


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

"""What units take in floating point and on integers, and what changing between the two takes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from graphopt import ir
from graphopt.analyses import Cost
from graphopt.measure import LatencyTable, shaped
from graphopt.quant.units import Unit, Units
from graphopt.runtime import Feeds
from graphopt.runtime.kernels import KernelTime, kernel_times
from graphopt.targets import Target

__all__ = ["Costs", "estimated_costs", "measure_costs"]

_HELPERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SECONDS_PER_ELEMENT = 5e-10
_SAMPLES = (1 << 10, 1 << 14, 1 << 18)  # elements


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds per inference.

    Attributes:
        floating: By name of the unit, its activation included.
        integer: The same on integers.
        quantize: By name of the value, for turning it into integers.
        dequantize: The same for the way back.
    """

    floating: Mapping[str, float]
    integer: Mapping[str, float]
    quantize: Mapping[str, float]
    dequantize: Mapping[str, float]


def measure_costs(
    units: Units,
    quantized: Callable[[ir.Model], ir.Model],
    feeds: Feeds,
    *,
    target: Target,
    threads: int = 1,
    table: LatencyTable | None = None,
) -> Costs:
    """Measure units in floating point and on integers, each in the midst of the others.

    Args:
        units: The units of the model.
        quantized: Makes a copy of a model in which all units compute on integers; nodes keep their
            names.
        feeds: Inputs, whose shapes the times hold for.
        target: Where to measure.
        threads: Threads within an operator.
        table: Times that are known already; new ones are added.
    """
    table = LatencyTable(None, "") if table is None else table
    known = shaped(units.model, feeds)
    shapes = {v.name: v for n in known.graph for v in n.outputs} | {
        v.name: v for v in (*known.graph.inputs, *known.graph.initializers.values())
    }
    keys = {u.name: _signature(u, shapes) for u in units}

    def known_all(form: str) -> bool:
        return all(f"{form} {key}" in table.entries for key in keys.values())

    for form, make in (("float", ir.clone), ("integer", quantized)):
        if known_all(form):
            continue
        model = make(units.model)
        owners = _named(model, units)
        spent = dict.fromkeys(keys, 0.0)
        options = {"threads": threads, "providers": target.providers, "config": target.session}
        for time in kernel_times(model, feeds, **options):  # type: ignore[arg-type]
            owner = owners(time)
            if owner is not None:
                spent[owner] += time.seconds
        table.entries |= {f"{form} {key}": mean for key, mean in _means(keys, spent).items()}
    steps = _conversions(target, threads, table)
    elements = {name: _elements(v) for name, v in shapes.items() if name}
    return Costs(
        {n: table.entries[f"float {k}"] for n, k in keys.items()},
        {n: table.entries[f"integer {k}"] for n, k in keys.items()},
        {n: steps["QuantizeLinear"](e) for n, e in elements.items()},
        {n: steps["DequantizeLinear"](e) for n, e in elements.items()},
    )


def estimated_costs(units: Units) -> Costs:
    """What units are thought to take where nothing can be measured: by arithmetic and traffic."""
    known = Cost(units.model)
    floating = {u.name: known.nodes[u.node].seconds for u in units}
    moved = {
        v.name or "": _elements(v) * _SECONDS_PER_ELEMENT
        for v in units.tensors()
        if ir.const(v) is None
    }
    return Costs(floating, {n: s / 2 for n, s in floating.items()}, moved, moved)


def _means(keys: Mapping[str, str], spent: Mapping[str, float]) -> dict[str, float]:
    """Mean time by signature: equal nodes take equal time, whatever was measured of each."""
    by_key: dict[str, list[float]] = {}
    for name, key in keys.items():
        by_key.setdefault(key, []).append(spent[name])
    return {key: math.fsum(times) / len(times) for key, times in by_key.items()}


def _named(model: ir.Model, units: Units) -> Callable[[KernelTime], str | None]:
    """Name nodes and values so that kernels can be told apart; the unit that a kernel belongs to.

    ONNX Runtime names a fused node after a node or a value that was there before.
    """
    owner: dict[str, str] = {}
    for unit in units:
        owner |= {v.name or "": unit.name for v in unit.node.outputs}
        owner[unit.output.name or ""] = unit.name
    tags: dict[str, str] = {}
    for i, node in enumerate(model.graph):
        node.name = f"node{i}_"
        names = [name for v in node.outputs for name in _known_as(v)]
        found = next((owner[name] for name in names if name in owner), None)
        helper = node.op_type in _HELPERS
        if found is not None and not helper:
            tags[f"node{i}"] = found
        for j, value in enumerate(node.outputs):
            if value.name and not value.is_graph_output():
                value.name = f"value{i}_{j}_"
                if found is not None and not helper:
                    tags[f"value{i}"] = found
            elif found is not None and not helper and value.name:
                tags[value.name] = found

    def find(time: KernelTime) -> str | None:
        if time.op in _HELPERS:
            return None
        tag = re.match(r"(node|value)\d+(?=_)", time.node)
        if tag is not None:
            return tags.get(tag.group())
        return next(
            (tags[t] for t in tags if time.node == t or time.node.startswith(f"{t}_")), None
        )

    return find


def _known_as(value: ir.Value) -> Iterator[str]:
    """Names of a value and of what stands for it: a graph output's name moves behind integers."""
    yield value.name or ""
    for use in value.uses():
        if use.node.op_type in _HELPERS and use.idx == 0:
            yield from _known_as(use.node.outputs[0])


def _signature(unit: Unit, shapes: Mapping[str | None, ir.Value]) -> str:
    node = unit.node
    attrs = ",".join(
        f"{k}={ir.attr(node, k)}"
        for k in sorted(node.attributes)
        if isinstance(ir.attr(node, k), (int, float, str, tuple))
    )
    sizes = "x".join(
        "-" if v is None else str(list(ir.dims(shapes.get(v.name)) or ())) for v in node.inputs
    )
    then = "" if unit.activation is None else f" {unit.activation.op_type}"
    return f"{node.op_type}{then} {attrs} {sizes}"


def _elements(value: ir.Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in ir.dims(value) or ())


def _conversions(
    target: Target, threads: int, table: LatencyTable
) -> dict[str, Callable[[int], float]]:
    """Seconds for a number of elements, by operator, from a line through measured sizes."""
    found: dict[str, Callable[[int], float]] = {}
    for op in ("QuantizeLinear", "DequantizeLinear"):
        if any(f"{op} {n}" not in table.entries for n in _SAMPLES):
            table.entries |= _measure_conversions(target, threads)
        times = [table.entries[f"{op} {n}"] for n in _SAMPLES]
        slope, base = np.polyfit(_SAMPLES, times, 1, w=[1 / max(t, 1e-7) for t in times])
        found[op] = functools.partial(_line, max(float(slope), 0.0), max(float(base), 0.0))
    return found


def _line(slope: float, base: float, x: int) -> float:
    return slope * x + base


def _measure_conversions(target: Target, threads: int) -> dict[str, float]:
    names = [f"x{i}" for i in range(len(_SAMPLES))]
    lines: Iterable[str] = (
        f"{n}q = QuantizeLinear({n}, s, z) {n}y = DequantizeLinear({n}q, s, z)" for n in names
    )
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]>\ng ('
        + ", ".join(f"float[{size}] {n}" for n, size in zip(names, _SAMPLES, strict=True))
        + ") => ("
        + ", ".join(f"float[{size}] {n}y" for n, size in zip(names, _SAMPLES, strict=True))
        + ") <float s = {0.02}, uint8 z = {128}> { "
        + " ".join(lines)
        + " }"
    )
    for node in model.graph:
        node.name = f"{node.op_type} {_elements(node.inputs[0])}"  # type: ignore[arg-type]
    feeds = {n: np.zeros(size, np.float32) for n, size in zip(names, _SAMPLES, strict=True)}
    times = kernel_times(
        model, feeds, threads=threads, providers=target.providers, optimize=False, seconds=0.1
    )
    return {t.node: t.seconds for t in times}

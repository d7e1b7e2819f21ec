"""Which units compute on integers: the cheapest division of the graph, as a minimum cut.

Every unit is on one of two sides, floating point or integer. A side costs what the unit takes
there; a value that crosses from one side to the other costs its conversion, once, however many read
it; and whatever is rounded costs the noise that it adds, at a price. All of these are cut edges
of a flow network, so that the minimum over all divisions is found exactly (Greig, Porteous and
Seheult, 1989; Kolmogorov and Zabih, "What Energy Functions Can Be Minimized via Graph Cuts?",
2004).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

from graphopt import ir
from graphopt.quant.costs import Costs
from graphopt.quant.units import Units, outputs

__all__ = ["Division", "cheapest", "frontier"]

_INTEGER, _FLOAT = "integer", "float"
# Prices of noise that are tried, relative to the fastest division's time and noise.
_PRICES = tuple(2.0 ** (k / 2) for k in range(-12, 29))


@dataclasses.dataclass(frozen=True)
class Division:
    """Units that compute on integers, and what is expected of that.

    Attributes:
        integer: Names of the units.
        seconds: Expected time of all units and conversions.
        noise: Expected energy of the noise at the outputs, in units of theirs.
    """

    integer: frozenset[str]
    seconds: float
    noise: float


def cheapest(
    units: Units,
    costs: Costs,
    activations: Mapping[str, float],
    weights: Mapping[str, float],
    price: float,
    *,
    fixed: Collection[str] = (),
) -> Division:
    """Divide the units so that time and priced noise are least.

    Args:
        units: The units.
        costs: Seconds.
        activations: Noise by name of the root of the values that share parameters.
        weights: Noise by name of the unit.
        price: Seconds that a noise as strong as the output itself would cost.
        fixed: Names of units that stay in floating point.
    """
    import networkx as nx

    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from((_INTEGER, _FLOAT))

    def pay(inside: object, outside: object, cost: float) -> None:
        """Add a cost for ``inside`` to be integer while ``outside`` is in floating point."""
        before = graph.get_edge_data(inside, outside, {"capacity": 0.0})
        if "capacity" in before:  # not forced
            graph.add_edge(inside, outside, capacity=before["capacity"] + cost)

    def force(first: object, then: object) -> None:
        """Let ``first`` be integer only if ``then`` is."""
        graph.add_edge(first, then)
        graph[first][then].pop("capacity", None)  # without one it cannot be cut

    written = {v: unit for unit in units for v in outputs(unit)}
    for unit in units:
        pay(_INTEGER, unit, costs.floating[unit.name])
        noise = weights.get(unit.name, 0.0)
        pay(unit, _FLOAT, costs.integer[unit.name] + (price * noise if price else 0.0))
        if unit.name in fixed:
            force(unit, _FLOAT)
    for value in units.tensors():
        name = value.name or ""
        if ir.const(value) is not None:
            continue
        readers = [u for u in units if value in u.inputs]
        maker = written.get(value)
        need, give = ("quantize", value), ("dequantize", value)
        for unit in readers:
            force(unit, need)
        pay(need, _FLOAT if maker is None else maker, costs.quantize.get(name, 0.0))
        rounded = ("noise", units.root(value))
        for unit in (*readers, *(() if maker is None else (maker,))):
            force(unit, rounded)
        if maker is not None:
            pay(maker, give, costs.dequantize.get(name, 0.0))
            if _read_elsewhere(value, units):
                force(give, _FLOAT)
            for unit in readers:
                force(give, unit)
    for root in {units.root(v) for v in units.tensors() if ir.const(v) is None}:
        noise = activations.get(root.name or "", 0.0)
        pay(("noise", root), _FLOAT, price * noise if price else 0.0)
    _, (integer, _) = nx.minimum_cut(graph, _INTEGER, _FLOAT)
    return expected(units, costs, activations, weights, {u.name for u in units if u in integer})


def expected(
    units: Units,
    costs: Costs,
    activations: Mapping[str, float],
    weights: Mapping[str, float],
    integer: Collection[str],
) -> Division:
    """What a division of the units is expected to take, and to add of noise."""
    chosen = [u for u in units if u.name in integer]
    seconds = sum((costs.integer if u.name in integer else costs.floating)[u.name] for u in units)
    noise = sum(weights.get(u.name, 0.0) for u in chosen)
    written = {v for u in chosen for v in outputs(u)}
    read = {v for u in chosen for v in u.inputs if ir.const(v) is None}
    for value in read - written:
        seconds += costs.quantize.get(value.name or "", 0.0)
    inside = {u.node for u in chosen}
    for value in written:
        uses = tuple(value.uses())
        if value.is_graph_output() or any(use.node not in inside for use in uses):
            seconds += costs.dequantize.get(value.name or "", 0.0)
    for root in {units.root(v) for v in read | written}:
        noise += activations.get(root.name or "", 0.0)
    return Division(frozenset(integer), seconds, noise)


def frontier(
    units: Units,
    costs: Costs,
    activations: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    fixed: Collection[str] = (),
) -> Iterator[Division]:
    """Divisions of less and less noise, the fastest first; none is slower and noisier than another.

    Args:
        units: The units.
        costs: Seconds.
        activations: Noise by name of the root of the values that share parameters.
        weights: Noise by name of the unit.
        fixed: Names of units that stay in floating point.
    """
    # No price is high enough for what makes the outputs NaN or infinite.
    broken = {
        u.name
        for u in units
        if not math.isfinite(
            weights.get(u.name, 0.0)
            + sum(activations.get(units.root(v).name or "", 0.0) for v in (*u.inputs, *outputs(u)))
        )
    }
    fixed = broken.union(fixed)
    fastest = cheapest(units, costs, activations, weights, 0.0, fixed=fixed)
    found = [fastest]
    if fastest.integer and fastest.noise > 0:
        prices = (factor * fastest.seconds / fastest.noise for factor in _PRICES)
        cuts = (cheapest(units, costs, activations, weights, p, fixed=fixed) for p in prices)
        found += [each for each in cuts if each.integer]
    # Rounding in the capacities of a cut can prefer a division that is no better in anything.
    found.sort(key=lambda each: (each.seconds, each.noise))
    least = math.inf
    for each in found:
        if each.noise < least:
            least = each.noise
            yield each


def _read_elsewhere(value: ir.Value, units: Units) -> bool:
    """Whether something besides units reads a value."""
    if value.is_graph_output():
        return True
    readers = {u.node for u in units if value in u.inputs}
    return any(use.node not in readers for use in value.uses())

"""Decide which constant values to store instead of computing them.

Storing a value costs its bytes. Not storing it keeps the node that computes it, and with it what
the node reads. The best choice is a minimum cut between the constants and the rest of the model.
One walk forwards for what keeping costs and one backwards for the choice find it where no value has
two readers. Where one has, its cost can be counted in full for every reader, which stores too much,
or in equal shares, which may store too little; the first is tried, and the result measured exactly,
for each group of nodes that has such values in common. All of it is linear in the number of nodes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable

from graphopt import ir
from graphopt.passes.fold._candidates import Candidates
from graphopt.passes.fold._sizes import constant_bytes, node_bytes

__all__ = ["Plan", "make_plan"]

# A single value may cost this much more than what computes it, if other values save as much.
_SMALL = 4096
# A constant below this is counted in equal shares: many nodes read the same few axes and scalars,
# and it is not worth deciding about all of them together.
_TINY = 256

Size = Callable[[ir.Value], "int | None"]


@dataclasses.dataclass
class Plan:
    """What to store.

    Attributes:
        values: Values to store as constants.
        kept: Candidates that stay, since their results are larger than what computes them.
        growth: By how many bytes the file grows.
    """

    values: list[ir.Value]
    kept: list[ir.Node]
    growth: int


def make_plan(found: Candidates, size: Size, max_growth: int) -> Plan:
    """Choose values such that the file grows by at most ``max_growth`` bytes.

    Args:
        found: The nodes that can be computed.
        size: Bytes of a value as a constant; None for one that cannot be stored, 0 for one whose
            size is not known yet.
        max_growth: Bytes.
    """
    planner = _Planner(found, size)
    plan = planner.strict()
    if plan.kept:
        loose, _ = planner.choose(max(_SMALL, max_growth), max_growth - plan.growth)
        if loose.growth <= max_growth:
            return loose
    return plan


class _Count(enum.Enum):
    """How the cost of a value with several readers counts for each of them."""

    FULL = enum.auto()
    SHARED = enum.auto()
    NOT = enum.auto()


class _Planner:
    def __init__(self, found: Candidates, size: Size) -> None:
        self.found = found
        self.size = size
        self.nodes = set(found.nodes)
        self.record = {node: node_bytes(node) for node in found.nodes}
        self.readers = Counter(v for node in found.nodes for v in found.reads[node])
        made = (v for node in found.nodes for v in node.outputs)
        self.needed = {v for v in (*self.readers, *made) if self._is_needed(v)}
        # What each constant takes that nothing would need any more.
        self.freed = {
            v: constant_bytes(v)
            for v in self.readers
            if v.producer() is None and v.is_initializer() and v not in self.needed
        }
        self.group = self._groups()
        self.count = dict.fromkeys(set(self.group.values()), _Count.FULL)

    def _is_needed(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(
            use.node not in self.found.inside for use in value.uses()
        )

    def _groups(self) -> dict[ir.Node, ir.Node]:
        """Nodes that have values in common, by one of them that stands for all."""
        parent = {node: node for node in self.found.nodes}

        def root(node: ir.Node) -> ir.Node:
            while parent[node] is not node:
                parent[node] = node = parent[parent[node]]
            return node

        owner: dict[ir.Value, ir.Node] = {}
        for node in self.found.nodes:
            for value in self.found.reads[node]:
                producer = value.producer()
                if producer in self.nodes:
                    parent[root(node)] = root(producer)
                elif self.freed.get(value, 0) >= _TINY:
                    parent[root(node)] = root(owner.setdefault(value, node))
        return {node: root(node) for node in self.found.nodes}

    def strict(self) -> Plan:
        """Store nothing that is larger than what computes it."""
        for stricter in (_Count.SHARED, _Count.NOT):
            plan, growth = self.choose(0, 0)
            worse = [group for group, bytes_ in growth.items() if bytes_ > 0]
            if not worse:
                return plan
            self.count.update(dict.fromkeys(worse, stricter))
        return self.choose(0, 0)[0]

    def keeping(self) -> dict[ir.Node, float]:
        """What keeping each node costs: its record and what it reads."""
        keep: dict[ir.Node, float] = {}
        cheapest: dict[ir.Value, float] = dict(self.freed)
        for node in self.found.nodes:
            cost = float(self.record[node])
            count = self.count[self.group[node]]
            if count is not _Count.NOT:
                for value in self.found.reads[node]:
                    tiny = self.freed.get(value, _TINY) < _TINY
                    readers = self.readers[value] if tiny or count is _Count.SHARED else 1
                    cost += cheapest.get(value, 0.0) / readers
            keep[node] = cost
            for value in node.outputs:
                if value not in self.needed:  # otherwise there is no choice but to have it
                    stored = self.size(value)
                    cheapest[value] = cost if stored is None else min(stored, cost)
        return keep

    def choose(self, tolerance: int, budget: int) -> tuple[Plan, Counter[ir.Node]]:
        """Choose, walking from the uses to the constants.

        Returns:
            The choice, and by how many bytes each group grows.
        """
        keep = self.keeping()
        demanded = set(self.needed)
        plan = Plan([], [], 0)
        growth: Counter[ir.Node] = Counter()
        for node in reversed(self.found.nodes):
            group = self.group[node]
            wanted = [v for v in node.outputs if v in demanded]
            if not wanted:
                growth[group] -= self.record[node]
                continue
            sizes = [self.size(v) for v in wanted]
            cost = sum(s for s in sizes if s is not None)
            extra = cost - keep[node]
            if None in sizes or (extra > 0 and extra > min(tolerance, budget)):
                plan.kept.append(node)
                demanded.update(self.found.reads[node])
                continue
            budget -= max(0, int(extra))
            plan.values.extend(wanted)
            growth[group] += cost - self.record[node]
        gone: set[ir.Value] = set()
        for node in self.found.nodes:
            for value in self.found.reads[node]:
                if value in self.freed and value not in demanded and value not in gone:
                    gone.add(value)
                    growth[self.group[node]] -= self.freed[value]
        plan.values.reverse()
        plan.kept.reverse()
        plan.growth = growth.total()
        return plan, growth

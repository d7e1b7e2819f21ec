"""The greedy driver: applies rules until none matches."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from graphopt import ir
from graphopt.errors import GraphOptError, PassFailed
from graphopt.rewrite.pattern import Match, match
from graphopt.rewrite.rewriter import Rewriter, is_dead
from graphopt.rewrite.rules import Replacement, Rule

__all__ = ["RewriteStats", "apply_rules"]


@dataclasses.dataclass
class RewriteStats:
    """What a driver did.

    Attributes:
        applied: Rewrites per rule.
        declined: Matches that a rule declined, per ``rule: reason``.
        erased: Nodes removed because nothing used them any more.
    """

    applied: Counter[str] = dataclasses.field(default_factory=Counter)
    declined: Counter[str] = dataclasses.field(default_factory=Counter)
    erased: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything happened."""
        return bool(self.applied) or bool(self.erased)

    def add(self, other: RewriteStats) -> None:
        """Count what another driver did, too."""
        self.applied += other.applied
        self.declined += other.declined
        self.erased += other.erased


def apply_rules(
    rewriter: Rewriter, rules: Iterable[Rule], *, max_rewrites: int | None = None
) -> RewriteStats:
    """Apply rules to a fixed point, removing what they leave unused.

    Deterministic: nodes in program order, at each the rules by benefit and then in their order.
    Linear in the size of the graph plus the number of rewrites: a rewrite looks again only at the
    nodes it touched.

    Args:
        rewriter: Rewriter of the model; its ``allow`` is asked before each rewrite.
        rules: The rules.
        max_rewrites: Bound after which the rules are taken not to converge; by default
            1,000 + 50 per node.

    Raises:
        GraphOptError: The rules do not converge; the message names the busiest.
    """
    return _Driver(rewriter, rules, max_rewrites).run()


class _Driver:
    def __init__(self, rewriter: Rewriter, rules: Iterable[Rule], max_rewrites: int | None) -> None:
        self.rw = rewriter
        self.rules: dict[tuple[str, str], list[Rule]] = {}
        for r in sorted(rules, key=lambda r: -r.benefit):
            for op in r.pattern.ops:
                self.rules.setdefault((r.pattern.domain, op), []).append(r)
        self.stats = RewriteStats()
        nodes = list(ir.all_nodes(rewriter.model))
        self.limit = 1000 + 50 * len(nodes) if max_rewrites is None else max_rewrites
        self.stack = nodes[::-1]
        self.queued = set(nodes)
        self.declined: set[tuple[Rule, ir.Node, str]] = set()
        self.stopped = False

    def run(self) -> RewriteStats:
        saved, self.rw.on_touch = self.rw.on_touch, self.push
        try:
            while self.stack and not self.stopped:
                node = self.stack.pop()
                self.queued.discard(node)
                if node.graph is not None:
                    self.visit(node)
        finally:
            self.rw.on_touch = saved
        if self.stats.changed:
            self.rw.remove_initializers()
        return self.stats

    def push(self, node: ir.Node) -> None:
        if node not in self.queued:
            self.queued.add(node)
            self.stack.append(node)

    def visit(self, node: ir.Node) -> None:
        if is_dead(node):
            self.rw.erase(node)
            self.stats.erased += 1
            return
        for r in self.rules.get((node.domain, node.op_type), ()):
            m = match(r.pattern, node)
            if m is None:
                continue
            if not self.rw.allow(f"{r.name} at %{node.outputs[0].name}"):
                self.stopped = True
                return
            if self.apply(r, m):
                return

    def apply(self, r: Rule, m: Match) -> bool:
        node = m.root
        mark = self.rw.mark()
        changed, self.rw.changed = self.rw.changed, False
        with self.rw.at(node):
            try:
                new = r.build(m, self.rw)
            except Exception as e:
                where = f"rule {r.name} at %{node.outputs[0].name}"
                raise PassFailed(f"{where}: {type(e).__name__}: {e}") from e
        if new is not None:
            self.replace(m, new)
        if new is None or not self.rw.changed:
            self.undo(mark)
            self.rw.changed = changed
            self.decline(r, m)
            return False
        self.stats.applied[r.name] += 1
        if self.stats.applied.total() > self.limit:
            busiest = ", ".join(
                f"{name} ({n} times)" for name, n in self.stats.applied.most_common(3)
            )
            raise GraphOptError(f"rules do not converge: {busiest}")
        self.push(node)
        return True

    def undo(self, mark: tuple[int, int]) -> None:
        """Remove what a rule built before it declined, which is nobody's reason to look again."""
        touch, self.rw.on_touch = self.rw.on_touch, lambda _node: None
        try:
            self.rw.undo(mark)
        finally:
            self.rw.on_touch = touch

    def replace(self, m: Match, new: Replacement) -> None:
        outs = (new,) if isinstance(new, ir.Value) else tuple(new or ())
        pairs = [
            (o, v)
            for o, v in zip(m.root.outputs, outs, strict=False)
            if v is not None and v is not o
        ]
        if m.root.op_type == "Identity" and any(not self.rw.can_replace(o, v) for o, v in pairs):
            # It would take another Identity to give the graph output its name.
            m.fail("a graph output needs a node to produce it")
            self.rw.changed = False
            return
        for old, value in pairs:
            self.rw.replace(old, value)

    def decline(self, r: Rule, m: Match) -> None:
        if m.reason is None:
            return  # not what the rule is about; a reason would have been given for a near miss
        reason = m.reason
        key = (r, m.root, reason)
        if key not in self.declined:
            self.declined.add(key)
            self.stats.declined[f"{r.name}: {reason}"] += 1

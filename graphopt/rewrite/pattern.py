"""Patterns: plain objects that describe a DAG rooted at one node, and typed captures of a match.

The engine guarantees for every match: interior nodes are in the root's graph, have no use outside
the match and are not graph outputs (unless ``shared=True``); attributes compare against schema
defaults;
trailing inputs that are absent match only optional patterns; commutative ops match both ways round.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast, overload

import numpy as np

from graphopt import ir

__all__ = ["Const", "Match", "Op", "Pattern", "Var", "match"]

T_co = TypeVar("T_co", covariant=True)
_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})


class Pattern(Generic[T_co]):
    """Something that a value or a node can match; ``match[pattern]`` is what it matched."""

    __slots__ = ()


class Var(Pattern[ir.Value]):
    """Any value. Used twice in a pattern, it must match the same value both times.

    Args:
        optional: Match an absent input too; ``match.find(var)`` is None then.
    """

    __slots__ = ("optional",)

    def __init__(self, *, optional: bool = False) -> None:
        self.optional = optional


class Const(Pattern["np.ndarray[Any, Any]"]):
    """A compile-time constant. Its data is read only when ``match[const]`` asks for it.

    Args:
        optional: Match an absent input too; ``match.get(const)`` is None then.
    """

    __slots__ = ("optional",)

    def __init__(self, *, optional: bool = False) -> None:
        self.optional = optional


class Op(Pattern[ir.Node]):
    """A node of one of some op types whose inputs match.

    Args:
        ops: Op type, or the alternatives.
        *inputs: What the inputs have to match; None for an input that must be absent.
        shared: The node's results may be used outside of the match too. It then stays.
        variadic: Further inputs may follow those of the pattern.
        output: Which of the node's outputs leads here.
        domain: Operator domain.
        **attrs: Attribute values, lists as tuples; the schema's default stands in for absent ones.
    """

    __slots__ = ("attrs", "domain", "inputs", "ops", "output", "shared", "variadic")

    def __init__(
        self,
        ops: str | tuple[str, ...],
        *inputs: Pattern[Any] | None,
        shared: bool = False,
        variadic: bool = False,
        output: int = 0,
        domain: str = "",
        **attrs: object,
    ) -> None:
        self.ops = (ops,) if isinstance(ops, str) else tuple(ops)
        self.inputs, self.variadic = inputs, variadic
        self.attrs, self.shared, self.output, self.domain = attrs, shared, output, domain


_Bindings = dict[Pattern[Any], Any]


class Match:
    """What the parts of a pattern matched."""

    __slots__ = ("_bound", "reason", "root")

    def __init__(self, root: ir.Node, bound: _Bindings) -> None:
        self.root = root
        self.reason: str | None = None
        self._bound = bound

    @overload
    def __getitem__(self, pattern: Const) -> np.ndarray[Any, Any]: ...
    @overload
    def __getitem__(self, pattern: Pattern[T_co]) -> T_co: ...
    def __getitem__(self, pattern: Pattern[Any]) -> Any:
        """The node of an Op, the value of a Var, the data of a Const.

        Raises:
            KeyError: The pattern is optional and matched nothing.
        """
        found = self._bound[pattern]
        if found is None:
            raise KeyError("an optional pattern matched nothing: ask with get() or find()")
        if isinstance(pattern, Const):
            return cast("np.ndarray[Any, Any]", ir.array(found))
        return found

    def get(self, pattern: Const) -> np.ndarray[Any, Any] | None:
        """The data of a Const, or None where it matched an absent input."""
        return None if self._bound.get(pattern) is None else self[pattern]

    def value(self, pattern: Var | Const) -> ir.Value:
        """The value that a Var or Const matched, without reading its data."""
        return cast(ir.Value, self._bound[pattern])

    def find(self, pattern: Var | Const) -> ir.Value | None:
        """Like :meth:`value`, but None where the pattern matched an absent input."""
        return cast("ir.Value | None", self._bound.get(pattern))

    def node(self, pattern: Op) -> ir.Node | None:
        """The node of an Op, or None where the alternative it belongs to did not match."""
        return cast("ir.Node | None", self._bound.get(pattern))

    def fail(self, reason: str) -> ir.Value | None:
        """Decline the match. The reason is counted in the report.

        Returns:
            None always, so that a rule can say ``return m.fail("the pad value is not zero")``.
        """
        self.reason = reason
        return None


def match(pattern: Op, node: ir.Node) -> Match | None:
    """Match ``pattern`` with ``node`` as its root."""
    bound: _Bindings = {}
    if not _match_node(pattern, node, bound, node.graph):
        return None
    nodes = {n for p, n in bound.items() if isinstance(p, Op)}
    most = sum(len(n.inputs) for n in nodes)
    for p, n in bound.items():
        if not isinstance(p, Op) or n is node or p.shared:
            continue
        for out in n.outputs:
            # A value with more uses than the match has inputs is used outside, whoever uses it.
            if out.is_graph_output() or ir.use_count(out) > most:
                return None
            if any(use.node not in nodes for use in out.uses()):
                return None
    return Match(node, bound)


def _match_node(p: Op, node: ir.Node, bound: _Bindings, graph: object) -> bool:
    if node.op_type not in p.ops or node.domain != p.domain:
        return False
    if p in bound:
        return bound[p] is node
    for name, want in p.attrs.items():
        if ir.attr(node, name) != want:
            return False
    values: list[ir.Value | None] = list(node.inputs)
    extra = values[len(p.inputs) :]
    if extra and not p.variadic and any(v is not None for v in extra):
        return False
    values += [None] * (len(p.inputs) - len(values))
    before = dict(bound)
    bound[p] = node
    if all(_match_value(q, v, bound, graph) for q, v in zip(p.inputs, values, strict=False)):
        return True
    if len(p.inputs) == 2 and len(node.inputs) == 2 and node.op_type in _COMMUTATIVE:
        bound.clear()
        bound.update(before)
        bound[p] = node
        if all(
            _match_value(q, v, bound, graph)
            for q, v in zip(p.inputs, reversed(values), strict=True)
        ):
            return True
    bound.clear()
    bound.update(before)
    return False


def _match_value(
    p: Pattern[Any] | None, value: ir.Value | None, bound: _Bindings, graph: object
) -> bool:
    if p is None:
        return value is None
    if isinstance(p, Op):
        node = value.producer() if value is not None else None
        return (
            node is not None
            and value is not None
            and value.index() == p.output
            and node.graph is graph
            and _match_node(p, node, bound, graph)
        )
    assert isinstance(p, (Var, Const))
    if value is None:
        if not p.optional:
            return False
    elif isinstance(p, Const) and ir.const(value) is None:
        return False
    if p in bound:
        return bound[p] is value
    bound[p] = value
    return True

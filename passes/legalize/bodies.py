"""Operators that the standard defines in terms of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphopt import Match, Op, Replacement, Rewriter, Rule, ir

__all__ = ["expand_functions"]

_DEPTH = 4  # definitions that refer to definitions
Takes = Callable[[str], bool]


class _Unfit(Exception):  # noqa: N818 - control flow inside this module
    pass


def expand_functions(ops: Iterable[str], takes: Takes) -> Rule | None:
    """A rule that puts the standard's definition in the place of operators.

    Args:
        ops: The operators, of the default domain.
        takes: Whether the target computes an operator, or another rule replaces it. A definition
            is only used where all that it leads to is taken.
    """
    names = tuple(sorted(ops))
    if not names:
        return None

    def build(m: Match, rw: Rewriter) -> Replacement:
        if m.root.outputs and any(ir.subgraphs(m.root)):
            return None
        try:
            return _expand(rw, m.root, list(m.root.inputs), takes, _DEPTH)
        except _Unfit as e:
            return m.fail(str(e))

    return Rule("expand-function", Op(names, variadic=True), build, benefit=0)


def _expand(
    rw: Rewriter, node: ir.Node, given: list[ir.Value | None], takes: Takes, depth: int
) -> list[ir.Value | None]:
    """Build the definition of a node; returns what replaces its outputs."""
    body = ir.function_body(node) if depth else None
    if body is None:
        raise _Unfit(f"the standard does not define {node.op_type} in terms of other operators")
    known: dict[ir.Value, ir.Value] = {}
    for value in body.graph.inputs:
        actual = given[int((value.name or "")[1:])]
        assert actual is not None
        known[value] = actual
    for value in body.graph.initializers.values():
        assert value.const_value is not None
        known[value] = rw.const(value.const_value, _plain(value))
    for inner in body.graph:
        _copy(rw, inner, known, takes, depth)
    found: list[ir.Value | None] = [None] * len(node.outputs)
    for value in body.graph.outputs:
        found[int((value.name or "")[1:])] = known[value]
    return found


def _copy(
    rw: Rewriter, node: ir.Node, known: dict[ir.Value, ir.Value], takes: Takes, depth: int
) -> None:
    inputs = [None if v is None else known[v] for v in node.inputs]
    if any(ir.subgraphs(node)):
        raise _Unfit("its definition has control flow")
    results: list[ir.Value | None]
    if node.op_type == "CastLike" and inputs[0] is not None:
        results = [_cast(rw, inputs[0], node.inputs[1])]
    elif takes(node.op_type) or all(ir.const(v) is not None for v in inputs):
        made = rw.op(node.op_type, *inputs, like=node, outputs=len(node.outputs))
        results = list(made)
        for new, old in zip(made, node.outputs, strict=True):
            if isinstance(old.type, ir.TensorType):
                new.type = ir.TensorType(old.type.dtype)
    else:
        try:
            results = _expand(rw, node, inputs, takes, depth - 1)
        except _Unfit as e:
            raise _Unfit(f"its definition needs {node.op_type}, which the target lacks") from e
    pairs = zip(node.outputs, results, strict=True)
    known.update({old: new for old, new in pairs if new is not None})


def _cast(rw: Rewriter, value: ir.Value, like: ir.Value | None) -> ir.Value:
    """What CastLike does, at a known type."""
    wanted = None if like is None else like.dtype
    if wanted is None:
        raise _Unfit("the type of its input is not known")
    data = ir.array(value)
    if data is not None:
        return rw.const(data.astype(wanted.numpy()), value.name or "const")
    return value if value.dtype == wanted else rw.op("Cast", value, to=int(wanted))


def _plain(value: ir.Value) -> str:
    """The name of a constant without what made it unique in its definition."""
    return (value.name or "const").split("__")[0].lower()

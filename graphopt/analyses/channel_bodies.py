"""Channels through the graphs inside of If, Loop and Scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graphopt import ir
from graphopt.analyses import channel_moves as moves
from graphopt.analyses.channel_flow import Factors, Flow, Handler, Operand, Stop

__all__ = ["BODIES"]


def _result(flow: Flow, value: ir.Value, rank: int) -> Operand | None:
    factors = flow.labels.get(value, ())
    if any(f.ndim != rank for f in factors):
        return None
    dims = flow.dims(value) or (None,) * rank
    return Operand(-1, factors, dims, tuple(range(rank)), frozenset())


def _equal(flow: Flow, node: ir.Node, values: Sequence[ir.Value]) -> Factors:
    """Let values that are one and the same tensor at different times have equal ids."""
    known = [f for v in values for f in flow.labels.get(v, ())]
    if not known:
        return ()
    operands = [_result(flow, v, known[0].ndim) for v in values]
    if any(o is None or len(o.dims) != known[0].ndim for o in operands):
        flow.freeze(known, node, "returns tensors of different ranks for it")
        return ()
    # Indices of their own, all of which are computed, tell them apart.
    return flow.join(
        node,
        [dataclasses.replace(o, index=-1 - i) for i, o in enumerate(operands) if o is not None],
    )


def _if(flow: Flow, node: ir.Node) -> None:
    flow.freeze(flow.of(node), node, "reads it as a condition")
    branches = list(ir.subgraphs(node))
    for branch in branches:
        flow.visit(branch)
    for i in range(len(node.outputs)):
        flow.make(node, _equal(flow, node, [b.outputs[i] for b in branches]), i)


def _loop(flow: Flow, node: ir.Node) -> None:
    (body,) = ir.subgraphs(node)
    flow.freeze([*flow.of(node, 0), *flow.of(node, 1)], node, "reads it as a condition")
    count = len(node.inputs) - 2
    _run(flow, node, body, list(node.inputs[2:]), body.inputs[2:], body.outputs[1 : 1 + count])
    flow.freeze(flow.labels.get(body.outputs[0], ()), node, "reads it as a condition")
    _stack(flow, node, body.outputs[1 + count :], count, [0] * len(node.outputs))


def _scan(flow: Flow, node: ir.Node) -> None:
    if ir.opset(node) < 9:
        raise Stop("is an old form of Scan")
    (body,) = ir.subgraphs(node)
    scanned = int(ir.attr(node, "num_scan_inputs"))
    count = len(node.inputs) - scanned
    axes = ir.attr(node, "scan_input_axes") or (0,) * scanned
    for i, axis in enumerate(axes):
        factors = flow.of(node, count + i)
        if factors:
            axis %= factors[0].ndim
            left = flow.apart(factors, [axis], node, "goes over them step by step")
            flow.labels[body.inputs[count + i]] = tuple(moves.squeeze(f, [axis]) for f in left)
    _run(flow, node, body, list(node.inputs[:count]), body.inputs[:count], body.outputs[:count])
    outputs = body.outputs[count:]
    _stack(flow, node, outputs, count, ir.attr(node, "scan_output_axes") or (0,) * len(outputs))


def _run(
    flow: Flow,
    node: ir.Node,
    body: ir.Graph,
    before: Sequence[ir.Value | None],
    inside: Sequence[ir.Value],
    after: Sequence[ir.Value],
) -> None:
    """Values that are carried from step to step have the same ids before and behind it."""
    for value, inner in zip(before, inside, strict=True):
        if value is not None and value in flow.labels:
            flow.labels[inner] = flow.labels[value]
    flow.visit(body)
    for i, (inner, last) in enumerate(zip(inside, after, strict=True)):
        known = flow.labels.get(inner, ())
        if not known:
            flow.freeze(flow.labels.get(last, ()), node, "starts with something that has to stay")
            continue
        flow.make(node, _equal(flow, node, [inner, last]), i)


def _stack(
    flow: Flow, node: ir.Node, values: Sequence[ir.Value], first: int, axes: Sequence[int]
) -> None:
    for i, (value, axis) in enumerate(zip(values, axes, strict=False)):
        factors = flow.labels.get(value, ())
        flow.make(node, [moves.expand(f, [axis]) for f in factors], first + i)


BODIES: dict[str, Handler] = {"If": _if, "Loop": _loop, "Scan": _scan}

"""Changing the layers of a model one after the other, each making up for those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.reconstruct.layers import Layer, layers
from graphopt.reconstruct.problem import Problem, accumulate, why_fixed
from graphopt.reconstruct.walk import Walk, reads
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds

__all__ = ["RIDGE", "Fit", "rebuild"]

Array = np.ndarray[Any, Any]
Change = Callable[[Problem], "Array | None"]

RIDGE = 1e-4


@dataclasses.dataclass(frozen=True)
class Fit:
    """What became of a layer.

    Attributes:
        name: Name of what it computes.
        residual: Mean squared error of the best weights in units of the target's energy.
        error: What the weights chosen add to that.
        rows: Rows of inputs that the problem was made of.
        reason: Why it was due and yet left as it was, or None; then the numbers are 0.
    """

    name: str
    residual: float
    error: float
    rows: int
    reason: str | None = None


def rebuild(
    original: ir.Model,
    model: ir.Model,
    batches: Sequence[Feeds],
    change: Change,
    *,
    wanted: Callable[[Layer], bool] = lambda _layer: False,
    only: Callable[[Layer], bool] = lambda _layer: True,
    ridge: float = RIDGE,
    threads: int = 2,
) -> list[Fit]:
    """Change layers in the order of the graph; each is fitted to what the original computed.

    The inputs of a layer are those that the changed layers before it give, its target is what the
    original computed there (He et al., 2017). Where the result is added to something, the sum is
    the target, so that a layer also makes up for errors of the shortcut beside it.

    Args:
        original: The model as it was.
        model: A clone of it, which is changed. What layers compute has the same names in both, and
            shapes are inferred.
        batches: Inputs.
        change: Gives new weights in the form of ``Problem.optimum``, or None to leave the layer
            alone. It is called for layers whose inputs changed, and for wanted ones; not for those
            that have to stay (:func:`~graphopt.reconstruct.problem.why_fixed`).
        wanted: Whether a layer is to be changed even where its inputs are the original's.
        only: Whether a layer may be changed at all.
        ridge: See :func:`~graphopt.reconstruct.problem.accumulate`.
        threads: Threads within an operator.

    Returns:
        One entry per layer that was changed, or could not be.

    Raises:
        CalibrationError: There are no samples, or a layer reads or computes NaN or infinity.
        SessionError: ONNX Runtime does not run a part of the model.
        ValueError: The original does not compute what a layer of the model does.
    """
    place = {node: i for i, node in enumerate(model.graph)}
    ends = {v.name: i for i, node in enumerate(original.graph, 1) for v in node.outputs}
    rw = Rewriter(model)
    found = {each: why_fixed(each) for each in layers(model) if only(each)}
    fitted = {each.node for each, reason in found.items() if reason is None}
    steps = [_step(each, reason, place, fitted) for each, reason in found.items()]
    dirty = _Dirt(model)
    due = [step for step in steps if step.reason is None]
    fits: list[Fit] = []
    with (
        Walk(original, batches, threads=threads) as before,
        Walk(model, batches, threads=threads) as after,
    ):
        for step in steps:
            pinned = {name for s in due for name in s.targets}
            if step.reason is None:
                due.pop(0)
            if not dirty.reads(step.at) and not wanted(step.layer):
                continue
            if step.reason is not None:
                fits.append(Fit(step.layer.name, 0.0, 0.0, 0, step.reason))
                continue
            if any(name not in ends for name in step.targets):
                raise ValueError(f"the original does not compute {step.layer.name!r}")
            after.to(step.at)
            before.to(max(before.position, *(ends[name] for name in step.targets)), keep=pinned)
            problem = _problem(step, before, after, ridge)
            new = change(problem)
            if new is None:
                continue
            weights = new[:, :-1] if step.layer.takes_bias else new
            bias = new[:, -1] if step.layer.takes_bias else None
            step.layer.write(rw, weights.transpose(0, 2, 1), bias)
            dirty.add(step.layer)
            fits.append(Fit(step.layer.name, problem.residual, problem.error(new), problem.rows))
    rw.remove_initializers()
    return fits


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """A layer, the sum that its result goes into, and what is added to it there.

    `waits` tells whether what is added is computed by a layer whose turn comes later.
    """

    layer: Layer
    at: int
    target: str
    other: ir.Value | None
    waits: bool
    reason: str | None

    @property
    def targets(self) -> list[str]:
        """What the original has to hold for it."""
        return [self.target, self.other.name or ""] if self.other and self.waits else [self.target]


def _step(
    layer: Layer, reason: str | None, place: dict[ir.Node, int], fitted: set[ir.Node]
) -> _Step:
    at = place[layer.node]
    total, other = _sum_of(layer)
    target = layer.output if total is None else total.outputs[0]
    waits = other is not None and not fitted.isdisjoint(_makers(other, place, at))
    return _Step(layer, at, target.name or "", other, waits, reason)


def _makers(value: ir.Value, place: dict[ir.Node, int], at: int) -> set[ir.Node]:
    """The nodes from a position on that compute a value."""
    found: set[ir.Node] = set()
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found and place.get(node, -1) >= at:
            found.add(node)
            pending += reads(node)
    return found


def _sum_of(layer: Layer) -> tuple[ir.Node | None, ir.Value | None]:
    """The addition of something computed before that alone reads what a layer computes."""
    uses = list(layer.output.uses())
    if len(uses) != 1 or layer.output.is_graph_output():
        return None, None
    node, index = uses[0].node, uses[0].idx
    if node.domain or node.op_type != "Add" or node.graph is not layer.node.graph:
        return None, None
    other = node.inputs[1 - index]
    if other is None or other is layer.output or ir.const(other) is not None:
        return None, None
    sizes = ir.dims(other)
    if sizes is None or None in sizes or sizes != ir.dims(layer.output):
        return None, None
    return node, other


def _problem(step: _Step, before: Walk, after: Walk, ridge: float) -> Problem:
    layer = step.layer
    inputs = after.values(layer.input.name or "")
    targets: Iterable[Array] = before.values(step.target)
    if step.other is not None:
        name = step.other.name or ""
        beside: Iterable[Array]
        if after.holds(name):
            beside = after.values(name)
        elif step.waits:  # that layer makes up for this one then
            beside = before.values(name)
        else:
            beside = after.ahead(step.other)
        targets = (t - s for t, s in zip(targets, beside, strict=True))
    return accumulate(layer, inputs, targets, after.batches, ridge)


class _Dirt:
    """Which values differ from the original's."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = list(model.graph)
        self._values: set[ir.Value] = set()
        self._changed: set[ir.Node] = set()
        self._seen = 0

    def add(self, layer: Layer) -> None:
        self._changed |= {layer.node} if layer.adds is None else {layer.node, layer.adds}

    def reads(self, position: int) -> bool:
        """Whether the node at a position reads something that differs."""
        for node in self._nodes[self._seen : position]:
            if node in self._changed or self._reads(node):
                self._values.update(node.outputs)
        self._seen = max(self._seen, position)
        return self._reads(self._nodes[position])

    def _reads(self, node: ir.Node) -> bool:
        return any(v in self._values for v in reads(node))

"""Compute in 16-bit floats."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import defaultdict

import numpy as np

from graphopt import Context, Exactness, Pass, Rewriter, calibration, ir
from graphopt.passes.precision.halves import LARGEST, Peak, Ports, misfit, ports

__all__ = ["ConvertFp16"]

_HEAVY = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN",
})  # fmt: skip
_SWEEPS = 8
_SHOWN = 5


class ConvertFp16(Pass):
    """Compute in 16-bit floats, but for what they cannot hold.

    What it does: Gives 32-bit float values and constants 16 bits. Inputs and outputs of the model
    keep their type. A node stays in 32 bits where its schema admits nothing else, where it may
    overflow on the way to a small result, where it is named in an option, where a constant of it
    would overflow or lose more than 1 % of its norm, or is a default that callers may override, or
    where the samples show that its values exceed 65504. A value is converted once, however many
    nodes use it, constants are converted now, and cheap operators between nodes that stay in 32
    bits stay with them.

    Exactness: Lossy

    Needs: Types of all values; samples to check the range of activations, which is skipped without.

    Options: skip (patterns such as "/head/*" of names of nodes or of their outputs), skip-ops
    (operators such as Softmax).

    Example: ``y = Conv(x, w)`` -> ``y = Cast(Conv(Cast(x, float16), w16), float)``

    Declines when: For a node, one of the above; nodes within If, Loop and Scan stay in 32 bits.

    References: Micikevicius et al., "Mixed Precision Training" (2018), section 3.
    """

    name = "convert-fp16"
    exactness = Exactness.LOSSY
    min_opset = 7
    skip: tuple[str, ...] = ()
    skip_ops: tuple[str, ...] = ()

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Choose the nodes, then convert what lies between them."""
        found = {node: ports(node) for node in model.graph}
        kept = {n: p for n, p in found.items() if isinstance(p, str)}
        half = {n: p for n, p in found.items() if isinstance(p, Ports)}
        for node in tuple(half):
            reason = self._named(node) or _constants(node, half[node])
            if reason is not None:
                kept[node] = reason
                del half[node]
        peaks = _peaks(model, half, ctx)
        for node in tuple(half):
            over = next((v for v in _values(node, half[node]) if peaks.get(v, 0) > LARGEST), None)
            if over is not None:
                kept[node] = f"%{over.name} reaches {peaks[over]:.3g}, beyond 65504"
                del half[node]
        _release(half)
        if not half or not ctx.allow("convert to 16 bits"):
            return False
        _Conversion(model, ctx.rewriter(), half).run()
        ctx.stats.applied["convert"] += len(half)
        ctx.infer_shapes()
        _tell(ctx, half, kept)
        return True

    def _named(self, node: ir.Node) -> str | None:
        if node.op_type in self.skip_ops:
            return "skip-ops names its operator"
        names = [node.name or "", *(v.name or "" for v in node.outputs)]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.skip):
            return "skip names it"
        return None


def _constants(node: ir.Node, at: Ports) -> str | None:
    """Why the constants of a node do not fit."""
    for i in at.inputs:
        value = node.inputs[i]
        if value is not None and value.is_graph_input() and value.is_initializer():
            return f"%{value.name} is the default of an input; freeze-inputs makes it constant"
        data = ir.array(value)
        why = None if data is None else misfit(data)
        if why is not None and value is not None:
            return f"%{value.name} {why}"
    return None


def _values(node: ir.Node, at: Ports) -> list[ir.Value]:
    """What of a node would have 16 bits."""
    inputs = [v for i in at.inputs if (v := node.inputs[i]) is not None]
    return [*inputs, *(node.outputs[i] for i in at.outputs)]


def _peaks(model: ir.Model, half: dict[ir.Node, Ports], ctx: Context) -> dict[ir.Value, float]:
    """Largest magnitude, in the samples, of values that would have 16 bits."""
    if not half:
        return {}
    if ctx.data is None:
        ctx.remark("the range of activations was not checked: no samples were given")
        return {}
    values = {v.name or "": v for n, at in half.items() for v in _values(n, at)}
    watch = {name: Peak() for name, v in values.items() if ir.const(v) is None}
    found = calibration.collect(model, watch, ctx.data, executor=ctx.executor, cache=ctx.cache)
    return {values[name]: seen.largest for name, (seen,) in found.items() if isinstance(seen, Peak)}


def _release(half: dict[ir.Node, Ports]) -> None:
    """Let cheap nodes stay in 32 bits where that saves conversions."""
    for _ in range(_SWEEPS):
        before = len(half)
        for node in tuple(half):
            if node.op_type not in _HEAVY and _boundary(node, half) > 0:
                del half[node]
        if len(half) == before:
            break


def _boundary(node: ir.Node, half: dict[ir.Node, Ports]) -> int:
    """How many conversions it saves that a node computes in 32 bits."""
    at, saved = half[node], 0
    for i in at.inputs:
        value = node.inputs[i]
        if value is None or ir.const(value) is not None:
            continue
        producer = value.producer()
        others = [u for u in value.uses() if u.node is not node]
        if producer in half:
            saved -= not (value.is_graph_output() or any(u.node not in half for u in others))
        else:
            saved += not any(u.node in half for u in others)
    for i in at.outputs:
        value = node.outputs[i]
        users = [u.node in half for u in value.uses()]
        saved += value.is_graph_output() or not all(users)
        saved -= any(users)
    return saved


@dataclasses.dataclass
class _Conversion:
    """The rewriting itself: which uses of a value want which type."""

    model: ir.Model
    rw: Rewriter
    half: dict[ir.Node, Ports]

    def run(self) -> None:
        graph = self.model.graph
        self.order = {node: i for i, node in enumerate(graph)}
        self.owner: dict[ir.Node, ir.Node] = {}
        for node in graph:
            self._own(node, node)
        wants: dict[ir.Value, list[tuple[ir.Node, int]]] = defaultdict(list)
        made: list[ir.Value] = []
        for node, at in self.half.items():
            for i in at.inputs:
                value = node.inputs[i]
                assert value is not None
                wants[value].append((node, i))
            made += [node.outputs[i] for i in at.outputs]
            if node.op_type == "Cast" and not node.domain:
                self.rw.set_attr(node, to=int(ir.DataType.FLOAT16))
        produced = set(made)
        for value in made:
            self._widen(value, wants.get(value, []))
        for value, uses in wants.items():
            if value not in produced:
                self._narrow(value, uses)
        self.rw.remove_initializers()

    def _own(self, node: ir.Node, outer: ir.Node) -> None:
        self.owner[node] = outer
        for inner in ir.subgraphs(node):
            for each in inner:
                self._own(each, outer)

    def _first(self, nodes: list[ir.Node]) -> ir.Node:
        return min((self.owner[n] for n in nodes), key=self.order.__getitem__)

    def _widen(self, value: ir.Value, halves: list[tuple[ir.Node, int]]) -> None:
        """Make a value 16 bits; give those who need 32 a conversion."""
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        wanted = set(halves)
        others = [u.node for u in value.uses() if (u.node, u.idx) not in wanted]
        if not others and not value.is_graph_output():
            return
        where = self.rw.at(self._first(others)) if others else self.rw.at_end(self.model.graph)
        with where:
            wide = self.rw.op("Cast", value, to=int(ir.DataType.FLOAT))
        wide.type = ir.TensorType(ir.DataType.FLOAT)
        self.rw.replace(value, wide)
        for node, i in halves:
            self.rw.set_input(node, i, value)

    def _narrow(self, value: ir.Value, halves: list[tuple[ir.Node, int]]) -> None:
        """Convert a 32-bit value, once, for those who take 16 bits."""
        data = ir.array(value)
        with self.rw.at(self._first([n for n, _ in halves])):
            if data is not None:
                narrow = self.rw.const(data.astype(np.float16), f"{value.name}.fp16")
            else:
                narrow = self.rw.op("Cast", value, to=int(ir.DataType.FLOAT16))
                narrow.type = ir.TensorType(ir.DataType.FLOAT16)
                narrow.shape = None if value.shape is None else value.shape.copy()
        for node, i in halves:
            self.rw.set_input(node, i, narrow)


def _tell(ctx: Context, half: dict[ir.Node, Ports], kept: dict[ir.Node, str]) -> None:
    ctx.remark(f"{len(half)} nodes compute in 16 bits, {len(kept)} stay in 32 for a reason")
    for reason in kept.values():
        ctx.decline("convert", reason)
    for node, reason in list(kept.items())[:_SHOWN]:
        ctx.remark(f"{node.op_type} stays in 32 bits: {reason}", node)

"""Compute constant nodes in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import SessionError
from graphopt.passes.fold._candidates import Candidates, divisor_is_safe
from graphopt.passes.fold._reads import inputs
from graphopt.runtime.session import open_session

__all__ = ["Evaluator", "tensor_of"]

Array = np.ndarray[Any, Any]

# Attempts to find the nodes that ONNX Runtime refuses, by halving; then the rest stays as it is.
_SESSIONS = 64
# A loop of constants could run forever.
_SECONDS = 20.0
_REFUSED = re.compile(
    r"implementation for (?:\w+:)?(\w+)\(|(?:\w+:)?(\w+)\(-?\d+\) is not a registered"
)


class Evaluator:
    """Computes values of candidates, in one session if ONNX Runtime takes all of them.

    Args:
        model: The model they are in.
        found: The nodes that can be computed.

    Attributes:
        results: What has been computed.
        failed: Nodes that ONNX Runtime refuses, with its reason.
    """

    def __init__(self, model: ir.Model, found: Candidates) -> None:
        self.model = model
        self.found = found
        self.results: dict[ir.Value, Array] = {}
        self.failed: dict[ir.Node, str] = {}
        self.sessions = 0

    def compute(self, wanted: Iterable[ir.Value]) -> None:
        """Compute values and whatever they need.

        Raises:
            RuntimeUnavailable: onnxruntime is not installed.
        """
        goals = set(wanted)
        needed = self._needed(goals)
        stages: dict[int, list[ir.Node]] = {}
        for node in self.found.nodes:
            if node in needed:
                stages.setdefault(self.found.stage[node], []).append(node)
                goals.update(
                    v
                    for v in self.found.reads[node]
                    if (p := v.producer()) in needed
                    and self.found.stage[p] != self.found.stage[node]
                )
        for _, nodes in sorted(stages.items()):
            self._batch(nodes, goals)

    def _needed(self, goals: Iterable[ir.Value]) -> set[ir.Node]:
        needed: set[ir.Node] = set()
        known = self.found.stage
        pending = [v for v in goals if v not in self.results]
        while pending:
            node = pending.pop().producer()
            if node is not None and node in known and node not in needed:
                needed.add(node)
                pending += (v for v in self.found.reads[node] if v not in self.results)
        return needed

    def _batch(self, nodes: Sequence[ir.Node], goals: set[ir.Value]) -> None:
        """Compute nodes; where ONNX Runtime refuses, find out which ones and compute the others."""
        nodes = self._possible(nodes)
        outputs = [v for node in nodes for v in node.outputs if v in goals]
        if not outputs:
            return
        if self.sessions >= _SESSIONS:
            self.failed.update(dict.fromkeys(nodes, "onnxruntime refuses too many nodes"))
            return
        self.sessions += 1
        try:
            self._run(nodes, outputs)
        except (SessionError, MemoryError) as e:
            refused = _REFUSED.search(str(e))
            name = refused and (refused[1] or refused[2])
            bad = [node for node in nodes if node.op_type == name]
            if bad or len(nodes) == 1:
                why = f"onnxruntime refuses {(bad or nodes)[0].op_type}"
                self.failed.update(dict.fromkeys(bad or nodes, why))
                if bad:
                    self._batch(nodes, goals)
                return
            half = len(nodes) // 2
            first = set(nodes[:half])
            border = {
                v for node in nodes[half:] for v in self.found.reads[node] if v.producer() in first
            }
            self._batch(nodes[:half], goals | border)
            self._batch(nodes[half:], goals)

    def _possible(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        possible: list[ir.Node] = []
        made: set[ir.Node] = set()
        for node in nodes:
            if node in self.failed:
                continue
            missing = [
                v
                for v in self.found.reads[node]
                if v not in self.results
                and (p := v.producer()) in self.found.stage
                and p not in made
            ]
            divisor = None
            if self.found.stage[node] and node.op_type in ("Div", "Mod"):
                divisor = self.results.get(node.inputs[1])  # type: ignore[arg-type]
            if missing:
                self.failed[node] = "an input could not be computed"
            elif divisor is not None and not divisor_is_safe(divisor):
                self.failed[node] = "it would divide by zero"
            else:
                possible.append(node)
                made.add(node)
        return possible

    def _run(self, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
        found = self._session(nodes, {v: None for v in outputs})
        half: dict[ir.Value, Array | None] = {}
        for value, data in found.items():
            if not isinstance(data, np.ndarray):
                self._fail(value, "a result is no tensor")
            elif value.dtype is not None and tensor_of(value, data).dtype != value.dtype:
                self._fail(value, "onnxruntime gives a result another type")
            else:
                self.results[value] = data
                if value.dtype == ir.DataType.FLOAT16:
                    half[value] = data
        if not half:
            return
        # ONNX Runtime computes most float16 operators in 32 bits, and does not round where one such
        # operator follows another. A result that rounding changes cannot be stored.
        for value, difference in self._session(nodes, half).items():
            if np.count_nonzero(difference):
                del self.results[value]
                self._fail(value, "onnxruntime computes it more precisely than its type")

    def _fail(self, value: ir.Value, reason: str) -> None:
        node = value.producer()
        assert node is not None
        self.failed[node] = reason

    def _session(
        self, nodes: Sequence[ir.Node], wanted: Mapping[ir.Value, Array | None]
    ) -> dict[ir.Value, Any]:
        """Compute values, or where an array is given, the difference of the value and that."""
        copier = _Copier(self.results)
        made = [copier.node(node) for node in nodes]
        results: dict[ir.Value, ir.Value] = {}
        for value, known in wanted.items():
            results[value] = copier.values[value]
            if known is not None:
                tensor = tensor_of(value, known)
                other = copier.constant(f"{value.name}//rounded", tensor)
                copier.constants.append(other)
                made.append(ir.Node("", "Sub", [results[value], other], num_outputs=1))
                results[value] = made[-1].outputs[0]
                results[value].name = f"{value.name}//difference"
        domains = {"", *(each.domain for node in nodes for each in _with_subgraphs(node))}
        graph = ir.Graph(
            [],
            list(results.values()),
            nodes=made,
            initializers=copier.constants,
            opset_imports={d: ir.opset(self.model, d) for d in sorted(domains)},
            name="constants",
        )
        model = ir.Model(graph, ir_version=self.model.ir_version)
        # It says how inputs of subgraphs were declared, which ONNX Runtime wants to know of Loop.
        model.meta.update(self.model.meta)
        timeout = _SECONDS if any(True for n in nodes for _ in ir.subgraphs(n)) else None
        with open_session(model) as session:
            found = session.run({}, timeout=timeout)
        return {value: found[result.name or ""] for value, result in results.items()}


def tensor_of(value: ir.Value, data: Array) -> ir.TensorProtocol:
    """The tensor that holds a result."""
    if data.dtype.kind == "O":
        strings = [str(s).encode() for s in data.flat]
        return ir.StringTensor(strings, shape=ir.Shape(data.shape), name=value.name)
    return ir.tensor(np.ascontiguousarray(data).reshape(data.shape), name=value.name)


class _Copier:
    """Copies nodes out of their graphs; weights are shared."""

    def __init__(self, results: dict[ir.Value, Array]) -> None:
        self.results = results
        self.values: dict[ir.Value, ir.Value] = {}
        self.constants: list[ir.Value] = []

    def node(self, node: ir.Node) -> ir.Node:
        attributes = [self.attribute(a) for a in node.attributes.values()]
        op, given = node.op_type, list(node.inputs)
        if op == "CastLike" and len(inputs(node)) == 1:
            op, given = "Cast", given[:1]
            attributes.append(ir.Attr("to", ir.AttributeType.INT, int(node.outputs[0].dtype or 0)))
        copy = ir.Node(
            node.domain,
            op,
            [None if v is None else self.value(v) for v in given],
            attributes,
            num_outputs=len(node.outputs),
            overload=node.overload,
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = old.name
            self.values[old] = new
        return copy

    def value(self, value: ir.Value) -> ir.Value:
        found = self.values.get(value)
        if found is None:
            result = self.results.get(value)
            tensor = ir.const(value) if result is None else tensor_of(value, result)
            assert tensor is not None, f"%{value.name} is not constant"
            found = self.values[value] = self.constant(value.name or "", tensor)
            self.constants.append(found)
        return found

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        return ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tuple(tensor.shape.numpy())),
            const_value=tensor,
        )

    def attribute(self, a: ir.Attr) -> ir.Attr:
        if a.type == ir.AttributeType.GRAPH and not a.is_ref():
            return ir.Attr(a.name, a.type, self.graph(a.as_graph()))
        if a.type == ir.AttributeType.GRAPHS and not a.is_ref():
            return ir.Attr(a.name, a.type, [self.graph(g) for g in a.as_graphs()])
        return a

    def graph(self, graph: ir.Graph) -> ir.Graph:
        formal: list[ir.Value] = []
        for value in graph.inputs:
            copy = ir.Value(name=value.name, type=value.type, shape=value.shape)
            self.values[value] = copy
            formal.append(copy)
        constants: list[ir.Value] = []
        for value in graph.initializers.values():
            if value.const_value is not None:
                copy = self.constant(value.name or "", value.const_value)
                self.values[value] = copy
                constants.append(copy)
        nodes = [self.node(node) for node in graph]
        outputs = [self.value(v) for v in graph.outputs]
        return ir.Graph(
            formal,
            outputs,
            nodes=nodes,
            initializers=constants,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
        )


def _with_subgraphs(node: ir.Node) -> Iterable[ir.Node]:
    yield node
    for graph in ir.subgraphs(node):
        for each in graph:
            yield from _with_subgraphs(each)

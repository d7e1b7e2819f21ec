"""The part of a model that computes the watched values, with these as its outputs."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.ir.content import Content
from graphopt.runtime.values import Feeds

__all__ = ["expected_sizes", "find", "model_digest", "putting_out"]


def find(model: ir.Model, names: Iterable[str]) -> dict[str, ir.Value]:
    """Look up values of the main graph.

    Raises:
        CalibrationError: There is no such value, or it is inside of a subgraph.
    """
    graph = model.graph
    known = _values(graph)
    found: dict[str, ir.Value] = {}
    for name in names:
        if name in known:
            found[name] = known[name]
            continue
        for inner in ir.all_graphs(model):
            if inner is not graph and name in _values(inner):
                raise CalibrationError(
                    f"%{name} is inside of a subgraph (a branch or a loop), whose values cannot be "
                    "observed"
                )
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean %{near[0]}?" if near else ""
        raise CalibrationError(f"the model has no value %{name}{hint}")
    return found


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    made = (v for node in graph for v in node.outputs)
    every = (*graph.inputs, *graph.initializers.values(), *made)
    return {v.name: v for v in every if v.name}


def putting_out(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of ``model`` whose outputs are the values ``names``, without what they do not need.

    Weights are shared. Inputs stay, so that it takes the same data.
    """
    copy = ir.clone(model)
    graph = copy.graph
    known = _values(graph)
    needed: set[ir.Value] = set()
    pending = [known[name] for name in names]
    graph.outputs.clear()
    graph.outputs.extend(pending)
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        needed.add(value)
        node = value.producer()
        if node is not None and node.graph is graph:
            needed.update(node.outputs)
            pending += (v for v in _reads(node) if v not in needed)
    unused = [n for n in graph if not any(v in needed for v in n.outputs)]
    graph.remove(unused)
    for value in list(graph.initializers.values()):
        if value not in needed and not value.is_graph_input():
            del graph.initializers[value.name or ""]
    return copy


def _reads(node: ir.Node) -> list[ir.Value]:
    """Values that a node reads, those that its subgraphs read from outside included."""
    found = [v for v in node.inputs if v is not None]
    for graph in ir.subgraphs(node):
        found.extend(graph.outputs)
        for inner in graph:
            found += _reads(inner)
    return found


def expected_sizes(
    values: Mapping[str, ir.Value], inputs: Iterable[ir.Value], feeds: Feeds
) -> dict[str, int]:
    """Estimate how many bytes values have for a batch; what is not known is guessed.

    Symbolic dimensions take the sizes that the batch gives them.
    """
    bound: dict[str, int] = {}
    for value in inputs:
        fed = feeds.get(value.name or "")
        declared = ir.dims(value)
        if isinstance(fed, np.ndarray) and declared is not None and len(declared) == fed.ndim:
            bound |= {d: n for d, n in zip(declared, fed.shape, strict=True) if isinstance(d, str)}
    other = max(bound.values(), default=1)
    sizes: dict[str, int] = {}
    for name, value in values.items():
        size = 1 if value.dtype is None else max(1, value.dtype.bitwidth // 8)
        for d in ir.dims(value) or ():
            size *= d if isinstance(d, int) else bound.get(d or "", other)
        sizes[name] = size
    return sizes


def model_digest(model: ir.Model) -> str:
    """Digest of what a model computes: its graph and its weights."""
    digest = hashlib.sha256()

    def keep(value: ir.Value, proto: Any) -> bool:
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            return False
        digest.update(f"{value.name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for chunk in Content(tensor).chunks():
            digest.update(chunk.data)
        return True

    proto = ir.to_proto(model, external=keep)
    digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()

"""Reading the IR: traversal, constants, attributes, shapes."""

from __future__ import annotations

import contextlib
import fnmatch
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as _ir
from onnx_ir import Graph, Model, Node, TensorProtocol, Value

from graphopt.ir import schema as _schema

__all__ = [
    "all_graphs",
    "all_nodes",
    "array",
    "attr",
    "const",
    "dims",
    "gc_paused",
    "inputs",
    "is_deterministic",
    "is_pure",
    "make_attr",
    "matches",
    "opset",
    "rank",
    "static_shape",
    "subgraphs",
    "use_count",
]

_SOURCES = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
})  # fmt: skip


# The standard operators that have graphs as attributes.
_CARRIERS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause cyclic garbage collection: half of the time it takes to build a graph of many nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def subgraphs(node: Node) -> Iterator[Graph]:
    """The graphs that are attributes of ``node`` (branches of If, bodies of Loop and Scan)."""
    if not node.domain and node.op_type not in _CARRIERS:
        return  # asked of every node over and over, so it has to be cheap
    for a in node.attributes.values():
        if a.is_ref():
            continue
        if a.type == _ir.AttributeType.GRAPH:
            yield a.as_graph()
        elif a.type == _ir.AttributeType.GRAPHS:
            yield from a.as_graphs()


def all_graphs(model: Model) -> Iterator[Graph]:
    """The main graph and every nested subgraph, outer graphs first, in program order."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        inner = [
            g for node in graph if node.op_type in _CARRIERS or node.domain for g in subgraphs(node)
        ]
        pending.extend(reversed(inner))


def all_nodes(model: Model) -> Iterator[Node]:
    """Every node of every graph of ``model``."""
    for graph in all_graphs(model):
        yield from graph


def inputs(model: Model) -> list[Value]:
    """The graph inputs that a caller has to feed: those that no initializer backs."""
    return [v for v in model.graph.inputs if not v.is_initializer()]


def const(value: Value | None) -> TensorProtocol | None:
    """The constant behind a value, or None.

    A graph input with an initializer is a default that callers may override, so it is not constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain == "":
        # Normal form leaves a Constant node only where a graph output needs a producer.
        return constant_tensor(node)
    return None


def array(value: Value | None) -> np.ndarray[Any, Any] | None:
    """The data of the constant behind a value, or None. Treat it as read-only."""
    tensor = const(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(node: Node) -> TensorProtocol | None:
    """The tensor that a Constant node holds; None for forms without one (sparse, references)."""
    if len(node.attributes) != 1:
        return None
    (a,) = node.attributes.values()
    if a.is_ref():
        return None
    name = node.outputs[0].name
    match a.name:
        case "value":
            return a.as_tensor()
        case "value_float":
            return _ir.tensor(np.float32(a.as_float()), name=name)
        case "value_floats":
            return _ir.tensor(np.array(a.as_floats(), np.float32), name=name)
        case "value_int":
            return _ir.tensor(np.int64(a.as_int()), name=name)
        case "value_ints":
            return _ir.tensor(np.array(a.as_ints(), np.int64), name=name)
        case "value_string" if isinstance(a.value, str):
            return _ir.StringTensor([a.value.encode()], shape=_ir.Shape([]), name=name)
        case "value_strings":
            data = [s.encode() for s in a.as_strings()]
            return _ir.StringTensor(data, shape=_ir.Shape([len(data)]), name=name)
    return None


def opset(where: Model | Graph | Node, domain: str = "") -> int:
    """The opset version of ``domain`` in force; 1 where the model does not say.

    In normal form every subgraph carries the opset imports of the model.
    """
    graph = where if isinstance(where, _ir.Graph) else where.graph
    return 1 if graph is None else graph.opset_imports.get(domain, 1)


def attr(node: Node, name: str, default: Any = None) -> Any:
    """Attribute value with the default of the ONNX schema filled in.

    Returns:
        int, float, str, tuple (for lists), Graph or tensor; ``default`` where neither the node nor
        the schema has a value.
    """
    a = node.attributes.get(name)
    if a is not None and not a.is_ref():
        value = a.value
        return tuple(value) if isinstance(value, (list, tuple)) else value
    found = _schema.default(node.domain, node.op_type, opset(node, node.domain), name)
    return default if found is None else found


def matches(node: Node, patterns: Iterable[str]) -> bool:
    """Whether a pattern (``*`` and ``?``) is a node's operator, or its name or that of a value."""
    names = [node.op_type, node.name or "", *(v.name or "" for v in node.outputs)]
    return any(fnmatch.fnmatchcase(n, p) for p in patterns for n in names)


def use_count(value: Value) -> int:
    """How many inputs of nodes a value is; ``len(value.uses())`` would copy the list each time."""
    return len(value._uses)


def make_attr(name: str, value: Any) -> _ir.Attr:
    """An attribute of the type that suits a Python value; bools are ints, empty lists are ints.

    Args:
        name: Name of the attribute.
        value: int, float, str, a sequence of one of those, a tensor, a graph, or an attribute,
            which is taken as it is.
    """
    if isinstance(value, _ir.Attr):
        return value
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, (list, tuple)) and not value:
        return _ir.AttrInt64s(name, [])
    return _ir.convenience.convert_attribute(name, value)


def is_deterministic(node: Node) -> bool:
    """Whether equal inputs give equal outputs; False where that is unknown.

    Unknown ops count as nondeterministic, except com.microsoft's, none of which draws random
    numbers but its dropouts.
    """
    if node.domain == "":
        if node.op_type in _SOURCES:
            return False
        if node.op_type == "Dropout":
            return not _training_dropout(node)
        if _schema.lookup("", node.op_type, opset(node)) is None:
            return False
    elif node.domain == "com.microsoft":
        if "Dropout" in node.op_type or "Random" in node.op_type or "Sampling" in node.op_type:
            return False
    elif _schema.lookup(node.domain, node.op_type, opset(node, node.domain)) is None:
        return False
    return all(is_deterministic(n) for g in subgraphs(node) for n in g)


def is_pure(node: Node) -> bool:
    """Whether a node can be removed when nothing uses its outputs.

    All of ONNX qualifies, random ops too; an op nobody described may have effects.
    """
    if node.domain not in ("", "com.microsoft") and (
        _schema.lookup(node.domain, node.op_type, opset(node, node.domain)) is None
    ):
        return False
    return all(is_pure(n) for g in subgraphs(node) for n in g)


def _training_dropout(node: Node) -> bool:
    version = opset(node)
    if version < 7:
        return not attr(node, "is_test", 0)
    if version < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    mode = array(node.inputs[2])
    return mode is None or bool(mode)


def rank(value: Value | None) -> int | None:
    """Number of dimensions of a tensor, or None where it is unknown or the value is no tensor."""
    if value is None or value.shape is None or not isinstance(value.type, _ir.TensorType):
        return None
    return len(value.shape)


def dims(value: Value | None) -> tuple[int | str | None, ...] | None:
    """Dimensions of a tensor: a size, a symbol, or None each; None overall for unknown rank.

    Negative sizes, which some exporters write for "dynamic", are unknown.
    """
    if value is None or value.shape is None or not isinstance(value.type, _ir.TensorType):
        return None
    return tuple(
        (d if d >= 0 else None) if isinstance(d, int) else (d.value or None) for d in value.shape
    )


def static_shape(value: Value | None) -> tuple[int, ...] | None:
    """Shape of a tensor where every dimension is known, else None."""
    found = dims(value)
    if found is None:
        return None
    sizes = tuple(d for d in found if isinstance(d, int))
    return sizes if len(sizes) == len(found) else None

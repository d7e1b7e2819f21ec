"""Model-local functions: what the inliners of onnx and onnx_ir get wrong, put right or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx_ir import Model
from onnx_ir.passes import PassError, PreconditionError
from onnx_ir.passes.common import InlinePass

from graphopt.ir.graph import all_nodes

__all__ = ["inline_model", "with_defaults"]


def with_defaults(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Write the default of an attribute into every call of a function that lacks the attribute.

    onnx.inliner drops such defaults: the operators of the body then fall back to defaults of their
    own, and the model computes something else.

    Args:
        proto: A model, which is not modified.

    Returns:
        A copy; ``proto`` itself if no function has such defaults.

    Raises:
        ValueError: Whether a default applies depends on who calls the caller, or an output of a
            function is one of its inputs, which onnx.inliner leaves dangling.
    """
    for function in proto.functions:
        if set(function.input) & set(function.output):
            name = f"{function.domain}::{function.name}"
            raise ValueError(f"an output of function {name} is one of its inputs")
    if not any(f.attribute_proto for f in proto.functions):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    defaults = {(f.domain, f.name, f.overload): f.attribute_proto for f in copy.functions}
    for node in _nodes(copy.graph.node):
        _complete(node, defaults.get((node.domain, node.op_type, node.overload), ()))
    for function in copy.functions:
        optional = set(function.attribute)  # without a default, so a call may lack them
        for node in _nodes(function.node):
            given = defaults.get((node.domain, node.op_type, node.overload), ())
            _complete(node, given)
            names = {a.name for a in given}
            for a in node.attribute:
                if a.name in names and a.ref_attr_name in optional:
                    raise ValueError(
                        f"function {function.domain}::{function.name} hands on attribute "
                        f"{a.ref_attr_name!r}, which a call may lack, to one with a default"
                    )
    return copy


def _complete(node: onnx.NodeProto, defaults: Iterable[onnx.AttributeProto]) -> None:
    own = {a.name for a in node.attribute}
    for a in defaults:
        if a.name not in own:
            node.attribute.add().CopyFrom(a)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for a in node.attribute:
            if a.HasField("g"):
                yield from _nodes(a.g.node)
            for graph in a.graphs:
                yield from _nodes(graph.node)


def inline_model(model: Model) -> None:
    """Inline the functions of an onnx_ir model, in place.

    Raises:
        ValueError: That is not possible; the message says why.
    """
    if not model.functions:
        return
    graph = model.graph
    names = [v.name for v in (*graph.inputs, *graph.outputs)]
    try:
        InlinePass()(model)
    except (PassError, PreconditionError) as e:
        raise ValueError(str(e.__cause__ or e)) from e
    if names != [v.name for v in (*graph.inputs, *graph.outputs)]:
        raise ValueError("an output of a function is one of its inputs")
    model.functions.clear()  # those that nothing called
    for node in all_nodes(model):
        # What a call did not name, the node in the body has to: its output need not be optional.
        if node.outputs and not any(v.name for v in node.outputs):
            node.outputs[0].name = "unused"

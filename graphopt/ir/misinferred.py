"""What onnx would infer wrongly: changes before its inference, and what not to believe after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx
import onnx_ir as _ir
from onnx_ir import Graph, Model, Node, Value

from graphopt.ir.graph import all_nodes, array, dims, opset, subgraphs
from graphopt.ir.prepare import graphs

__all__ = ["forget_after_slices", "sort_squeezed_axes", "tell_apart"]


def tell_apart(inputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Rename symbols that one input uses for two of its own dimensions.

    Exporters write words such as ``None`` there, so such dimensions need not be equal.
    """
    shapes = [(i.name, i.type.tensor_type.shape) for i in inputs if i.type.HasField("tensor_type")]
    ambiguous = {
        symbol
        for _, shape in shapes
        for symbol, n in Counter(d.dim_param for d in shape.dim).items()
        if symbol and n > 1
    }
    for name, shape in shapes if ambiguous else ():
        for axis, dim in enumerate(shape.dim):
            if dim.dim_param in ambiguous:
                dim.dim_param = f"%{name}[{axis}]"


def sort_squeezed_axes(graph: onnx.GraphProto) -> None:
    """Below opset 11: onnx overlooks axes of a Squeeze that do not ascend, or are negative.

    A reduction that does not keep its axes has the same shape, and there it does not.
    """
    for each in graphs(graph):
        for node in each.node:
            if node.op_type != "Squeeze" or node.domain:
                continue
            axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
            if axes != sorted(axes) or min(axes, default=0) < 0:
                node.op_type = "ReduceMax"
                node.attribute.append(onnx.helper.make_attribute("keepdims", 0))


def forget_after_slices(model: Model) -> None:
    """In opset 10: onnx takes it that a Slice keeps every dimension whose size is not a number.

    Symbols in the shapes of all that depends on such a Slice are forgotten.
    """
    doubtful: set[Value] = set()
    if any(_cuts_symbol(node) for node in all_nodes(model)):
        _forget(model.graph, doubtful, everything=False)


def _cuts_symbol(node: Node) -> bool:
    if node.op_type != "Slice" or node.domain or opset(node) != 10:
        return False
    shape = dims(node.outputs[0])
    if shape is None:
        return False
    starts, axes = ((array(v), v) for v in (*node.inputs, None, None, None)[1:4:2])
    if axes[1] is None:
        cut = range(len(shape)) if starts[0] is None else range(starts[0].size)
    elif axes[0] is None:
        cut = range(len(shape))
    else:
        cut = [int(a) for a in axes[0].reshape(-1)]
    return any(not isinstance(shape[a], int) for a in cut)


def _forget(graph: Graph, doubtful: set[Value], *, everything: bool) -> None:
    for node in graph:
        inner = list(subgraphs(node))
        for each in inner:
            doubtful.update(each.inputs)
            _forget(each, doubtful, everything=True)
        if everything or inner or _cuts_symbol(node) or any(v in doubtful for v in node.inputs):
            for value in node.outputs:
                doubtful.add(value)
                if value.shape is not None:
                    value.shape = _ir.Shape(
                        [d if isinstance(d, int) else None for d in value.shape]
                    )

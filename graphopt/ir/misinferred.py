"""What onnx would infer wrongly: changes before its inference, and what not to believe after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as _ir
from onnx_ir import Graph, Model, Node, Value

from graphopt.ir.graph import all_nodes, array, dims, opset, subgraphs
from graphopt.ir.prepare import graphs

__all__ = [
    "forget_after_slices",
    "hide_attention",
    "slice_to_the_front",
    "sort_squeezed_axes",
    "tell_apart",
]

_INT32_MAX = 2**31 - 1


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


def slice_to_the_front(graph: onnx.GraphProto) -> None:
    """Backwards to INT_MAX: onnx takes it for the last element, ONNX Runtime for the first."""
    everywhere = graphs(graph)
    constants = {t.name: t for each in everywhere for t in each.initializer}
    for each in everywhere:
        for node in each.node:
            if node.op_type != "Slice" or node.domain or len(node.input) < 5:
                continue
            ends, steps = _data(constants.get(node.input[2])), _data(constants.get(node.input[4]))
            if ends is None or steps is None or ends.shape != steps.shape:
                continue
            front = (steps < 0) & (ends >= _INT32_MAX)
            if front.any():
                name = f"{node.input[2]}<{node.output[0]}"
                data = np.where(front, np.iinfo(ends.dtype).min, ends)
                each.initializer.append(onnx.numpy_helper.from_array(data, name))
                node.input[2] = name


def _data(tensor: onnx.TensorProto | None) -> np.ndarray[Any, Any] | None:
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return onnx.numpy_helper.to_array(tensor)


def hide_attention(graph: onnx.GraphProto, found: Mapping[str, onnx.TypeProto]) -> bool:
    """Let onnx not infer an Attention where it took sizes that are not numbers for 0.

    That happens to the values of Attention if its last dimension is such a size, and to its product
    of queries and keys. Type and rank are what the first inference found.

    Args:
        graph: What onnx is to infer again.
        found: What it has inferred.

    Returns:
        Whether there is anything to infer again.
    """
    hidden = False
    for each in graphs(graph):
        declared = {info.name: info for info in each.output}
        for node in each.node:
            if node.op_type != "Attention" or node.domain:
                continue
            values = found.get(node.output[0])
            last = values.tensor_type.shape.dim[-1:] if values is not None else ()
            product = len(node.output) > 3 and node.output[3]
            if not product and not any(d.HasField("dim_value") and not d.dim_value for d in last):
                continue
            hidden = True
            node.op_type = "HiddenAttention"
            for name in node.output:
                if name in found:
                    info = declared.get(name) or each.value_info.add(name=name)
                    info.type.CopyFrom(found[name])
                    for dim in info.type.tensor_type.shape.dim:
                        dim.Clear()
    return hidden


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
    inputs = (*node.inputs, None, None)
    starts, axes = array(inputs[1]), array(inputs[3])
    cut: Iterable[int] = range(len(shape))
    if axes is not None:
        cut = [int(a) for a in axes.reshape(-1)]
    elif starts is not None and inputs[3] is None:
        cut = range(starts.size)
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

"""Writing dynamic and weight-only quantization into a model.

Dynamic quantization finds the range of an activation when it is there. The forms are standard
operators in the very arrangement that ONNX Runtime fuses into one kernel when it loads the model
(DynamicQuantizeMatMul, or MatMulIntegerToFloat where several products share an activation); only
recurrent and attention operators need operators of ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter

__all__ = [
    "dynamic_obstacle",
    "quantize_attention",
    "quantize_dynamic",
    "quantize_lstm",
    "quantize_rows",
]

Array = np.ndarray[Any, Any]

_MICROSOFT = "com.microsoft"
_INTEGERS = (np.dtype(np.int8), np.dtype(np.uint8))
# Products of 8-bit numbers that int32 holds the sum of, whatever they are.
_DEPTH = (2**31 - 1) // (255 * 255)


def dynamic_obstacle(node: ir.Node) -> str | None:
    """Why a node has no dynamic form, or None if it has one.

    Args:
        node: A node of a model in normal form.
    """
    find = _OBSTACLES.get((node.domain, node.op_type))
    if find is None:
        return f"{node.op_type} has no dynamic form"
    if ir.opset(node) < 11:
        return f"opset {ir.opset(node)} has no DynamicQuantizeLinear"
    if not node.inputs or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT:
        return "DynamicQuantizeLinear takes 32-bit floats only"
    return find(node)


def quantize_dynamic(
    rw: Rewriter,
    node: ir.Node,
    integers: Array,
    scale: Array,
    zero_point: Array | None = None,
) -> ir.Value:
    """Let a MatMul or Gemm compute on integers, its input quantized when it is there.

    ``Mul(Cast(MatMulInteger(x', w)), s * scale)`` with x' and s from DynamicQuantizeLinear, which
    nodes that read the same value share: quantize them in program order. An Add behind a MatMul
    stays; a Gemm's bias becomes one.

    Args:
        rw: Rewriter of the model.
        node: A node without :func:`dynamic_obstacle`. It is removed.
        integers: Its weight, ``[in, out]`` int8 or uint8: that of a Gemm with transB transposed.
        scale: What they are multiples of, a scalar or ``[out]``; a Gemm's alpha is not part of it.
        zero_point: Integer that stands for 0, of the shape of ``scale``; 0 if None.

    Returns:
        What takes the place of the node's output.

    Raises:
        ValueError: Integers or scales do not have the type or shape.
    """
    weight = ir.const(node.inputs[1])
    assert weight is not None
    shape = tuple(int(d) for d in weight.shape.numpy())
    gemm = node.op_type == "Gemm"
    if gemm and ir.attr(node, "transB", 0):
        shape = shape[::-1]
    if integers.dtype not in _INTEGERS or integers.shape != shape:
        raise ValueError(f"integers are int8 or uint8 of shape {shape}")
    if scale.shape not in ((), shape[1:]):
        raise ValueError(f"the scale is a scalar or of shape {shape[1:]}")
    x = node.inputs[0]
    assert x is not None
    out = node.outputs[0]
    name = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    factor = float(ir.attr(node, "alpha", 1.0)) if gemm else 1.0
    with rw.at(node):
        quantized, step, zero = _quantized(rw, node, x)
        sums = rw.op(
            "MatMulInteger",
            quantized,
            rw.const(integers, f"{name}.quantized"),
            zero,
            rw.const(_zero_point(integers, scale, zero_point), f"{name}.zero_point"),
        )
        steps = rw.const((scale.astype(np.float64) * factor).astype(np.float32), f"{name}.scale")
        found = rw.op(
            "Mul", rw.op("Cast", sums, to=int(ir.DataType.FLOAT)), rw.op("Mul", step, steps)
        )
        bias = node.inputs[2] if gemm and len(node.inputs) > 2 else None
        if bias is not None:
            found = rw.op("Add", found, _scaled(rw, bias, float(ir.attr(node, "beta", 1.0))))
    rw.replace(out, found)
    rw.erase(node)
    return found


def _quantized(rw: Rewriter, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
    """Integers, scale and zero point of an activation, computed once in each graph."""
    for use in x.uses():
        other = use.node
        if (
            other.op_type == "DynamicQuantizeLinear"
            and other.domain == ""
            and other.graph is node.graph
        ):
            return tuple(other.outputs)
    return rw.op("DynamicQuantizeLinear", x, outputs=3)


def _zero_point(integers: Array, scale: Array, zero_point: Array | None) -> Array:
    if zero_point is None:
        return np.zeros(scale.shape, integers.dtype)
    if zero_point.shape != scale.shape:
        raise ValueError(f"the zero point is of shape {scale.shape}")
    return zero_point.astype(integers.dtype)


def _scaled(rw: Rewriter, bias: ir.Value, beta: float) -> ir.Value:
    data = ir.array(bias)
    if beta == 1:
        return bias
    if data is not None:
        return rw.const((data * np.float32(beta)).astype(np.float32), bias.name or "bias")
    return rw.op("Mul", bias, rw.const(np.float32(beta), "beta"))


def quantize_lstm(
    rw: Rewriter,
    node: ir.Node,
    weights: tuple[Array, Array],
    scales: tuple[Array, Array],
) -> tuple[ir.Value, ...]:
    """Replace an LSTM by ONNX Runtime's com.microsoft.DynamicQuantizeLSTM.

    For targets that take operators of that domain.

    Args:
        rw: Rewriter of the model.
        node: An LSTM without :func:`dynamic_obstacle`. It is removed.
        weights: int8 in the shapes of W and R, ``[directions, 4 * hidden, in]``.
        scales: What they are multiples of, ``[directions]`` or ``[directions, 4 * hidden]`` each.

    Returns:
        The outputs of the new node.

    Raises:
        ValueError: Weights or scales do not have the type or shape.
    """
    given = list(node.inputs) + [None] * (8 - len(node.inputs))
    numbers: list[ir.Value] = []
    with rw.at(node):
        for i, (integers, scale) in enumerate(zip(weights, scales, strict=True), start=1):
            old = given[i]
            tensor = ir.const(old)
            assert old is not None
            assert tensor is not None
            shape = tuple(int(d) for d in tensor.shape.numpy())
            if integers.dtype != np.int8 or integers.shape != shape:
                raise ValueError(f"weights are int8 of shape {shape}")
            if scale.shape not in (shape[:1], shape[:2]):
                raise ValueError(f"scales are of shape {shape[:1]} or {shape[:2]}")
            # The kernel wants [directions, in, 4 * hidden].
            given[i] = rw.const(integers.transpose(0, 2, 1), f"{old.name}.quantized")
            numbers.append(rw.const(scale.astype(np.float32), f"{old.name}.scale"))
            numbers.append(rw.const(np.zeros(scale.shape, np.int8), f"{old.name}.zero_point"))
        for graph in ir.all_graphs(rw.model):
            graph.opset_imports.setdefault(_MICROSOFT, 1)
        found = rw.op(
            "DynamicQuantizeLSTM",
            *given,
            *numbers,
            like=node,
            outputs=len(node.outputs),
            domain=_MICROSOFT,
            layout=None,
        )
    maker = found[0].producer()
    assert maker is not None
    for i in reversed(range(len(found))):
        if node.outputs[i].name:
            rw.replace(node.outputs[i], found[i])
        else:
            rw.drop_output(maker, i)
    rw.erase(node)
    return tuple(maker.outputs)


def quantize_attention(rw: Rewriter, node: ir.Node, integers: Array, scale: Array) -> ir.Value:
    """Replace ONNX Runtime's com.microsoft.Attention by its QAttention.

    The projection of queries, keys and values computes on integers, attention itself on floats.

    Args:
        rw: Rewriter of the model.
        node: A com.microsoft.Attention without :func:`dynamic_obstacle`. It is removed.
        integers: Its weight, ``[in, 3 * hidden]`` int8.
        scale: What they are multiples of, a scalar or ``[3 * hidden]``.

    Returns:
        What takes the place of the node's output.

    Raises:
        ValueError: Integers or scales do not have the type or shape.
    """
    x, old, bias, mask = [*node.inputs, None][:4]
    weight = ir.const(old)
    assert x is not None
    assert old is not None
    assert weight is not None
    shape = tuple(int(d) for d in weight.shape.numpy())
    if integers.dtype != np.int8 or integers.shape != shape:
        raise ValueError(f"integers are int8 of shape {shape}")
    if scale.shape not in ((), shape[1:]):
        raise ValueError(f"the scale is a scalar or of shape {shape[1:]}")
    with rw.at(node):
        quantized, step, zero = _quantized(rw, node, x)
        found = rw.op(
            "QAttention",
            quantized,
            rw.const(integers, f"{old.name}.quantized"),
            bias,
            step,
            rw.const(scale.astype(np.float32), f"{old.name}.scale"),
            mask,
            zero,
            rw.const(np.zeros(scale.shape, np.int8), f"{old.name}.zero_point"),
            like=node,
            domain=_MICROSOFT,
        )
    rw.replace(node.outputs[0], found)
    rw.erase(node)
    return found


def quantize_rows(rw: Rewriter, node: ir.Node, integers: Array, scale: Array) -> ir.Value:
    """Store the table of a Gather as integers; rows become floats when they were fetched.

    Args:
        rw: Rewriter of the model.
        node: A Gather along axis 0 of a constant table of floats. It is removed.
        integers: The table as int8 or uint8, zero at 0.
        scale: What they are multiples of: one for each row, in the rank of the table
            (``[rows, 1, ...]``), or a scalar.

    Returns:
        What takes the place of the node's output.

    Raises:
        ValueError: Integers or scales do not have the type or shape.
    """
    table, indices = node.inputs
    tensor = ir.const(table)
    assert table is not None
    assert tensor is not None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    rows = (*shape[:1], *[1] * (len(shape) - 1))
    if integers.dtype not in _INTEGERS or integers.shape != shape:
        raise ValueError(f"integers are int8 or uint8 of shape {shape}")
    if scale.shape not in ((), rows):
        raise ValueError(f"the scale is a scalar or of shape {rows}")
    dtype = tensor.dtype
    with rw.at(node):
        steps = rw.const(scale.astype(dtype.numpy()), f"{table.name}.scale")
        fetched = rw.op("Gather", rw.const(integers, f"{table.name}.quantized"), indices, axis=0)
        if scale.shape:
            steps = rw.op("Gather", steps, indices, axis=0)
        found = rw.op("Mul", rw.op("Cast", fetched, to=int(dtype)), steps)
    rw.replace(node.outputs[0], found)
    rw.erase(node)
    return found


def _matmul(node: ir.Node) -> str | None:
    weight = ir.const(node.inputs[1])
    if weight is None:
        return "its weight is not constant"
    shape = tuple(int(d) for d in weight.shape.numpy())
    if len(shape) != 2:
        return "its weight is not a matrix"
    if not all(shape):
        return "its weight is empty"
    depth = shape[1] if node.op_type == "Gemm" and ir.attr(node, "transB", 0) else shape[0]
    if depth > _DEPTH:
        return f"sums of {depth} products may not fit into int32"
    if not np.isfinite(weight.numpy().astype(np.float32, copy=False)).all():
        return "its weight is not finite"
    return None


def _gemm(node: ir.Node) -> str | None:
    if ir.attr(node, "transA", 0):
        return "it reads its input transposed"
    return _matmul(node)


def _lstm(node: ir.Node) -> str | None:
    if ir.const(node.inputs[1]) is None or ir.const(node.inputs[2]) is None:
        return "its weights are not constant"
    if ir.attr(node, "layout", 0):
        return "DynamicQuantizeLSTM takes the sequence first (layout=0)"
    return None


def _attention(node: ir.Node) -> str | None:
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    if inputs[2] is None:
        return "QAttention needs a bias"
    if any(v is not None for v in inputs[4:]) or "qkv_hidden_sizes" in node.attributes:
        return "QAttention takes a mask, but no past, attention bias or sizes of its own"
    if "rotary" in " ".join(k for k in node.attributes if ir.attr(node, k)):
        return "QAttention does not rotate"
    return _matmul(node)


_OBSTACLES: dict[tuple[str, str], Callable[[ir.Node], str | None]] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "LSTM"): _lstm,
    (_MICROSOFT, "Attention"): _attention,
}

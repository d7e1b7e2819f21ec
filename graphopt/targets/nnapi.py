"""Android's NNAPI, as ONNX Runtime's execution provider uses it.

Requirements are those of the C++ sources of the provider (``IsOpSupportedImpl`` of its builders and
what it calls), at Android API level 30 and above. Each names its file, relative to
``onnxruntime/core/providers/nnapi/``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt import ir
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.quantized import activation_types, constant_scales, weight_types
from graphopt.targets.rules import (
    all_of,
    attribute,
    constant,
    gemm_bias,
    given,
    has_rank,
    no_dilations,
    since,
)
from graphopt.targets.scheme import Format, IntegerKernel, Predicate, Scheme

__all__ = ["NNAPI"]

# onnxruntime/tools/mobile_helpers/nnapi_supported_ops.md of ONNX Runtime 1.32.
_OPERATORS = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv",
    "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Exp", "Flatten", "Floor", "Gather", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "LRN", "LeakyRelu", "Log", "MatMul", "Max",
    "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul",
    "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Sin", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    "com.microsoft.QLinearAdd", "com.microsoft.QLinearAveragePool", "com.microsoft.QLinearSigmoid",
})  # fmt: skip


def _conv(node: ir.Node) -> str | None:
    weight = ir.static_shape(given(node, 1))
    depthwise = weight is not None and len(weight) > 1 and weight[1] == 1
    if ir.attr(node, "group", 1) != 1 and not depthwise and (why := no_dilations(node)):
        return f"it is a grouped convolution, and {why}"
    return None


def _pool(node: ir.Node) -> str | None:
    if len(node.outputs) > 1:
        return "it also tells where the largest elements are"
    for name in ("ceil_mode", "count_include_pad", "storage_order"):
        if ir.attr(node, name, 0):
            return f"its {name} is 1"
    return no_dilations(node)


def _clip(node: ir.Node) -> str | None:
    bounds = [ir.attr(node, "min"), ir.attr(node, "max")]  # before opset 11
    for i in (0, 1):
        if (value := given(node, i + 1)) is not None:
            data = ir.array(value)
            if data is None or data.size != 1:
                return "its bounds are computed, not constant"
            bounds[i] = data.item()
    if bounds in ([0, 6], [-1, 1]):
        return None
    return f"it clips to {bounds[0]} and {bounds[1]}, not to 0 and 6 or -1 and 1"


def _matmul(node: ir.Node) -> str | None:
    a, b = ir.static_shape(given(node, 0)), ir.static_shape(given(node, 1))
    if a is None or b is None:
        return None
    if len(a) >= 3 and a[:-2] == b[:-2] and len(a) == len(b):
        return None if _group(node) is None else "it is quantized and has batch dimensions"
    if (len(a), len(b)) != (2, 2):
        return f"it multiplies {list(a)} by {list(b)}: batch dimensions have to be the same"
    return constant("its second input is", 1)(node)


def _gemm_constant(node: ir.Node) -> str | None:
    return None if ir.attr(node, "transB", 0) else constant("its transB is 0 and its B", 1)(node)


def _gemm_bias(node: ir.Node) -> str | None:
    """Leading dimensions of 1 are squeezed away."""
    shape = ir.static_shape(given(node, 2))
    if shape and all(d == 1 for d in shape[:-1]):
        weight = ir.static_shape(given(node, 1))
        wanted = None if weight is None else weight[0 if ir.attr(node, "transB", 0) else -1]
        return None if shape[-1] == wanted else f"its bias has the shape {list(shape)}"
    return gemm_bias(node)


def _reshape(node: ir.Node) -> str | None:
    if ir.attr(node, "allowzero", 0):
        return "its allowzero is 1"
    return "its input is empty" if 0 in (ir.static_shape(given(node, 0)) or ()) else None


def _resize(node: ir.Node) -> str | None:
    mode = ir.attr(node, "mode", "nearest")
    place = ir.attr(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = ir.attr(node, "nearest_mode", "round_prefer_floor")
        if (place, rounding) != ("asymmetric", "floor"):
            return f"it takes the nearest by {place} and {rounding}, not by asymmetric and floor"
    elif mode != "linear":
        return f"its mode is {mode}"
    elif place not in ("half_pixel", "align_corners", "asymmetric"):
        return f"its coordinate_transformation_mode is {place}"
    for name in ("exclude_outside", "antialias", "axes"):
        if ir.attr(node, name):
            return f"it has {name}"
    if ir.attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    before, after = ir.static_shape(given(node, 0)), ir.static_shape(node.outputs[0])
    if before and after and len(before) == len(after) == 4:
        if before[0] != after[0] or not (before[1] == after[1] or before[3] == after[3]):
            return "it resizes batch or channels"
        if any(a < b and b % a for a, b in zip(after[2:], before[2:], strict=True) if a):
            return "it makes an image smaller by a factor that is no integer"
    return None


def _split(node: ir.Node) -> str | None:
    parts = ir.array(given(node, 1))
    if parts is not None:
        return "its parts are of different sizes" if len(set(parts.tolist())) > 1 else None
    shape = ir.static_shape(given(node, 0))
    if shape and shape[ir.attr(node, "axis", 0)] % len(node.outputs):
        return "its parts are of different sizes"
    return None


def _pad(node: ir.Node) -> str | None:
    pads = ir.array(given(node, 1))
    return "it has negative pads" if pads is not None and bool(np.any(pads < 0)) else None


def _gather(node: ir.Node) -> str | None:
    indices = given(node, 1)
    if indices is not None and indices.dtype == ir.DataType.INT32:
        return None
    return constant("its indices are not int32 and", 1)(node)


def _two_inputs(node: ir.Node) -> str | None:
    return None if len(node.inputs) == 2 else f"it has {len(node.inputs)} inputs, not 2"


def _one_output(node: ir.Node) -> str | None:
    return None if len(node.outputs) == 1 else "it has outputs for training"


# Operators that ONNX Runtime takes together with the DequantizeLinear before and the QuantizeLinear
# behind them, and of these the ones that the provider has a quantized form of.
_GROUPS = frozenset({
    "Add", "AveragePool", "Concat", "Conv", "ConvTranspose", "Div", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "InstanceNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pow",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize",
    "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_QUANTIZED = frozenset({
    "Add", "AveragePool", "Concat", "Conv", "Gemm", "MatMul", "Mul", "Reshape", "Resize", "Softmax",
    "Transpose",
})  # fmt: skip


def _group(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The DequantizeLinear of the first input and the QuantizeLinear of the first output."""
    first = given(node, 0)
    before = None if first is None else first.producer()
    users = [use.node for use in node.outputs[0].uses()]
    if before is None or before.op_type != "DequantizeLinear":
        return None
    if not users or any(user.op_type != "QuantizeLinear" for user in users):
        return None
    return before, users[0]


def _not_in_group(node: ir.Node) -> str | None:
    if _group(node) is None:
        return None
    return "it stands between DequantizeLinear and QuantizeLinear, where it falls back to the CPU"


def _parameters(node: ir.Node) -> tuple[float, int] | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, if per tensor and constant."""
    scale, point = ir.array(given(node, 1)), ir.array(given(node, 2))
    if scale is None or scale.size != 1:
        return None
    return float(scale.reshape(-1)[0]), int(point.reshape(-1)[0]) if point is not None else 0


def _same_scale(node: ir.Node) -> str | None:
    group = _group(node)
    if group is None or _parameters(group[0]) == _parameters(group[1]):
        return None
    return "its output has another scale or zero point than its input"


def _unit_scale(node: ir.Node) -> str | None:
    group = _group(node)
    found = None if group is None else _parameters(group[1])
    if found is None or (np.float32(found[0]) == np.float32(1 / 256) and found[1] == 0):
        return None
    return f"its output has the scale {found[0]:g} and the zero point {found[1]}"


def _per_tensor(node: ir.Node) -> str | None:
    """Weights of matrices have one scale."""
    weight = given(node, 1)
    producer = None if weight is None else weight.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = ir.static_shape(given(producer, 1))
    return None if scale is None or scale in ((), (1,)) else "its weight has a scale per channel"


def _needs(
    name: str, operators: str, source: str, *whys: Predicate, hint: str = "", fix: str = ""
) -> Requirement:
    return Requirement(
        name,
        all_of(*whys),
        frozenset(operators.split()),
        hint=hint,
        fix=fix,
        source=f"nnapi_builtin/builders/{source}",
    )


_REQUIREMENTS = (
    _needs(
        "conv",
        "Conv QLinearConv",
        "impl/conv_op_builder.cc",
        has_rank(0, [4]),
        _conv,
        hint="express one dimension by two",
        fix="lower-ops",
    ),
    _needs("conv-weight", "Conv", "impl/conv_op_builder.cc", constant("its weight is", 1)),
    _needs("conv-bias", "Conv", "nnapi_supported_ops.md", constant("its bias is", 2)),
    _needs(
        "pool",
        "AveragePool GlobalAveragePool GlobalMaxPool MaxPool",
        "impl/pool_op_builder.cc",
        has_rank(0, [4]),
        _pool,
        hint="where it pads nothing, count_include_pad makes no difference",
    ),
    _needs(
        "gemm",
        "Gemm",
        "impl/gemm_op_builder.cc",
        since(7),
        attribute("alpha", 1.0),
        attribute("beta", 1.0),
        attribute("transA", 0),
        has_rank(0, [2]),
        _gemm_constant,
        _gemm_bias,
        hint="express it by MatMul and Add",
        fix="lower-ops",
    ),
    _needs("matmul", "MatMul", "impl/gemm_op_builder.cc", _matmul),
    _needs("broadcast", "Add Sub Mul Div Pow", "impl/binary_op_builder.cc", since(7)),
    _needs(
        "clip",
        "Clip",
        "impl/clip_op_builder.cc",
        _clip,
        hint="use Relu, or Min and Max",
    ),
    _needs(
        "reshape",
        "Reshape",
        "impl/reshape_op_builder.cc",
        since(5),
        constant("its shape is", 1),
        _reshape,
    ),
    _needs(
        "resize",
        "Resize",
        "impl/resize_op_builder.cc",
        since(11),
        has_rank(0, [4]),
        constant("its scales or sizes are", 2, 3),
        _resize,
    ),
    _needs("slice", "Slice", "impl/slice_op_builder.cc", since(10),
           constant("its bounds are", 1, 2, 3, 4)),
    _needs("split", "Split", "impl/split_op_builder.cc", since(13), constant("its parts are", 1),
           _split),
    _needs("softmax", "Softmax", "impl/softmax_op_builder.cc", has_rank(0, [2, 4]),
           hint="reshape its input to two dimensions"),
    _needs("batch-norm", "BatchNormalization", "impl/batchnorm_op_builder.cc", since(7),
           constant("its statistics are", 1, 2, 3, 4), _one_output),
    _needs("pad", "Pad", "impl/pad_op_builder.cc", since(11), attribute("mode", "constant"),
           constant("its pads or value are", 1, 2), _pad),
    _needs("gather", "Gather", "impl/gather_op_builder.cc", has_rank(0, [1, 2, 3, 4]), _gather),
    _needs("reduce", "ReduceMean", "impl/reduction_op_builder.cc", has_rank(0, [1, 2, 3, 4]),
           constant("its axes are", 1)),
    _needs("sigmoid", "Sigmoid", "impl/unary_op_builder.cc", has_rank(0, [1, 2, 3, 4])),
    _needs("min-max", "Min Max", "impl/minmax_op_builder.cc", _two_inputs),
    _needs("cast", "Cast", "impl/cast_op_builder.cc",
           attribute("to", int(ir.DataType.FLOAT), int(ir.DataType.INT32))),
    _needs("axes", "Squeeze Unsqueeze", "nnapi_supported_ops.md", constant("its axes are", 1)),
    _needs("depth-to-space", "DepthToSpace", "nnapi_supported_ops.md", attribute("mode", "DCR")),
    # Quantized models.
    _needs(
        "quantized-form",
        " ".join(sorted((_GROUPS & _OPERATORS) - _QUANTIZED)),
        "impl/base_op_builder.cc, BaseOpBuilder::IsNodeUnitTypeSupported",
        _not_in_group,
        hint="drop QuantizeLinear and DequantizeLinear around it where it only moves elements; "
        "write GlobalAveragePool as AveragePool, Flatten and Squeeze as Reshape",
    ),
    _needs("quantized-pool", "AveragePool", "impl/pool_op_builder.cc", _same_scale,
           hint="give its output the scale and the zero point of its input"),
    _needs("quantized-softmax", "Softmax", "impl/softmax_op_builder.cc", _unit_scale,
           hint="quantize its output with scale 1/256 and zero point 0"),
    _needs("per-tensor", "Gemm MatMul", "op_support_helpers.cc", _per_tensor,
           hint="quantize its weight with one scale"),
    activation_types(("uint8",), "nnapi_builtin/builders/op_support_helpers.cc",
                     hint="quantize activations to uint8"),
    weight_types(("uint8", "int8"), "nnapi_builtin/builders/helper.cc"),
    constant_scales("nnapi_builtin/builders/op_support_helpers.cc"),
)  # fmt: skip

_QDQ = "nnapi_builtin/builders/helper.cc, GetQuantizedOpType"
_PAIR = IntegerKernel(activations=None, source=_QDQ)
_MOVES = IntegerKernel(passes_through=True, source=_QDQ)
_KERNELS: Mapping[str, IntegerKernel] = {
    "Conv": IntegerKernel(
        weight=1,
        bias=2,
        where=all_of(has_rank(0, [4]), constant("its weight or bias is", 1, 2)),
        source=_QDQ,
    ),
    "Gemm": IntegerKernel(
        weight=1,
        weight_axis=1,
        granularity="tensor",
        bias=2,
        where=all_of(
            attribute("alpha", 1.0),
            attribute("beta", 1.0),
            attribute("transA", 0),
            constant("its bias is", 2),
            gemm_bias,
        ),
        source=_QDQ,
    ),
    "MatMul": IntegerKernel(
        weight=1,
        weight_axis=1,
        granularity="tensor",
        where=all_of(has_rank(0, [2]), constant("its second input is", 1)),
        source=_QDQ,
    ),
    "Add": _PAIR,
    "Mul": _PAIR,
    "Concat": _PAIR,
    "Softmax": IntegerKernel(output=(1 / 256, 0), source=_QDQ),
    "AveragePool": IntegerKernel(
        passes_through=True, source="nnapi_builtin/builders/impl/pool_op_builder.cc"
    ),
    "Reshape": _MOVES,
    "Resize": _MOVES,
    "Transpose": _MOVES,
    # No form between DequantizeLinear and QuantizeLinear, but one of uint8 tensors.
    "MaxPool": IntegerKernel(
        passes_through=True,
        on_integers=True,
        where=since(12),
        source="nnapi_builtin/builders/impl/pool_op_builder.cc, HasSupportedInputOutputsImpl",
    ),
}

NNAPI = Target(
    "nnapi",
    ("NnapiExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime with Android's NNAPI",
    opsets=(7, 26),
    operators=_OPERATORS,
    static_shapes=True,
    max_rank=4,
    dtypes=frozenset({"float", "int8", "int32", "uint8"}),
    external_data=False,
    fp16="none",
    scheme=Scheme(
        "u8s8",
        Format("uint8"),
        Format("int8", symmetric=True, granularity="channel"),
        _KERNELS,
        source="nnapi_builtin/builders/op_support_helpers.cc: s8s8 is a TODO there",
    ),
    requirements=_REQUIREMENTS,
    sources={
        "opsets": "nnapi_builtin/builders/impl/base_op_builder.h: single operators need more",
        "operators": "onnxruntime/tools/mobile_helpers/nnapi_supported_ops.md of 1.32",
        "domains": "onnxruntime/tools/mobile_helpers/nnapi_supported_ops.md of 1.32; "
        "microsoft/onnxruntime issue 9285",
        "static_shapes": "nnapi_builtin/builders/impl/base_op_builder.cc, HasSupportedInputOutputs",
        "max_rank": "nnapi_builtin/builders/impl/reshape_op_builder.cc, binary_op_builder.cc",
        "dtypes": "nnapi_builtin/builders/impl/base_op_builder.cc, HasSupportedInputOutputsImpl",
        "external_data": "nnapi_builtin/builders/impl/base_op_builder.cc, HasExternalInitializer",
        "fp16": "base_op_builder.cc: inputs have to be 32-bit floats; it computes in 16-bit ones "
        "with the flag NNAPI_FLAG_USE_FP16",
    },
)

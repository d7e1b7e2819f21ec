"""XNNPACK and Qualcomm's QNN, on phones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from graphopt import ir
from graphopt.targets import cpu
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.quantized import activation_types, constant_scales, weight_types
from graphopt.targets.rules import all_of, constant, given, has_rank, quantized_role
from graphopt.targets.scheme import Format, IntegerKernel, Scheme

__all__ = ["QNN", "XNNPACK"]

_DOC = "ONNX Runtime documentation, XNNPACK execution provider"
_CONV = "ONNX Runtime, core/providers/xnnpack/nn/conv_base.cc, detail/utils.cc"


def _last_axis(node: ir.Node) -> str | None:
    axis, rank = ir.attr(node, "axis", -1), ir.rank(given(node, 0))
    if axis == -1 or rank is None or axis == rank - 1:
        return None
    return f"its axis is {axis}, not the last one"


def _per_tensor(kernel: IntegerKernel) -> IntegerKernel:
    return kernel if kernel.weight is None else dataclasses.replace(kernel, granularity="tensor")


XNNPACK = Target(
    "xnnpack",
    ("XnnpackExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime with XNNPACK, on phones",
    # Its own threads compete with those of ONNX Runtime.
    session={"session.intra_op.allow_spinning": "0"},
    domains=cpu.DOMAINS,
    scheme=Scheme(
        "u8u8",
        Format("uint8"),
        Format("uint8"),
        # What XNNPACK lacks, the CPU provider computes on the same integers.
        {
            **{name: _per_tensor(kernel) for name, kernel in cpu.KERNELS.items()},
            "ConvTranspose": IntegerKernel(weight=1, weight_axis=1, bias=2, source=_CONV),
        },
        source=_CONV,
    ),
    requirements=(
        Requirement(
            "conv-2d",
            all_of(has_rank(0, [4]), constant("its weight or bias is", 1, 2)),
            frozenset({"Conv", "ConvTranspose"}),
            source=_DOC,
        ),
        Requirement(
            "pool-2d", has_rank(0, [4]), frozenset({"AveragePool", "MaxPool"}), source=_DOC
        ),
        Requirement(
            "matrix",
            all_of(has_rank(0, [2]), constant("its weight is", 1)),
            frozenset({"Gemm", "MatMul"}),
            source=_DOC,
        ),
        Requirement("last-axis", _last_axis, frozenset({"Softmax"}), source=_DOC),
        activation_types(("uint8", "int8"), _CONV),
        weight_types(
            ("uint8", "int8"), _CONV, hint="quantize weights to the type of the activations"
        ),
        constant_scales(_CONV),
    ),
    sources={
        "opsets": "as ONNX Runtime; not run by tests",
        "operators": _DOC + ": what it lacks runs on the CPU provider, at little cost",
        "domains": "ONNX Runtime, ContribOperators.md: left to the CPU provider",
    },
)  # fmt: skip

_QNN = "ONNX Runtime documentation, QNN execution provider"
_RAN = "ran on onnxruntime-qnn 2.7.0, HTP emulator, 2026-11"
_EXACT = _RAN + ": within one step of the CPU's results; tests/targets/test_kernels.py repeats it"
_ONE = IntegerKernel(source=_EXACT)
_ALL = IntegerKernel(activations=None, source=_EXACT)
_MOVES = IntegerKernel(passes_through=True, source=_EXACT)
_KERNELS: Mapping[str, IntegerKernel] = {
    "Conv": IntegerKernel(weight=1, bias=2, source=_EXACT),
    "ConvTranspose": IntegerKernel(weight=1, weight_axis=1, bias=2, source=_EXACT),
    "Gemm": IntegerKernel(weight=1, weight_axis=1, bias=2, source=_EXACT),
    "MatMul": IntegerKernel(activations=None, weight=1, weight_axis=1, source=_EXACT),
    "Where": IntegerKernel(activations=(1, 2), source=_EXACT),
    **dict.fromkeys(
        (
            "Abs", "AveragePool", "Clip", "Elu", "Exp", "Gelu", "GlobalAveragePool", "HardSigmoid",
            "HardSwish", "LeakyRelu", "Neg", "ReduceMean", "ReduceSum", "Relu", "Tanh",
        ),
        _ONE,
    ),
    **dict.fromkeys(("Add", "Concat", "Div", "Max", "Min", "Mul", "Sub"), _ALL),
    **dict.fromkeys(
        (
            "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GlobalMaxPool",
            "Identity", "MaxPool", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        _MOVES,
    ),
    **dict.fromkeys(("Sigmoid", "Softmax"), IntegerKernel(output=(1 / 256, 0), source=_EXACT)),
}  # fmt: skip
_FALLS_BACK = frozenset(
    {"Erf", "If", "Loop", "Scan"}
    | {
        f"com.microsoft.{name}"
        for name in (
            "FusedConv", "MatMulNBits", "QGemm", "QLinearAdd", "QLinearLeakyRelu", "QLinearMul",
        )
    }
)  # fmt: skip


def _signed(node: ir.Node) -> str | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    role = None if producer is None else quantized_role(producer)
    signed = role is not None and role[1] == ir.DataType.INT8
    return "its input is int8, and it falls back to the CPU" if signed else None


QNN = Target(
    "qnn",
    ("QNNExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime with QNN, on Qualcomm's NPUs",
    provider_options={"QNNExecutionProvider": {"backend_type": "htp"}},
    opsets=(11, 26),
    domains=frozenset(),
    static_shapes=True,
    max_rank=5,
    scheme=Scheme(
        "u8s8",
        Format("uint8"),
        Format("int8", symmetric=True, granularity="channel"),
        _KERNELS,
        whole=True,
        source=_QNN,
    ),
    requirements=(
        Requirement(
            "falls-back",
            lambda node: "it falls back to the CPU",
            _FALLS_BACK,
            hint="give it the model as it was before operators were fused",
            source=_RAN,
        ),
        Requirement(
            "unsigned",
            _signed,
            frozenset({"HardSigmoid", "LeakyRelu"}),
            hint="quantize activations to uint8",
            source=_RAN,
        ),
        activation_types(("uint8", "uint16", "int8"), _QNN),
        constant_scales(_QNN),
    ),
    sources={
        "opsets": _RAN,
        "domains": _RAN,
        "static_shapes": _RAN + ": with a dynamic batch every node falls back to the CPU",
        "max_rank": _RAN + ": rank 6 falls back to the CPU, lower limits were not tried",
    },
)

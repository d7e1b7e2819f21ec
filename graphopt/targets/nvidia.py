"""NVIDIA GPUs: ONNX Runtime's CUDA and TensorRT execution providers."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.targets import cpu
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.quantized import activation_types, float_bias, zero_points_of_0
from graphopt.targets.scheme import Format, IntegerKernel, Scheme

__all__ = ["CUDA", "TENSORRT"]

_ONLY_NBITS = (
    "ONNX Runtime, qdq_selector_action_transformer.cc: of its rules only DequantizeLinear with "
    "MatMul to MatMulNBits names CUDA"
)
_NO_QLINEAR = "microsoft/onnxruntime issues 24807, 12229, 3294"
_QLINEAR = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
    | {
        f"com.microsoft.{name}"
        for name in (
            "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool",
            "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax",
            "QLinearWhere", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
        )
    }
)  # fmt: skip

CUDA = Target(
    "cuda",
    ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime on an NVIDIA GPU",
    domains=cpu.DOMAINS,
    scheme=Scheme(
        "w4",
        Format("uint8"),
        Format("int4", symmetric=True, granularity="block", block=32),
        {"MatMul": IntegerKernel(forms=("weight-only",), weight=1, source=_ONLY_NBITS)},
        drops_relu=False,
        source=_ONLY_NBITS,
    ),
    requirements=(
        Requirement(
            "cpu-only",
            lambda node: "it has no CUDA kernel and falls back to the CPU",
            _QLINEAR,
            hint="keep it in 16-bit or 32-bit floats; for int8 use TensorRT",
            source=_NO_QLINEAR,
        ),
    ),
    sources={
        "opsets": "as ONNX Runtime; not run by tests without a GPU",
        "domains": "ONNX Runtime, ContribOperators.md",
        "fp16": "general knowledge; not run by tests without a GPU",
    },
)

_TENSORRT = (
    "ONNX Runtime documentation, TensorRT execution provider; NVIDIA, Working with Quantized Types"
)
_BIAS = "microsoft/onnxruntime issues 14229, 17738"
_PLAIN = IntegerKernel(source=_TENSORRT)
_BOTH = IntegerKernel(activations=None, source=_TENSORRT)
_MOVES = IntegerKernel(passes_through=True, source=_TENSORRT)
# Softmax is left out: quantizing it breaks the parser (microsoft/onnxruntime issue 14626).
_KERNELS: Mapping[str, IntegerKernel] = {
    "Conv": IntegerKernel(weight=1, bias=2, float_output=True, source=_TENSORRT),
    "ConvTranspose": IntegerKernel(
        weight=1, weight_axis=1, bias=2, float_output=True, source=_TENSORRT
    ),
    "Gemm": IntegerKernel(weight=1, weight_axis=1, bias=2, float_output=True, source=_TENSORRT),
    "MatMul": IntegerKernel(
        activations=None, weight=1, weight_axis=1, float_output=True, source=_TENSORRT
    ),
    "Add": _BOTH,
    "Concat": _BOTH,
    "AveragePool": _PLAIN,
    "GlobalAveragePool": _PLAIN,
    "MaxPool": _MOVES,
    "Reshape": _MOVES,
    "Transpose": _MOVES,
}

TENSORRT = Target(
    "tensorrt",
    ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime with TensorRT on an NVIDIA GPU",
    provider_options={"TensorrtExecutionProvider": {"trt_fp16_enable": "1"}},
    static_shapes=True,
    max_rank=8,
    scheme=Scheme(
        "s8s8",
        Format("int8", symmetric=True),
        Format("int8", symmetric=True, granularity="channel"),
        _KERNELS,
        bias="float",
        drops_relu=False,
        source=_TENSORRT,
    ),
    requirements=(
        activation_types(("int8",), _TENSORRT, hint="quantize activations to int8, symmetrically"),
        zero_points_of_0(_TENSORRT),
        float_bias(_BIAS),
        Requirement(
            "no-qoperator",
            lambda node: "it takes quantized models as QuantizeLinear and DequantizeLinear only",
            _QLINEAR,
            hint="quantize with the spelling qdq",
            source=_TENSORRT,
        ),
    ),
    sources={
        "opsets": "as ONNX Runtime; bound to the version of TensorRT, not checked",
        "domains": "ONNX Runtime documentation, TensorRT execution provider: ai.onnx, or plugins",
        "static_shapes": "ONNX Runtime documentation, TensorRT execution provider: otherwise give "
        "trt_profile_min_shapes, opt_shapes and max_shapes",
        "max_rank": "NVIDIA TensorRT, Dims::MAX_DIMS",
    },
)

"""ONNX Runtime's CPU execution provider, on x86-64 and 64-bit Arm."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graphopt import ir
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.quantized import activation_types
from graphopt.targets.rules import (
    all_of,
    attribute,
    constant,
    gemm_bias,
    given,
    no_dilations,
    since,
)
from graphopt.targets.scheme import Format, IntegerKernel, Scheme

__all__ = ["ARM64", "CPU", "DOMAINS", "KERNELS", "STATIC_KERNELS", "X64", "X64_AVX2", "host"]

# Which operators ONNX Runtime turns into integer kernels when they stand between DequantizeLinear
# and QuantizeLinear. The test makes a model of each and looks at what ONNX Runtime makes of it.
_FUSED = (
    "ONNX Runtime, qdq_selector_action_transformer.cc; "
    "run by tests/targets/test_kernels.py on 1.32, x86-64"
)
_DYNAMIC = (
    "ONNX Runtime, dynamic_quantize_matmul_fusion.cc, dynamic_quantize_lstm.cc, "
    "attention_quant.cc; run by tests/targets/test_kernels.py on 1.32, x86-64"
)
_SATURATION = (
    "ONNX Runtime documentation, Quantize ONNX models: on AVX2 and AVX512 VPMADDUBSW saturates "
    "sums of pairs of 8-bit products"
)
DOMAINS = frozenset({"com.microsoft", "ai.onnx.ml"})


def _matmul(node: ir.Node) -> str | None:
    weight = given(node, 1)
    if ir.const(weight) is not None and ir.rank(weight) != 2:
        return f"its weight has {ir.rank(weight)} dimensions, not 2"
    return None


_MOVES = IntegerKernel(passes_through=True, source=_FUSED)
_MOVES_SINCE_12 = IntegerKernel(passes_through=True, where=since(12), source=_FUSED)
_BOTH = IntegerKernel(activations=None, source=_FUSED)
_UNIT = IntegerKernel(output=(1 / 256, 0), source=_FUSED)

KERNELS: Mapping[str, IntegerKernel] = {
    "Conv": IntegerKernel(weight=1, bias=2, where=constant("its bias is", 2), source=_FUSED),
    "Gemm": IntegerKernel(
        forms=("static", "dynamic"),
        weight=1,
        weight_axis=1,
        bias=2,
        float_output=True,
        where=all_of(
            attribute("alpha", 1.0),
            attribute("beta", 1.0),
            constant("its bias is", 2),
            gemm_bias,
        ),
        source=_FUSED,
    ),
    "MatMul": IntegerKernel(
        forms=("static", "dynamic", "weight-only"),
        activations=None,
        weight=1,
        weight_axis=1,
        float_output=True,
        where=_matmul,
        source=_FUSED,
    ),
    "LSTM": IntegerKernel(
        forms=("dynamic",),
        weight=1,
        more_weights=(2,),
        weight_axis=1,
        where=constant("its bias is", 3),
        source=_DYNAMIC,
    ),
    "com.microsoft.Attention": IntegerKernel(
        forms=("dynamic",),
        weight=1,
        weight_axis=1,
        where=constant("its bias is", 2),
        source=_DYNAMIC,
    ),
    "Add": _BOTH,
    "Mul": _BOTH,
    "Concat": _BOTH,
    "Where": IntegerKernel(activations=(1, 2), source=_FUSED),
    "AveragePool": IntegerKernel(where=no_dilations, source=_FUSED),
    "GlobalAveragePool": IntegerKernel(source=_FUSED),
    "LeakyRelu": IntegerKernel(source=_FUSED),
    "Sigmoid": _UNIT,
    "Softmax": _UNIT,
    "MaxPool": _MOVES_SINCE_12,
    "ReduceMax": _MOVES_SINCE_12,
    "ReduceMin": _MOVES_SINCE_12,
    "Resize": IntegerKernel(passes_through=True, where=attribute("mode", "nearest"), source=_FUSED),
    # Rows of a table may be stored as integers, and made floating point after they were fetched.
    "Gather": IntegerKernel(
        forms=("static", "weight-only"), weight=0, passes_through=True, source=_FUSED
    ),
    "DepthToSpace": _MOVES,
    "Expand": _MOVES,
    "Flatten": _MOVES,
    "GatherElements": _MOVES,
    "Identity": _MOVES,
    "Reshape": _MOVES,
    "Slice": _MOVES,
    "Split": _MOVES,
    "Squeeze": _MOVES,
    "Tile": _MOVES,
    "Transpose": _MOVES,
    "Unsqueeze": _MOVES,
}


def _zeros(node: ir.Node) -> str | None:
    if ir.opset(node) < 11:
        return "its padding is an attribute before opset 11, and float"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    data = np.zeros(()) if value is None else ir.array(value)
    if ir.attr(node, "mode", "constant") != "constant" or data is None or np.any(data):
        return "it does not pad with 0"
    return None


_KERNEL_PAD = "onnxruntime/core/providers/cpu/tensor/pad.cc"

# For targets that read models of standard operators alone.
STATIC_KERNELS: Mapping[str, IntegerKernel] = {
    name: dataclasses.replace(kernel, forms=("static",))
    for name, kernel in KERNELS.items()
    if "static" in kernel.forms
}

# Pad is not fused, but pads integers: with the zero point in the place of 0.
_PAD = IntegerKernel(passes_through=True, where=_zeros, source=_KERNEL_PAD)
_CPU_KERNELS: Mapping[str, IntegerKernel] = {**KERNELS, "Pad": _PAD}

_U8 = Format("uint8")
_S8 = Format("int8", symmetric=True, granularity="channel")
_VNNI = Scheme(
    "u8s8",
    _U8,
    _S8,
    _CPU_KERNELS,
    moves="integers",
    spelling="qoperator",
    source="measured: 2 to 4 times the speed of float convolutions",
)
_AVX2 = Scheme(
    "u8s7",
    _U8,
    Format("int8", symmetric=True, granularity="channel", levels=128),
    _CPU_KERNELS,
    moves="integers",
    spelling="qoperator",
    source=_SATURATION,
)
_ARM = Scheme(
    "s8s8",
    Format("int8"),
    _S8,
    _CPU_KERNELS,
    moves="integers",
    spelling="qoperator",
    source="ONNX Runtime, convert_onnx_models_to_ort.py --target_platform arm; not run by tests",
)


def _quantized_pool(node: ir.Node) -> str | None:
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear":
        return None
    return no_dilations(node)


_POOL = Requirement(
    "quantized-dilated-pool",
    _quantized_pool,
    frozenset({"AveragePool"}),
    hint="leave it in floating point: ONNX Runtime fuses it to an operator that has no dilations, "
    "and then refuses the model",
    source="tests/targets/test_kernels.py on ONNX Runtime 1.32",
)
# Operators that have kernels for 32-bit floats, and none for these types.
_NO_KERNEL = {
    ir.DataType.DOUBLE: frozenset({
        "AveragePool", "Conv", "ConvTranspose", "Elu", "Erf", "Gelu", "GlobalAveragePool",
        "GlobalMaxPool", "HardSigmoid", "HardSwish", "InstanceNormalization", "LRN", "LeakyRelu",
        "Mish", "PRelu", "Resize", "Selu", "Softplus", "Softsign",
    }),
    ir.DataType.BFLOAT16: frozenset({
        "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Ceil", "Conv",
        "ConvTranspose", "Cos", "CumSum", "Div", "Elu", "Erf", "Exp", "Floor", "GRU", "Gelu",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
        "InstanceNormalization", "LRN", "LSTM", "LeakyRelu", "Log", "LogSoftmax", "MatMul", "Max",
        "MaxPool", "Min", "Mish", "Mod", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "ReduceMax",
        "ReduceMean", "ReduceSum", "Relu", "Resize", "Selu", "Sigmoid", "Sin", "Softmax",
        "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
    }),
}  # fmt: skip


def _kernel(node: ir.Node) -> str | None:
    value = given(node, 0)
    dtype = None if value is None else value.dtype
    if dtype is None or node.op_type not in _NO_KERNEL.get(dtype, ()):
        return None
    return f"there is no kernel of {node.op_type} for {dtype.name.lower()}"


_ELEMENTS = Requirement(
    "kernel",
    _kernel,
    frozenset().union(*_NO_KERNEL.values()),
    hint="cast to 32-bit floats around it: ONNX Runtime refuses the model",
    source="tests/targets/test_check.py on ONNX Runtime 1.32",
)
_UNSIGNED = activation_types(
    ("uint8", "uint16"),
    "measured: 0.6 times the speed of floating point with int8 on x86-64, where QDQS8ToU8"
    "Transformer gives up at a tensor with several users (qdq_s8_to_u8.cc)",
    hint="quantize activations to uint8; the same scales with zero points 128 larger",
    slow=True,
)
_SOURCES = {
    "opsets": "ran on ONNX Runtime 1.31 and 1.32; it has no kernels for the default domain below 7",
    "ir_version": "read by ONNX Runtime 1.32",
    "domains": "ONNX Runtime, ContribOperators.md",
    "fp16": "measured: Casts around every node, and 0.8 to 0.96 times the speed of 32-bit floats",
}
_PROVIDERS = ("CPUExecutionProvider",)
_INTEL = frozenset({"x86_64", "amd64"})
_ARMS = frozenset({"arm64", "aarch64"})

X64 = Target(
    "cpu-x64",
    _PROVIDERS,
    "ONNX Runtime on an x86-64 CPU with VNNI",
    processors=_INTEL,
    domains=DOMAINS,
    fp16="slow",
    scheme=_VNNI,
    requirements=(_ELEMENTS, _POOL, _UNSIGNED),
    sources=_SOURCES,
)
X64_AVX2 = Target(
    "cpu-x64-avx2",
    _PROVIDERS,
    "ONNX Runtime on an x86-64 CPU without VNNI",
    processors=_INTEL,
    domains=DOMAINS,
    fp16="slow",
    scheme=_AVX2,
    requirements=(_ELEMENTS, _POOL, _UNSIGNED),
    sources=_SOURCES,
)
ARM64 = Target(
    "cpu-arm64",
    _PROVIDERS,
    "ONNX Runtime on a 64-bit Arm CPU",
    processors=_ARMS,
    session={"session.qdqisint8allowed": "1"},
    domains=DOMAINS,
    scheme=_ARM,
    requirements=(_ELEMENTS, _POOL),
    sources={k: v for k, v in _SOURCES.items() if k != "fp16"},
)


@functools.cache
def host() -> Target:
    """The CPU that this process runs on, as a target; x86-64 with VNNI where that is not known."""
    if platform.machine().lower() in _ARMS:
        return ARM64
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        return X64
    return _from_cpuinfo(text)


def _from_cpuinfo(text: str) -> Target:
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return X64_AVX2 if flags and "vnni" not in flags else X64


# What runs anywhere, quantized for where it is made.
CPU = Target(
    "cpu",
    _PROVIDERS,
    "ONNX Runtime on any CPU; quantized for the one of this machine",
    processors=_INTEL | _ARMS,
    session=host().session,
    domains=DOMAINS,
    fp16="slow",
    scheme=host().scheme,
    requirements=(_ELEMENTS, _POOL),
    sources=_SOURCES,
)

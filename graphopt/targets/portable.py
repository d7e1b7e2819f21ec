"""Targets that other runtimes serve: standard operators, browsers, OpenVINO."""

from __future__ import annotations

import dataclasses

from graphopt.targets import cpu
from graphopt.targets.profile import Requirement, Target
from graphopt.targets.scheme import Format, IntegerKernel, Scheme

__all__ = ["OPENVINO", "PORTABLE", "WEB"]

_CONSUMERS = (
    "loaded by ONNX Runtime, ORT-Web, TVM, OpenVINO and QNN in 2026-11; TVM, MNN, pnnx, CoreML and "
    "QNN refuse or leave aside com.microsoft.FusedConv"
)


def _common(kernel: IntegerKernel) -> IntegerKernel:
    """A kernel with the one granularity of weights that every runtime reads."""
    return dataclasses.replace(kernel, granularity=None if kernel.weight is None else "tensor")


PORTABLE = Target(
    "portable",
    ("CPUExecutionProvider",),
    "standard operators for any consumer",
    opsets=(11, 21),
    ir_version=10,
    scheme=Scheme(
        "portable-int8",
        Format("uint8"),
        # The middle as zero point: as good as a signed type for those who want one.
        Format("uint8", symmetric=True),
        {name: _common(kernel) for name, kernel in cpu.STATIC_KERNELS.items()},
        source="accepted by NNAPI, XNNPACK, QNN, OpenVINO and both CPU architectures",
    ),
    sources={
        "opsets": _CONSUMERS,
        "ir_version": "came with opset 21",
        "domains": _CONSUMERS,
    },
)

_WEB = "ran on onnxruntime-web 1.30, wasm and WebGPU, 2026-11"
WEB = Target(
    "web",
    ("CPUExecutionProvider",),
    "ONNX Runtime Web, in browsers",
    opsets=(7, 26),
    domains=frozenset(),
    fp16="none",
    scheme=Scheme(
        "u8s8",
        Format("uint8"),
        Format("int8", symmetric=True, granularity="channel"),
        cpu.STATIC_KERNELS,
        source=_WEB + ": equal to native results bit by bit; speed not measured",
    ),
    sources={
        "opsets": _WEB,
        "domains": _WEB + ": WebGPU forgets the Relu of a FusedConv before a Gelu",
        "fp16": _WEB + ": needs shader-f16, which not every GPU has",
    },
)

_OPENVINO = "ran on OpenVINO 2026.4.1 and onnxruntime-openvino 1.24.1, 2026-11"
_OPENVINO_DOC = "ONNX Runtime documentation, OpenVINO execution provider"
OPENVINO = Target(
    "openvino",
    ("OpenVINOExecutionProvider", "CPUExecutionProvider"),
    "ONNX Runtime with OpenVINO, on Intel hardware",
    optimize=False,
    opsets=(7, 25),
    domains=frozenset({"com.microsoft"}),
    scheme=Scheme(
        "u8s8",
        Format("uint8"),
        Format("int8", symmetric=True, granularity="channel"),
        cpu.STATIC_KERNELS,
        source="microsoft/onnxruntime issue 11604; " + _OPENVINO,
    ),
    requirements=(
        Requirement(
            "no-qgemm",
            lambda node: "OpenVINO does not read it",
            frozenset({"com.microsoft.QGemm"}),
            hint="quantize with the spelling qdq",
            source=_OPENVINO,
        ),
        Requirement(
            "no-dynamic-quantization",
            lambda node: "OpenVINO does not read dynamically quantized models",
            frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}),
            hint="quantize statically",
            source="openvinotoolkit/openvino issue 12964",
        ),
    ),
    sources={
        "opsets": _OPENVINO,
        "domains": _OPENVINO,
        "optimize": _OPENVINO_DOC + ": give it the graph that ONNX Runtime did not fuse",
    },
)

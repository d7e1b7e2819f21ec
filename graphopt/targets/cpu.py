"""ONNX Runtime's CPU execution provider, on x86-64 and 64-bit Arm."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from graphopt import ir
from graphopt.targets.profile import Target
from graphopt.targets.rules import all_of, attribute, constant
from graphopt.targets.scheme import Format, IntegerKernel, Scheme

__all__ = ["ARM64", "CPU", "X64", "X64_AVX2", "host"]

_SELECTORS = (
    "onnxruntime/core/optimizer/qdq_transformer/selectors_actions/"
    "qdq_selector_action_transformer.cc; tests/targets/test_kernels.py"
)


def _matmul(node: ir.Node) -> str | None:
    for position, value in enumerate(node.inputs):
        if ir.const(value) is not None:
            if position == 0:
                return "its first input is constant"
            if ir.rank(value) != 2:
                return "its weight has batch dimensions, which takes no scale per channel"
    return None


def _no_dilations(node: ir.Node) -> str | None:
    if all(d == 1 for d in ir.attr(node, "dilations", ())):
        return None
    return "it has dilations, which make ONNX Runtime fuse it to an operator that does not load"


_MOVE = IntegerKernel(passes_through=True, source=_SELECTORS)
KERNELS: dict[str, IntegerKernel] = {
    "Conv": IntegerKernel(weight=1, bias=2, where=constant(2, "bias"), source=_SELECTORS),
    "Gemm": IntegerKernel(
        weight=1,
        weight_axis=1,
        bias=2,
        where=all_of(attribute("alpha", 1.0), attribute("beta", 1.0), constant(2, "bias")),
        source=_SELECTORS,
    ),
    "MatMul": IntegerKernel(
        activations=None, weight=1, weight_axis=1, where=_matmul, source=_SELECTORS
    ),
    "Add": IntegerKernel(activations=None, source=_SELECTORS),
    "Mul": IntegerKernel(activations=None, source=_SELECTORS),
    "AveragePool": IntegerKernel(where=_no_dilations, source=_SELECTORS),
    "GlobalAveragePool": IntegerKernel(source=_SELECTORS),
    "LeakyRelu": IntegerKernel(source=_SELECTORS),
    "Sigmoid": IntegerKernel(output=(1 / 256, 0), source=_SELECTORS),
    "Softmax": IntegerKernel(output=(1 / 256, 0), source=_SELECTORS),
    "Concat": IntegerKernel(activations=None, source=_SELECTORS),
    "Where": IntegerKernel(activations=(1, 2), source=_SELECTORS),
    "Split": _MOVE,
    "MaxPool": _MOVE,
    "Reshape": _MOVE,
    "Transpose": _MOVE,
    "Flatten": _MOVE,
    "Squeeze": _MOVE,
    "Unsqueeze": _MOVE,
    "Slice": _MOVE,
    "Gather": _MOVE,
    "GatherElements": _MOVE,
    "DepthToSpace": _MOVE,
    "Expand": _MOVE,
    "Tile": _MOVE,
    "Identity": _MOVE,
    "Resize": IntegerKernel(
        passes_through=True, where=attribute("mode", "nearest"), source=_SELECTORS
    ),
}

_U8 = Format("uint8")
_S8 = Format("int8", symmetric=True, granularity="channel")
_VNNI = Scheme("u8s8", _U8, _S8, KERNELS)
_AVX2 = Scheme(
    "u8s7", _U8, Format("int8", symmetric=True, granularity="channel", levels=128), KERNELS
)
_ARM = Scheme("s8s8", Format("int8"), _S8, KERNELS)
_PROVIDERS = ("CPUExecutionProvider",)

X64 = Target("cpu-x64", _PROVIDERS, "ONNX Runtime on an x86-64 CPU with VNNI", scheme=_VNNI)
X64_AVX2 = Target(
    "cpu-x64-avx2", _PROVIDERS, "ONNX Runtime on an x86-64 CPU without VNNI", scheme=_AVX2
)
ARM64 = Target(
    "cpu-arm64",
    _PROVIDERS,
    "ONNX Runtime on a 64-bit Arm CPU",
    session={"session.qdqisint8allowed": "1"},
    scheme=_ARM,
)


@functools.cache
def host() -> Target:
    """The CPU that this process runs on, as a target; x86-64 with VNNI where that is unknown."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ARM64
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return X64
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return X64_AVX2 if flags and "vnni" not in flags else X64


CPU = Target(
    "cpu",
    _PROVIDERS,
    "ONNX Runtime on any CPU",
    session=host().session,
    scheme=host().scheme,
)

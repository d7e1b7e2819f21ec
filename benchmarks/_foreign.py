"""Other tools' int8 models: made by the tools themselves where they are, else in their manner.

Runs as a program in an environment of the tool's own, which need not have graphopt:
``python _foreign.py TOOL SOURCE CALIBRATION OUTPUT``, the calibration a .npy of model inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32


def reader(calibration: Path, name: str) -> Any:
    """The samples as ONNX Runtime's quantizer and its descendants want them."""
    from onnxruntime.quantization import CalibrationDataReader

    images = np.load(calibration)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(
                [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
            )

        reset_iter = rewind

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def _input(source: Path) -> str:
    import onnx

    return str(onnx.load(source, load_external_data=False).graph.input[0].name)


def _ort(source: Path, calibration: Path, output: Path, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    settings: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "calibrate_method": CalibrationMethod.MinMax,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    }
    quantize_static(
        str(source), str(output), reader(calibration, _input(source)), **{**settings, **options}
    )


def ort_s8s8(source: Path, calibration: Path, output: Path) -> None:
    """ONNX Runtime's quantizer at its default types."""
    _ort(source, calibration, output)


def ort_u8s8(source: Path, calibration: Path, output: Path) -> None:
    """ONNX Runtime's quantizer at the types that its x64 kernels want."""
    from onnxruntime.quantization import QuantType

    _ort(source, calibration, output, activation_type=QuantType.QUInt8)


def ort_w4(source: Path, calibration: Path, output: Path) -> None:
    """Weights of 4 bits as int4, which its convolutions do not take."""
    import onnx
    from onnxruntime.quantization import QuantType

    raised = output.with_suffix(".opset21.onnx")
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 21), raised)
    _ort(raised, calibration, output, weight_type=QuantType.QInt4)


def quark(source: Path, calibration: Path, output: Path) -> None:
    """AMD Quark's A8W8: int8, symmetric, before and behind every operator."""
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    config = Config(global_quant_config=get_default_config("A8W8"))
    ModelQuantizer(config).quantize_model(
        str(source), str(output), reader(calibration, _input(source))
    )


def quark_style(source: Path, calibration: Path, output: Path) -> None:
    """The same by ONNX Runtime's quantizer, in ONNX Runtime's own domain as Quark writes it."""
    import onnx

    _ort(
        source, calibration, output, per_channel=False, extra_options={"ActivationSymmetric": True}
    )
    model = onnx.load(output)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    if all(each.domain != "com.microsoft" for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, output)


def nncf(source: Path, calibration: Path, output: Path) -> None:
    """NNCF's default post-training quantization, activations partly asymmetric."""
    import nncf as tool
    import onnx

    images, name = np.load(calibration), _input(source)
    dataset = tool.Dataset([images[i : i + 1] for i in range(len(images))], lambda x: {name: x})
    preset = tool.QuantizationPreset.MIXED
    onnx.save(tool.quantize(onnx.load(source), dataset, preset=preset), output)


def modelopt(source: Path, calibration: Path, output: Path) -> None:
    """NVIDIA ModelOpt's int8, for TensorRT."""
    import modelopt.onnx.quantization as tool

    tool.quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={_input(source): np.load(calibration)},
        calibration_method="entropy",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
    )


def modelopt_style(source: Path, calibration: Path, output: Path) -> None:
    """The same placement by ONNX Runtime's quantizer.

    Weights stay in floating point before a quantizer, biases in floating point; nothing is between
    a convolution and the Add or Relu behind it.
    """
    import onnx

    options = {
        "ActivationSymmetric": True,
        "AddQDQPairToWeight": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
    }
    _ort(source, calibration, output, op_types_to_quantize=["Conv", "Add"], extra_options=options)
    model = onnx.load(output)
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        for i, name in enumerate(node.input):
            dequantize = made.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = made[dequantize.input[0]]
            if made[quantize.input[0]].op_type == "Conv":
                node.input[i] = quantize.input[0]
    while True:
        used = {name for node in model.graph.node for name in node.input}
        used |= {value.name for value in model.graph.output}
        dead = [n for n in model.graph.node if not used.intersection(n.output)]
        if not dead:
            break
        for each in dead:
            model.graph.node.remove(each)
    onnx.save(model, output)


TOOLS: dict[str, Callable[[Path, Path, Path], None]] = {
    each.__name__: each
    for each in (ort_s8s8, ort_u8s8, ort_w4, quark, quark_style, nncf, modelopt, modelopt_style)
}


if __name__ == "__main__":
    TOOLS[sys.argv[1]](*map(Path, sys.argv[2:5]))

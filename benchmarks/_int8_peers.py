"""ONNX Runtime's static quantization as a program, so that its memory and time can be measured.

``python _int8_peers.py NAME SOURCE CALIBRATION OUTPUT``, the calibration a .npy of model inputs.
Unsigned 8-bit activations and signed weights, which its x64 kernels want, on the model as its own
``quant_pre_process`` leaves it, as its documentation advises; all else as ``quantize_static`` has
it by default.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _foreign import _input, reader

# Format, calibration, a scale for each output channel.
NAMES = {
    "qdq-minmax": ("QDQ", "MinMax", True),
    "qdq-percentile": ("QDQ", "Percentile", True),
    "qoperator-minmax": ("QOperator", "MinMax", True),
    "qoperator-percentile": ("QOperator", "Percentile", True),
    "qdq-minmax-per-tensor": ("QDQ", "MinMax", False),
    "qdq-percentile-per-tensor": ("QDQ", "Percentile", False),
}


def quantize(name: str, source: Path, calibration: Path, output: Path) -> None:
    """Quantize a model file."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    form, method, per_channel = NAMES[name]
    settings: dict[str, Any] = {
        "quant_format": QuantFormat[form],
        "calibrate_method": CalibrationMethod[method],
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": per_channel,
    }
    prepared = output.with_suffix(".prepared.onnx")
    prepare(source, prepared)
    images = reader(calibration, _input(prepared))
    quantize_static(str(prepared), str(output), images, **settings)


def prepare(source: Path, output: Path) -> None:
    """Infer shapes and optimize, as ``quantize_static`` recommends to do before."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(output))


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), Path(sys.argv[4]))
    else:
        quantize(sys.argv[1], *map(Path, sys.argv[2:5]))

"""What the channels-last form of quantized convolutions gains over what ONNX Runtime makes of them.

The shared CIFAR networks, quantized by ONNX Runtime (u8 activations, s8 weights, a scale per
channel, 128 images), all of it or all but the first convolution: as it is (QDQ), spelled as
operators on integers by ONNX Runtime (QOperator) and by lower-qdq, that with the channels last, and
that with a fourth input channel. Latency is CPU time of one thread, medians of runs in alternation.
Besides: how many Transpose ONNX Runtime's optimizer leaves, and whether outputs are the same bits.
Exits with status 1 where channels-last or pad-channels changes a bit.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _common import data_dir, environment, names, parser, scratch, table, write_json
from _tasks import _cifar_images
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import graphopt
from graphopt import PassManager, ir
from graphopt.runtime import interleaved

_MODELS = "resnet20,resnet56,mobilenetv2_cifar"
_BASE = "fp32"
_PASSES = {
    "lower-qdq": "lower-qdq",
    "channels-last": "lower-qdq,channels-last",
    "pad-channels": "lower-qdq,channels-last,pad-channels",
}


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter(np.split(images, 4))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def _forms(model: str, stem: str, images: np.ndarray, folder: Path) -> dict[str, Path]:
    """The contenders as files."""
    float_model = graphopt.optimize(data_dir() / "models" / f"{model}.onnx", "O2").model
    first = next(n.name for n in ir.all_nodes(float_model) if n.op_type == "Conv")
    files = {
        name: folder / f"{model}-{stem}-{name}.onnx"
        for name in (_BASE, "QDQ", "QOperator", *_PASSES)
    }
    graphopt.save(float_model, files[_BASE])
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(
            files[_BASE],
            files[form.name],
            _Images(images),
            quant_format=form,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[first] if stem == "float" else [],
        )
    source = graphopt.load(files["QDQ"])
    for name, passes in _PASSES.items():
        graphopt.save(PassManager(passes, target="cpu-x64").run(source).model, files[name])
    return files


def _session(path: Path, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _transposes(path: Path) -> int:
    optimized = path.with_suffix(".optimized.onnx")
    _session(path, optimized)
    nodes = onnx.load(optimized, load_external_data=False).graph.node
    return sum(node.op_type == "Transpose" for node in nodes)


def _runner(session: Any, images: np.ndarray) -> Callable[[], object]:
    return lambda: session.run(None, {"input": images})


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a pass that must not change bits does."""
    args = parser(__doc__, "channels_last")
    args.add_argument("--models", default=_MODELS)
    args.add_argument("--stems", default="integers,float", help="the first convolution in")
    args.add_argument("--batches", default="1,32")
    args.add_argument("--seconds", type=float, default=3.0, help="per model, stem and batch")
    options = args.parse_args(argv)
    if not (data_dir() / "cifar10_val.npz").exists():
        print(f"skipped: no data in {data_dir()}")
        return 0
    logging.disable(logging.WARNING)  # onnxruntime.quantization advises to prepare the model
    images, _ = _cifar_images(data_dir())
    results: list[dict[str, Any]] = []
    exact = True
    with scratch(options.cache, "channels_last") as folder:
        for model in names(options.models):
            for stem in names(options.stems):
                files = _forms(model, stem, images[-128:], folder)
                sessions = {name: _session(path) for name, path in files.items()}
                outputs = {k: s.run(None, {"input": images[:256]})[0] for k, s in sessions.items()}
                for batch in map(int, names(options.batches)):
                    runners = {k: _runner(s, images[:batch]) for k, s in sessions.items()}
                    timed = interleaved(runners, seconds=options.seconds, clock=time.thread_time)
                    results += [
                        {
                            "model": model,
                            "stem": stem,
                            "batch": batch,
                            "form": name,
                            "ms": 1000 * timed[name].median,
                            "speedup": timed[_BASE].median / timed[name].median,
                            "transposes": _transposes(path),
                            "like_qdq": bool(np.array_equal(outputs[name], outputs["QDQ"])),
                        }
                        for name, path in files.items()
                    ]
                for name in _PASSES:
                    exact = exact and np.array_equal(outputs[name], outputs["lower-qdq"])
    headers = ["model", "stem", "batch", "form", "ms", "x fp32", "Transpose left", "bits of QDQ"]
    keys = ("model", "stem", "batch", "form", "ms", "speedup", "transposes", "like_qdq")
    print(table(headers, [[r[k] for k in keys] for r in results], "One thread, CPU time"))
    write_json(options.json, {"environment": environment(), "exact": exact, "results": results})
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())

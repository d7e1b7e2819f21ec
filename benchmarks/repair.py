"""Other tools' int8 models before and after the pipeline ``repair``: latency, accuracy, exactness.

A CIFAR-10 network is quantized by each tool with the same 512 training images, by the tool itself
where ``--peer NAME=PYTHON`` names an interpreter that has it, else in its manner by ONNX Runtime's
quantizer. Latency is the ratio of interleaved medians of CPU time on one thread under ONNX
Runtime's default optimizations, which is what users run; so is accuracy, on the validation images.
Whether a repair is exact is judged with the optimizations off.
"""

from __future__ import annotations

import functools
import io
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    HERE,
    data_dir,
    environment,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)

# What is measured, its names in _foreign.py (the tool, and its manner if that is there, too), the
# bar at batch 32.
STYLES = {
    "ORT U8S8": ("ort_u8s8", "ort_u8s8", None),
    "ORT S8S8": ("ort_s8s8", "ort_s8s8", 1.8),
    "Quark A8W8": ("quark", "quark_style", 1.8),
    "ModelOpt int8": ("modelopt", "modelopt_style", None),
    "NNCF mixed": ("nncf", None, None),
    "ORT W4A8": ("ort_w4", "ort_w4", None),
}
BATCHES = (1, 32)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a repair misses its bar or is not exact."""
    args = parser(__doc__, "repair")
    args.add_argument("--models", default="resnet20", help="comma-separated model names")
    args.add_argument("--target", default="cpu-x64", help="what the models are repaired for")
    args.add_argument(
        "--peer",
        action="append",
        default=[],
        help="NAME=PYTHON: quark, modelopt or nncf, interpreter",
    )
    args.add_argument("--images", type=int, default=5000, help="validation images")
    args.add_argument("--seconds", type=float, default=10.0, help="of timing per model and batch")
    options = args.parse_args(argv)
    data = data_dir()
    if not (data / "models").is_dir():
        print("skipped: the shared data is not there; set GRAPHOPT_DATA to its folder")
        return 0
    peers = dict(each.split("=", 1) for each in options.peer)
    rows: list[dict[str, Any]] = []
    with scratch(options.cache, "repair-") as folder:
        picks = np.random.default_rng(0).permutation(50_000)[:512]
        calibration, _ = images(data / "cifar10_train.npz", picks)
        np.save(folder / "calibration.npy", calibration)
        validation = images(data / "cifar10_val.npz", np.arange(options.images))
        for model in names(options.models):
            rows += measure(model, data, folder, peers, calibration, validation, options)
    print(report(rows))
    write_json(options.json, {"environment": environment(["pillow"]), "rows": rows})
    return int(any(row["missed"] for row in rows))


def images(archive: Path, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images as the networks want them, float32 (N, 3, 32, 32), and their labels."""
    from PIL import Image

    with np.load(archive) as content:
        jpeg, offsets, labels = content["jpeg"], content["offsets"], content["labels"]
    spans = list(pairwise(offsets))
    files = (jpeg[slice(*spans[i])].tobytes() for i in picks)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels[picks]


def measure(
    model: str,
    data: Path,
    folder: Path,
    peers: dict[str, str],
    calibration: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    options: Any,
) -> list[dict[str, Any]]:
    """Quantize, repair, time and compare one network."""
    import graphopt

    pixels, labels = validation
    fp32 = folder / f"{model}.onnx"
    o2 = graphopt.PassManager("O2").run(graphopt.load(data / "models" / f"{model}.onnx"))
    graphopt.save(o2.model, fp32)
    files = {"fp32": fp32}
    found: dict[str, dict[str, Any]] = {}
    for style, (tool, manner, bar) in STYLES.items():
        name = tool if tool in peers else manner
        if name is None:
            print(f"skipped: {style} needs --peer {tool}=PYTHON")
            continue
        made = folder / f"{model}-{name}.onnx"
        python = peers.get(name, sys.executable)
        script = [python, HERE / "_foreign.py", name, fp32, folder / "calibration.npy", made]
        child = run_child(script, timeout=900)
        if not made.exists():
            raise SystemExit(f"{style}: {child.reason()}")
        fixed = made.with_suffix(".repaired.onnx")
        found[style] = {"model": model, "style": style, "by": name, "bar": bar}
        found[style] |= repair(made, fixed, calibration, options.target)
        files |= {style: made, f"{style} repaired": fixed}
    reference = answers(fp32, pixels)
    for style, row in found.items():
        for key, name in (("before", style), ("after", f"{style} repaired")):
            got = answers(files[name], pixels)
            row[f"top1_{key}"] = 100 * float((got.argmax(1) == labels).mean())
            row[f"agree_{key}"] = 100 * float((got.argmax(1) == reference.argmax(1)).mean())
            row[f"integer_{key}"] = integer_operators(files[name], folder / "optimized.onnx")
        first, second = (
            answers(files[n], pixels[:512], False) for n in (style, f"{style} repaired")
        )
        row["same_bits"] = bool(np.array_equal(first, second))
    for batch in BATCHES:
        times = latency(files, pixels[:batch], options.seconds)
        for style, row in found.items():
            row[f"x{batch}_before"] = 1 / times[style].ratio
            row[f"x{batch}_after"] = 1 / times[f"{style} repaired"].ratio
            row[f"ms{batch}_after"] = 1e3 * times[f"{style} repaired"].median
    for row in found.values():
        slow = row["bar"] is not None and model == "resnet20" and row["x32_after"] < row["bar"]
        row["missed"] = slow or (row["exact"] and not row["same_bits"])
    return list(found.values())


def repair(source: Path, target: Path, calibration: np.ndarray, name: str) -> dict[str, Any]:
    """Run the pipeline ``repair`` on a file; say what it did."""
    import graphopt

    batches = [{"input": calibration[i : i + 32]} for i in range(0, len(calibration), 32)]
    result = graphopt.PassManager(
        "repair", target=name, data=batches, oracle="end", on_mismatch="raise"
    ).run(graphopt.load(source))
    graphopt.save(result.model, target)
    did = Counter({k: n for p in result.report.passes for k, n in p.rewrites.items()})
    lossy = [p.name for p in result.report.passes if p.changed and p.exactness == "lossy"]
    return {"rewrites": dict(did), "exact": not lossy, "seconds": result.report.seconds}


def answers(path: Path, pixels: np.ndarray, optimize: bool = True) -> np.ndarray:
    """First output for all images."""
    from graphopt.runtime import open_session

    with open_session(path, optimize=optimize) as session:
        (name,), (output, *_) = session.inputs, session.outputs
        runs = (session.run({name: pixels[i : i + 100]}) for i in range(0, len(pixels), 100))
        return np.concatenate([run[output] for run in runs])


def integer_operators(path: Path, scratch_file: Path) -> str:
    """Convolutions on integers among all of them, once ONNX Runtime has optimized the graph."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(scratch_file)
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(scratch_file).graph.node)
    return f"{ops['QLinearConv']}/{ops['QLinearConv'] + ops['Conv'] + ops['FusedConv']}"


def latency(files: dict[str, Path], pixels: np.ndarray, seconds: float) -> Any:
    """Time all files in alternation."""
    from contextlib import ExitStack

    from graphopt.runtime import interleaved, open_session

    with ExitStack() as stack:
        runners = {}
        for name, path in files.items():
            session = stack.enter_context(open_session(path, optimize=True))
            (fed,) = session.inputs
            runners[name] = functools.partial(session.run, {fed: pixels})
        return interleaved(runners, seconds=seconds, clock=time.thread_time)


def report(rows: list[dict[str, Any]]) -> str:
    """Two tables: speed, and what became of the numbers."""
    speed = [
        (
            r["model"], r["style"], r["by"], r["integer_before"], r["integer_after"],
            r["x1_before"], r["x1_after"], r["x32_before"], r["x32_after"], r["bar"],
        )
        for r in rows
    ]  # fmt: skip
    numbers = [
        (
            r["model"], r["style"], "bitwise" if r["exact"] else "with calibration", r["same_bits"],
            r["top1_before"], r["top1_after"], r["agree_before"], r["agree_after"],
        )
        for r in rows
    ]  # fmt: skip
    first = table(
        ("model", "quantized by", "as", "int8 Conv", "repaired", "x fp32, b1", "repaired",
         "x fp32, b32", "repaired", "bar"),
        speed,
        "Speed relative to fp32 (one thread, ONNX Runtime's optimizations on)",
    )  # fmt: skip
    second = table(
        ("model", "quantized by", "repair", "same bits", "top-1 %", "repaired", "agree with fp32 %",
         "repaired"),
        numbers,
        "Accuracy (ONNX Runtime's optimizations on; same bits: off, 512 images)",
    )  # fmt: skip
    return f"{first}\n{second}"


if __name__ == "__main__":
    sys.exit(main())

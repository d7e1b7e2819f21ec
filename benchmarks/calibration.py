"""Calibration beside ONNX Runtime's calibrators: peak memory, time, and lengths that vary.

ResNet-56 after O2, 512 CIFAR-10 training images in batches of 32: the same tensors, those that a
static quantization gives a scale, are calibrated by each of graphopt's methods (default executor)
and by ONNX Runtime's calibrators (their default session). Each runs in a process of
its own, in turns; times leave out imports, memory is the process's ``VmHWM``. Then the same
with 16 times the images, and MiniLM with sentences of 149 different lengths. Exits with 1 where
graphopt needs more memory than ``quantize_static`` with MinMax or more time than its calibrator
alone, or where memory grows by more than 10 %.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from _common import (
    Child,
    data_dir,
    environment,
    interleave,
    memory_mb,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)

HERE = Path(__file__).resolve()
METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse", "distribution")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    args = parser(__doc__, "calibration")
    args.add_argument("--methods", default=",".join(METHODS), help="graphopt's methods")
    args.add_argument("--peers", default="minmax,percentile,entropy", help="ONNX Runtime's")
    args.add_argument("--rounds", type=int, default=3, help="runs of what is quick")
    args.add_argument("--images", type=int, default=512)
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--many", type=int, default=8192, help="images of the second part; 0: none")
    args.add_argument("--child", nargs=2, metavar=("WHAT", "JSON"), help="what a child does")
    options = args.parse_args(argv)
    if options.child:
        found = CHILDREN[options.child[0]](json.loads(options.child[1]))
        print(json.dumps(found | {"peak_mb": memory_mb().get("VmHWM")}))
        return 0
    if not (data_dir() / "models" / "resnet56.onnx").exists():
        print("skipped: needs the shared data; set GRAPHOPT_DATA to its folder")
        return 0
    with scratch(options.cache, "calibration-") as folder:
        plan = prepare(folder, max(options.images, options.many)) | {"batch": options.batch}
        runs = compare(plan, options)
        growth = grow(plan, options) if options.many else []
        lengths = vary(plan)
    print(report(runs, growth, lengths))
    write_json(options.json, {
        "environment": environment(), "images": options.images, "batch": options.batch,
        "runs": runs, "many": growth, "lengths": lengths,
    })  # fmt: skip
    missed = list(misses(runs, growth, lengths))
    print("\n".join(missed) or "every bar is met")
    return int(bool(missed))


def prepare(folder: Path, count: int) -> dict[str, Any]:
    """Write the model and the images that all children read."""
    import io

    import numpy as np
    from PIL import Image

    import graphopt

    model = graphopt.optimize(data_dir() / "models" / "resnet56.onnx", oracle="off").model
    graphopt.save(model, folder / "model.onnx")
    archive = np.load(data_dir() / "cifar10_train.npz")
    data, offsets = archive["jpeg"].tobytes(), archive["offsets"]
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    images = np.empty((count, 3, 32, 32), np.float32)
    for i in range(count):
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]])) as image:
            pixels = np.asarray(image, np.float32) / 255
        images[i] = ((pixels - mean) / std).transpose(2, 0, 1)
    images.tofile(folder / "images.bin")
    return {"folder": str(folder)}


def measured(tool: str, what: str, plan: dict[str, Any], timeout: float = 1200) -> dict[str, Any]:
    """Run a child and take its figures."""
    child = {"graphopt": "collect", "onnxruntime": "ort"}.get(tool, "quantize")
    job = json.dumps(plan | {"method": what})
    done: Child = run_child(
        [sys.executable, HERE, "--child", child, job], timeout=timeout, cwd=Path(plan["folder"])
    )
    # What the kernel reports of a child counts the memory of the parent that it was forked from.
    row = {"tool": tool, "method": what, "peak_mb": done.peaks.get("VmHWM")} | done.last_json()
    if done.code or done.timed_out:
        row["error"] = done.reason()
    print(f"  {tool} {what}: {row.get('error') or row['wall_s']}", flush=True)
    return row


def compare(plan: dict[str, Any], options: Any) -> list[dict[str, Any]]:
    """All calibrators on the same images; medians over rounds."""
    plan = plan | {"images": options.images}
    quick = [("graphopt", m) for m in names(options.methods)]
    quick += [("onnxruntime", m) for m in names(options.peers) if m == "minmax"]
    quick += [("quantize_static", "minmax")]
    slow = [("onnxruntime", m) for m in names(options.peers) if m != "minmax"]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in [*interleave(quick, options.rounds), *slow]:
        found.setdefault(item, []).append(measured(*item, plan))
    return [median(rows) for rows in found.values()]


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several: times as medians, memory as the largest."""
    row = dict(rows[0])
    for key in ("wall_s", "cpu_s"):
        values = [r[key] for r in rows if key in r]
        if values:
            row[key] = statistics.median(values)
    row["peak_mb"] = max(r["peak_mb"] for r in rows)
    return row | {"walls_s": [r.get("wall_s") for r in rows]}


def grow(plan: dict[str, Any], options: Any) -> list[dict[str, Any]]:
    """The same with many images."""
    chosen = [m for m in ("mse",) if m in names(options.methods)]
    return [measured("graphopt", m, plan | {"images": options.many}) for m in chosen]


def vary(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Sentences of varying lengths."""
    jobs = (("graphopt", "mse"), ("onnxruntime", "percentile"))
    return [measured(tool, method, plan | {"sentences": True}) for tool, method in jobs]


# --- what the children do -------------------------------------------------------------------------


def _model(plan: dict[str, Any]) -> str:
    if plan.get("sentences"):
        return str(data_dir() / "models" / "minilm_l6.onnx")
    return str(Path(plan["folder"]) / "model.onnx")


def _batches(plan: dict[str, Any]) -> Any:
    import numpy as np

    if not plan.get("sentences"):
        size = 3 * 32 * 32
        # Read, not mapped: what was read of a map counts as memory of the process.
        with (Path(plan["folder"]) / "images.bin").open("rb") as file:
            for _ in range(plan["images"] // plan["batch"]):
                rows = np.fromfile(file, np.float32, plan["batch"] * size)
                yield {"input": rows.reshape(-1, 3, 32, 32)}
        return
    archive = np.load(data_dir() / "minilm_calib.npz")
    ids, offsets = archive["token_ids"], archive["offsets"]
    for start, end in itertools.pairwise(offsets):
        row = ids[start:end].astype(np.int64)[None]
        keys = ("input_ids", "attention_mask", "token_type_ids")
        yield dict(zip(keys, (row, np.ones_like(row), np.zeros_like(row)), strict=True))


class Batches:
    """Batches that can be read again, as graphopt wants them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return 149 if self.plan.get("sentences") else self.plan["images"] // self.plan["batch"]

    def __iter__(self) -> Any:
        return _batches(self.plan)


def scaled(path: str, sentences: bool) -> list[str]:
    """Tensors that static quantization gives a scale.

    Inputs and outputs of whatever is quantized, but for what only a Relu reads, whose output gets
    the scale; of sentences, the inputs of matrix products.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {w.name for w in graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    chosen: list[str] = []
    for node in graph.node:
        if node.op_type == "MatMul" or (
            not sentences and node.op_type in ("Conv", "Gemm", "Add", "Relu", "AveragePool")
        ):
            read = node.input if sentences or node.op_type != "Conv" else node.input[:1]
            chosen += [n for n in read if n and n not in weights]
            chosen += [] if sentences else node.output
    fused = {n for n, kinds in readers.items() if kinds == ["Relu"]}
    return [n for n in dict.fromkeys(chosen) if n not in fused]


def _collect(plan: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime  # noqa: F401 - imports are not what is measured

    from graphopt import ir
    from graphopt.calibration import collect, find_range, from_batches, observer_for

    path, method = _model(plan), plan["method"]
    tensors = scaled(path, bool(plan.get("sentences")))
    wall, cpu = time.perf_counter(), time.process_time()
    model = ir.load(path)
    data = from_batches(Batches(plan), model)
    seen = collect(model, {n: observer_for(method) for n in tensors}, data)
    ranges = {n: find_range(o, method, levels=256, symmetric=False) for n, o in seen.items()}
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "tensors": len(ranges),
    }


def _ort(plan: dict[str, Any]) -> dict[str, Any]:
    from onnxruntime.quantization import calibrate

    path = _model(plan)
    tensors = scaled(path, bool(plan.get("sentences")))
    wall, cpu = time.perf_counter(), time.process_time()
    chosen = calibrate.CalibrationMethod

    class Reader(calibrate.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(plan)

        def get_next(self) -> Any:
            return next(self.batches, None)

    original = calibrate.CalibraterBase.select_tensors_to_calibrate

    def select(self: Any, model: Any) -> Any:
        _, infos = original(self, model)
        return set(tensors), infos

    calibrate.CalibraterBase.select_tensors_to_calibrate = select
    calibrator = calibrate.create_calibrator(
        path, None, augmented_model_path=str(Path(plan["folder"]) / f"{plan['method']}.onnx"),
        calibrate_method={
            "minmax": chosen.MinMax, "percentile": chosen.Percentile,
            "entropy": chosen.Entropy, "distribution": chosen.Distribution,
        }[plan["method"]],
        extra_options={},
    )  # fmt: skip
    calibrator.collect_data(Reader())
    found = calibrator.compute_data()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "tensors": len(found.data),
    }


def _quantize(plan: dict[str, Any]) -> dict[str, Any]:
    """All of ``quantize_static``, whose peak memory is the bar: MinMax, per channel, S8S8."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(plan)

        def get_next(self) -> Any:
            return next(self.batches, None)

    wall, cpu = time.perf_counter(), time.process_time()
    quantization.quantize_static(
        _model(plan), str(Path(plan["folder"]) / "int8.onnx"), Reader(), per_channel=True,
        activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


CHILDREN = {"collect": _collect, "ort": _ort, "quantize": _quantize}


# --- what comes out -------------------------------------------------------------------------------


def _base(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return next((r for r in runs if (r["tool"], r["method"]) == ("onnxruntime", "minmax")), {})


def report(
    runs: list[dict[str, Any]], growth: list[dict[str, Any]], lengths: list[dict[str, Any]]
) -> str:
    """The tables."""
    base = _base(runs)

    def line(row: dict[str, Any]) -> list[Any]:
        wall = row.get("wall_s")
        ratio = wall / base["wall_s"] if wall and base.get("wall_s") else None
        return [
            row["tool"], row["method"], row.get("tensors"), wall, ratio, row.get("cpu_s"),
            row["peak_mb"], row.get("error", ""),
        ]  # fmt: skip

    headers = ["tool", "method", "tensors", "wall s", "x ORT MinMax", "CPU s", "peak MB", "error"]
    text = table(headers, map(line, runs), "ResNet-56, the same images and tensors")
    if growth:
        few = {r["method"]: r["peak_mb"] for r in runs if r["tool"] == "graphopt"}
        rows = [
            [r["method"], few[r["method"]], r["peak_mb"], r["peak_mb"] / few[r["method"]]]
            for r in growth
        ]
        text += "\n" + table(
            ["graphopt's method", "peak MB", "with many images", "x"], rows, "Memory by samples"
        )
    rows = [[r["tool"], r["method"], r.get("tensors"), r.get("wall_s"), r["peak_mb"],
             r.get("error", "")] for r in lengths]  # fmt: skip
    return text + "\n" + table(
        ["tool", "method", "tensors", "wall s", "peak MB", "error"], rows,
        "MiniLM, 149 sentences of varying length",
    )  # fmt: skip


def misses(
    runs: list[dict[str, Any]], growth: list[dict[str, Any]], lengths: list[dict[str, Any]]
) -> Any:
    """Bars that are missed."""
    base = _base(runs)
    most = next(r["peak_mb"] for r in runs if r["tool"] == "quantize_static")
    few = {}
    for row in (r for r in runs if r["tool"] == "graphopt"):
        few[row["method"]] = row["peak_mb"]
        if "error" in row:
            yield f"{row['method']}: {row['error']}"
        elif base:
            if row["peak_mb"] > most:
                yield f"{row['method']} takes {row['peak_mb']:.0f} MB, not {most:.0f}"
            if row["wall_s"] > base["wall_s"]:
                yield f"{row['method']} takes {row['wall_s']:.2f} s, not {base['wall_s']:.2f}"
    for row in growth:
        if row["peak_mb"] > 1.1 * few[row["method"]]:
            yield f"{row['method']} grows to {row['peak_mb']:.0f} MB"
    for row in lengths:
        if row["tool"] == "graphopt" and "error" in row:
            yield f"varying lengths: {row['error']}"


if __name__ == "__main__":
    sys.exit(main())

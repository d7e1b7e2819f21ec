"""ResNet-56 with half of its weights zero: accuracy, file size, load time and latency.

``O2,sparsify`` in several forms beside magnitude pruning and onnxsim's. 512 training images
calibrate, 5,000 others judge. Every run is a process of its own, its memory the ``VmHWM`` of that
process. onnxsim gets the model after O2, with its normalizations folded. Exits with 1 where a bar
is missed: at most a point of top-1 lost with half of the weights zero, and at most 0.4 times the
original file; the operators that ONNX Runtime runs have to be those of the dense model.
"""

from __future__ import annotations

import functools
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import HERE, Child, environment, names, parser, run_child, scratch, table, write_json
from _int8 import TIMEOUT, Task, figures, latency, optimize, outputs, tasks

from graphopt.runtime import interleaved, open_session

PLAIN, BEST = "O2", "50 %"
FORMS = {
    PLAIN: "O2",
    BEST: "O2,sparsify",
    "50 % at the same ratio in all layers": "O2,sparsify{ranking=local}",
    "50 % with 32-bit values": "O2,sparsify{values=fp32}",
    "50 % by magnitude": "O2,sparsify{method=magnitude}",
    "50 % by magnitude stored densely": "O2,sparsify{method=magnitude code=false}",
    "75 %": "O2,sparsify{ratio=0.75}",
    "2:4": "O2,sparsify{n-m=2:4}",
    "2:4 by magnitude": "O2,sparsify{n-m=2:4 method=magnitude}",
    "50 % in blocks 1 x 9": "O2,sparsify{block=1,9}",
}
PEERS = {
    "onnxsim magnitude 50 %": "magnitude",
    "onnxsim magnitude 50 % over all layers": "magnitude-global",
    "onnxsim Wanda 50 %": "wanda",
    "onnxsim SparseGPT 50 %": "sparsegpt",
    "onnxsim magnitude 2:4": "magnitude-2:4",
    "onnxsim SparseGPT 2:4": "sparsegpt-2:4",
}
DROP, SIZE = 1.0, 0.4


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    args = parser(__doc__, "sparsity")
    args.add_argument("--model", default="resnet56", help="resnet20, mobilenetv2_cifar, ...")
    args.add_argument("--only", default="", help="comma-separated forms")
    args.add_argument("--seconds", type=float, default=20.0, help="of timing, loading and running")
    args.add_argument("--skip-peers", action="store_true", help="graphopt alone")
    options = args.parse_args(argv)
    only = names(options.only)
    with scratch(options.cache, "sparsity-") as folder:
        task = tasks(folder)[options.model]()
        task.reference.extend(outputs(task.model, task.batches))
        files = {"original": task.model}
        rows: dict[str, dict[str, Any]] = {"original": {}}
        for name, passes in FORMS.items():
            if name == PLAIN or not only or name in only:
                path = files[name] = folder / f"{len(files)}.onnx"
                rows[name] = made(name, optimize(task, path, passes, "cpu")[0])
        for name, peer in ({} if options.skip_peers else PEERS).items():
            if not only or name in only:
                path = files[name] = folder / f"{len(files)}.onnx"
                script = [sys.executable, HERE / "_sparsity_peers.py", peer]
                child = run_child([*script, files[PLAIN], task.array, path], timeout=TIMEOUT)
                rows[name] = made(name, child)
        good = {name: path for name, path in files.items() if path.exists()}
        for name, path in good.items():
            rows[name] |= judged(task, path, folder)
        measure_times(rows, good, task, options.seconds)
    missed = list(below(rows))
    print(report(rows))
    for each in missed:
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["onnxsim", "pillow"]), "rows": rows, "missed": missed,
    })  # fmt: skip
    return int(bool(missed))


def made(name: str, child: Child) -> dict[str, Any]:
    """How the process went that made a form."""
    print(f"{name}: {child.wall:.0f} s", flush=True)
    row: dict[str, Any] = {"seconds": child.wall, "peak_mb": child.peaks.get("VmHWM")}
    return row | ({"error": child.reason()} if child.code else {})


def judged(task: Task, path: Path, folder: Path) -> dict[str, Any]:
    """Accuracy, bytes, zeros, and the operators that ONNX Runtime runs."""
    data, plain = path.read_bytes(), task.model.read_bytes()
    optimized = run_by(path, folder)
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in optimized.graph.initializer
        if len(t.dims) in (2, 4) and t.data_type == onnx.TensorProto.FLOAT
    ]
    return {
        **figures(task.reference, outputs(path, task.batches), task.labels),
        "file": len(data) / len(plain),
        "deflated": len(zlib.compress(data, 9)) / len(plain),
        "zeros": 100 * sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights),
        "operators": dict(sorted(Counter(n.op_type for n in optimized.graph.node).items())),
    }


def run_by(path: Path, folder: Path) -> Any:
    """The model that ONNX Runtime makes of a file when it loads it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def measure_times(
    rows: dict[str, dict[str, Any]], files: dict[str, Path], task: Task, seconds: float
) -> None:
    """CPU time to load and to run, in units of the model after O2."""

    def load(path: Path) -> None:
        with open_session(path, optimize=True, threads=1):
            pass

    loads = interleaved(
        {name: functools.partial(load, path) for name, path in files.items()},
        seconds=seconds, clock=time.process_time,
    )  # fmt: skip
    runs = latency(files, next(iter(task.inputs.values())), seconds)
    for name in files:
        rows[name] |= {
            "load_ms": 1e3 * loads[name].median,
            "load": loads[name].median / loads[PLAIN].median,
            "latency": runs[name].median / runs[PLAIN].median,
        }


def below(rows: dict[str, dict[str, Any]]) -> Any:
    """Bars that are missed, in words."""
    for name, row in rows.items():
        if name in FORMS and "error" in row:
            yield f"{name}: {row['error']}"
        elif name in FORMS and row["operators"] != rows[PLAIN]["operators"]:
            yield f"{name}: ONNX Runtime runs other operators"
    best = rows.get(BEST, {})
    if "drop" in best and best["drop"] > DROP:
        yield f"{BEST}: {best['drop']:.2f} points lost, the bar is {DROP}"
    if "file" in best and best["file"] > SIZE:
        yield f"{BEST}: {best['file']:.3f} of the file, the bar is {SIZE}"


def report(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    headers = (
        "form", "zeros %", "top-1 %", "points lost", "agree %", "SQNR dB", "file x", "deflated x",
        "load ms", "load x", "latency x", "same operators", "seconds", "peak MB",
    )  # fmt: skip
    plain = rows[PLAIN]["operators"]
    cells = []
    for name, row in rows.items():
        shown = [row.get(k) for k in ("zeros", "top1", "drop", "agree", "sqnr_db")]
        if not np.isfinite(row.get("sqnr_db", np.inf)):
            shown[-1] = None
        cells.append((
            name, *(None if v is None else f"{v:.2f}" for v in shown),
            *(row.get(k) for k in ("file", "deflated", "load_ms", "load", "latency")),
            row.get("error") or row["operators"] == plain, row.get("seconds"), row.get("peak_mb"),
        ))  # fmt: skip
    return table(headers, cells, "Zeros in the weights of ResNet-56 (load and latency: O2 is 1)")


if __name__ == "__main__":
    sys.exit(main())

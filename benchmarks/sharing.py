"""ResNet-56 and MiniLM with few values for their weights: quality, file size, load time, latency.

``O2,share-weights`` in several forms, and ``tiny``, beside k-means without data and onnxsim's.
Calibrated on 512 training images or 149 sentences, judged on 5,000 images or 100 sentences that
decide nothing. Every run is a process of its own, its memory the ``VmHWM`` of that process. onnxsim
gets the model after O2, with its normalizations folded. Exits with 1 where a bar is missed: with 16
values at most 0.4 points of top-1 lost in 0.14 times the file; at most 1.5 points lost in 0.1 times
it; of MiniLM a mean cosine of 0.97 in 0.16 times it; the operators that ONNX Runtime runs have to
be those of the dense model, and their time the same within 3 %.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _common import HERE, environment, names, parser, run_child, scratch, table, write_json
from _int8 import TIMEOUT, Task, optimize, outputs, tasks
from prune_minilm import embeddings
from sparsity import PLAIN, judged, made, measure_times

SIXTEEN, TINY = "16 values", "tiny"
FORMS: dict[str, dict[str, str]] = {
    "resnet56": {
        PLAIN: "O2",
        SIXTEEN: "O2,share-weights{entries=16}",
        "16 values by k-means": "O2,share-weights{entries=16}",
        "4 values": "O2,share-weights{entries=4}",
        "4 values per 8 channels": "O2,share-weights{entries=4 blocks=8}",
        "4 values per 4 channels": "O2,share-weights{entries=4 blocks=4}",
        TINY: "tiny",
        "0.1 of the bytes": "O2,share-weights{bytes=0.1}",
        "0.08 of the bytes": "O2,share-weights{bytes=0.08}",
        "30 % zeros and 0.1 of the bytes": (
            "O2,sparsify{ratio=0.3 code=false},share-weights{bytes=0.1}"
        ),
        "50 % zeros and 16 values": "O2,sparsify{code=false},share-weights{entries=16}",
    },
    "minilm_l6": {
        PLAIN: "O2",
        SIXTEEN: "O2,share-weights{entries=16}",
        "16 values by k-means": "O2,share-weights{entries=16}",
        TINY: "tiny",
        "0.16 of the bytes": "O2,share-weights{bytes=0.16}",
    },
}
# Forms that get no samples.
BLIND = "by k-means"
PEER = "onnxsim 16 values of each MatMul and Gemm"
# Form, figure, and what it is at most, or at least where it is a cosine.
BARS = {
    "resnet56": ((SIXTEEN, "drop", 0.4), (SIXTEEN, "file", 0.14), (TINY, "drop", 1.5),
                 (TINY, "file", 0.1)),
    "minilm_l6": ((TINY, "cosine", 0.97), (TINY, "file", 0.16)),
}  # fmt: skip
LATENCY = 1.03


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    args = parser(__doc__, "sharing")
    args.add_argument("--models", default=",".join(FORMS), help="comma-separated")
    args.add_argument("--only", default="", help="comma-separated forms")
    args.add_argument("--seconds", type=float, default=20.0, help="of timing, loading and running")
    args.add_argument("--skip-peers", action="store_true", help="graphopt alone")
    args.add_argument("--child", nargs=2, metavar=("SOURCE", "OUTPUT"), help="what the peer does")
    options = args.parse_args(argv)
    if options.child:
        peer(*map(Path, options.child))
        return 0
    found: dict[str, Any] = {}
    missed: list[str] = []
    with scratch(options.cache, "sharing-") as folder:
        for model in names(options.models):
            task = tasks(folder)[model]()
            rows = found[model] = compare(task, folder, names(options.only), options)
            missed += [f"{model}, {each}" for each in below(model, rows)]
            print(report(model, rows))
    for each in missed:
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["onnxsim", "pillow"]), "rows": found, "missed": missed,
    })  # fmt: skip
    return int(bool(missed))


def compare(task: Task, folder: Path, only: list[str], options: Any) -> dict[str, dict[str, Any]]:
    """Make all forms of a model and judge them."""
    task.reference.extend(outputs(task.model, task.batches))
    files = {"original": task.model}
    rows: dict[str, dict[str, Any]] = {"original": {}}
    for name, passes in FORMS[task.name].items():
        if name == PLAIN or not only or name in only:
            path = files[name] = folder / f"{task.name}-{len(files)}.onnx"
            child, details = optimize(task, path, passes, "cpu", blind=BLIND in name)
            rows[name] = made(name, child) | shared_out(details)
    if not options.skip_peers:
        path = files[PEER] = folder / f"{task.name}-{len(files)}.onnx"
        script = [sys.executable, HERE / "sharing.py", "--child", files[PLAIN], path]
        rows[PEER] = made(PEER, run_child(script, timeout=TIMEOUT))
    good = {name: path for name, path in files.items() if path.exists()}
    for name, path in good.items():
        rows[name] |= judged(task, path, folder)
        if task.labels is None:
            cosines = embeddings(outputs(path, task.batches)) * embeddings(task.reference)
            rows[name]["cosine"] = float(cosines.sum(axis=1).mean())
    measure_times(rows, good, task, options.seconds)
    return rows


def shared_out(details: dict[str, Any]) -> dict[str, Any]:
    """What each constant got, from the report of a run."""
    passes = [each for each in details.get("passes", []) if each["name"] == "share-weights"]
    return {"shared": passes[-1]["details"].get("shared")} if passes else {}


def peer(source: Path, output: Path) -> None:
    """Run onnxsim's k-means."""
    import onnx
    import onnxsim

    onnx.save(onnxsim.quantize_weight_only_kmeans(onnx.load(source)), output)


def below(model: str, rows: dict[str, dict[str, Any]]) -> Any:
    """Bars that are missed, in words."""
    for name, row in rows.items():
        if name not in FORMS[model]:
            continue
        if "error" in row:
            yield f"{name}: {row['error']}"
            continue
        if row["operators"] != rows[PLAIN]["operators"]:
            yield f"{name}: ONNX Runtime runs other operators"
        if row["latency"] > LATENCY:
            yield f"{name}: {row['latency']:.3f} of the latency, the bar is {LATENCY}"
    for name, figure, bar in BARS[model]:
        value = rows.get(name, {}).get(figure)
        if value is not None and (value < bar if figure == "cosine" else value > bar):
            yield f"{name}: {figure} {value:.4g}, the bar is {bar}"


def report(model: str, rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    figures = ("top1", "drop", "agree") if "top1" in rows[PLAIN] else ("cosine",)
    names_of = {"top1": "top-1 %", "drop": "points lost", "agree": "agree %", "cosine": "cosine"}
    headers = (
        "form", *(names_of[each] for each in figures), "SQNR dB", "file x", "deflated x", "load ms",
        "load x", "latency x", "same operators", "seconds", "peak MB",
    )  # fmt: skip
    cells = [
        (
            name, *(None if row.get(k) is None else f"{row[k]:.4g}" for k in figures),
            None if row.get("sqnr_db") in (None, float("inf")) else f"{row['sqnr_db']:.2f}",
            *(row.get(k) for k in ("file", "deflated", "load_ms", "load", "latency")),
            row.get("error") or row["operators"] == rows[PLAIN]["operators"],
            row.get("seconds"), row.get("peak_mb"),
        )
        for name, row in rows.items()
    ]  # fmt: skip
    return table(
        headers, cells, f"Few values for the weights of {model} (load and latency: O2 is 1)"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Layers left out by ``prune-layers``: accuracy, parameters and latency, layer by layer.

Some layers less, with the others fitted anew and as they are. Unlabeled samples calibrate, others
judge. Every run is a process of its own. Exits with 1 where a run fails, or where the result is
slower than the model after O2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _common import environment, names, parser, scratch, table, write_json
from _int8 import Task, figures, latency, optimize, outputs, tasks

import graphopt
from graphopt.analyses import Cost

COUNTS = {
    "digits_resnet": (1, 2),
    "digits_mobilenet": (1, 2),
    "digits_transformer": (1, 2, 3),
    "resnet20": (1, 3),
    "resnet56": (3, 6),
    "minilm_l6": (1, 2),
}
SLOWER = 1.05  # measured times scatter by as much


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where something is wrong."""
    args = parser(__doc__, "depth")
    args.add_argument("--only", default="", help="comma-separated models")
    args.add_argument("--seconds", type=float, default=10.0, help="of timing a model")
    options = args.parse_args(argv)
    only = names(options.only)
    rows: list[dict[str, Any]] = []
    with scratch(options.cache, "depth-") as folder:
        made = tasks(folder)
        for model in COUNTS:
            if model in made and (not only or model in only):
                rows += judged(made[model](), folder, options.seconds)
    missed = [
        f"{r['model']} without {r['layers']}: {r.get('error', 'slower')}"
        for r in rows
        if "error" in r or r["latency"] > SLOWER
    ]
    print(report(rows))
    for each in missed:
        print(f"missed: {each}")
    write_json(
        options.json, {"environment": environment(["pillow"]), "rows": rows, "missed": missed}
    )
    return int(bool(missed))


def judged(task: Task, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """One row for each number of layers, fitted and not."""
    task.reference.extend(outputs(task.model, task.batches))
    files = {"O2": folder / f"{task.name}.onnx"}
    optimize(task, files["O2"], "O2", "cpu")
    rows: dict[str, dict[str, Any]] = {}
    for count in COUNTS[task.name]:
        for fitted in (True, False):
            name = f"{count} {fitted}"
            path = folder / f"{task.name}-{len(files)}.onnx"
            passes = f"O2,prune-layers{{count={count}{'' if fitted else ' reconstruct=false'}}}"
            child, _ = optimize(task, path, passes, "cpu")
            print(f"{task.name}, {passes}: {child.wall:.0f} s", flush=True)
            rows[name] = {"model": task.name, "layers": count, "fitted": fitted}
            rows[name]["seconds"] = child.wall
            if child.code:
                rows[name]["error"] = child.reason()
                continue
            files[name] = path
            rows[name] |= figures(task.reference, outputs(path, task.batches), task.labels)
    times = latency(files, next(iter(task.inputs.values())), seconds)
    whole = Cost(graphopt.load(files["O2"]))
    for name, path in files.items():
        if name in rows:
            cost = Cost(graphopt.load(path))
            rows[name] |= {
                "latency": times[name].median / times["O2"].median,
                "macs": cost.macs / whole.macs,
                "parameters": cost.parameters / whole.parameters,
            }
    return list(rows.values())


def report(rows: list[dict[str, Any]]) -> str:
    """The table."""
    headers = (
        "model", "layers out", "others", "MACs x", "parameters x", "latency x", "top-1 %",
        "points lost", "SQNR dB", "seconds",
    )  # fmt: skip
    cells = [
        (
            r["model"], r["layers"], r.get("error") or ("fitted" if r["fitted"] else "as they are"),
            *(r.get(k) for k in ("macs", "parameters", "latency")),
            *(f"{r[k]:.2f}" if k in r else None for k in ("top1", "drop")),
            f"{r['sqnr_db']:.1f}" if "sqnr_db" in r else None, r["seconds"],
        )
        for r in rows
    ]  # fmt: skip
    return table(headers, cells, "Layers left out (MACs, parameters and latency: O2 is 1)")


if __name__ == "__main__":
    sys.exit(main())

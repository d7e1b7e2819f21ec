"""MiniLM with 2 of 12 heads and a quarter of the neurons of each layer removed, without training.

Cosine of sentence embeddings (mean over the tokens, of length one) to the original's, on sentences
that calibrate nothing; latency at 16 and 128 tokens as CPU time of one thread, all files in turns.
Each removal alone, without fitting the layers that stay, by measured noise, and by magnitude stand
beside, and onnxsim's pruning of heads and neurons, by magnitude, by Wanda, and with its own least
squares after. Exits with 1 where the mean cosine is below its bar.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from _common import HERE, environment, names, parser, run_child, scratch, table, write_json
from _int8 import TIMEOUT, Outputs, Task, latency, optimize, outputs, tasks
from prune_cnn import ORIGINAL, PLAIN, cost, pruned

NEURONS = 0.75
HEADS = "prune-heads{{channels=0.8334 {}}}"
FFN = "prune-channels{{channels=0.75 {}}}"
PLAIN_HEADS, PLAIN_FFN = HEADS.format("ranking=local"), FFN.format("ranking=local")
BEST = "heads and neurons"
_RAW = "ranking=local recover=false"
_L2 = "criterion=l2 ranking=local recover=false min-sqnr=-100"
FORMS = {
    BEST: f"{PLAIN_HEADS},{PLAIN_FFN}",
    "heads": PLAIN_HEADS,
    "neurons": PLAIN_FFN,
    "both, nothing fitted": f"{HEADS.format(_RAW)},{FFN.format(_RAW)}",
    "both by L2, nothing fitted": f"{HEADS.format(_L2)},{FFN.format(_L2)}",
    "both, by measured noise": f"{HEADS.format('ranking=measured')},"
    f"{FFN.format('ranking=measured')}",
}
PEERS = {
    "onnxsim L2": "bert-l2",
    "onnxsim Wanda": "bert-wanda",
    "onnxsim Wanda + ridge": "bert-ridge",
}
COSINE = 0.97


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses the cosine that it is to reach."""
    args = parser(__doc__, "prune_minilm")
    args.add_argument("--only", default="", help="comma-separated forms of graphopt's")
    args.add_argument("--seconds", type=float, default=40.0, help="of timing, for each length")
    args.add_argument("--skip-peers", action="store_true", help="graphopt alone")
    args.add_argument("--quick", action="store_true", help="the form with a bar, 5 s of timing")
    options = args.parse_args(argv)
    only = names(options.only)
    if options.quick:
        only, options.seconds = [BEST], 5.0
    with scratch(options.cache, "prune_minilm-") as folder:
        known = tasks(folder)
        if "minilm_l6" not in known:
            print("skipped: there is no minilm_l6 in the shared data")
            return 0
        rows = compare(known["minilm_l6"](), folder, only, options)
    print(report(rows))
    missed = list(below(rows))
    for each in missed:
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["onnxsim"]), "rows": rows, "missed": missed,
    })  # fmt: skip
    return int(bool(missed))


def compare(task: Task, folder: Path, only: list[str], options: Any) -> dict[str, dict[str, Any]]:
    """All forms; the first are the original and the model after O2."""
    files = {ORIGINAL: task.model, PLAIN: folder / "O2.onnx"}
    rows: dict[str, dict[str, Any]] = {ORIGINAL: {}, PLAIN: {}}
    child, _ = optimize(task, files[PLAIN], "O2", "cpu")
    if child.code:
        raise SystemExit(f"{task.name}: {child.reason()}")
    for name, passes in FORMS.items():
        if not only or name in only:
            files[name] = folder / f"{len(files)}.onnx"
            rows[name] = pruned(task, f"cleanup,{passes}", files[name])
    for name, style in ({} if options.skip_peers else PEERS).items():
        files[name] = folder / f"{len(files)}.onnx"
        script = [sys.executable, HERE / "_prune_peers.py", style, task.model, task.data]
        child = run_child([*script, files[name], str(NEURONS)], timeout=TIMEOUT)
        print(f"{name}: {child.wall:.0f} s", flush=True)
        rows[name] = {"seconds": child.wall, "cpu_s": child.cpu, "peak_mb": child.max_rss}
        if child.code:
            rows[name]["error"] = child.reason()
    good = {name: path for name, path in files.items() if "error" not in rows[name]}
    reference = embeddings(outputs(task.model, task.batches))
    whole = cost(files[PLAIN])
    for name, path in good.items():
        cosines = (embeddings(outputs(path, task.batches)) * reference).sum(axis=1)
        rows[name] |= {
            "cosine": float(cosines.mean()),
            "least": float(cosines.min()),
            "mb": path.stat().st_size / 1e6,
            "file": path.stat().st_size / task.model.stat().st_size,
            "params": cost(path).parameters / whole.parameters,
        }
    for size, feeds in task.inputs.items():
        times = latency(good, feeds, options.seconds)
        for name in good:
            rows[name] |= {
                f"ms, {size}": 1e3 * times[name].median,
                f"time, {size}": times[name].ratio,
            }
    return rows


def embeddings(found: Outputs) -> np.ndarray:
    """Mean over the tokens of each sentence, of length one."""
    means = np.stack([next(iter(each.values()))[0].mean(axis=0) for each in found])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def below(rows: dict[str, dict[str, Any]]) -> Any:
    """Bars that are missed, in words."""
    for name, row in rows.items():
        if name in FORMS and "error" in row:
            yield f"{name}: {row['error']}"
        elif name == BEST and row["cosine"] < COSINE:
            yield f"{name}: mean cosine {row['cosine']:.4f}, the bar is {COSINE}"


def report(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    sizes = [k.removeprefix("ms, ") for k in rows[ORIGINAL] if k.startswith("ms, ")]
    headers = (
        "form", "mean cosine", "least", "bar", "MB", "file", "params",
        *(f"{text} {size}" for size in sizes for text in ("ms", "x original")),
        "seconds", "peak MB", "error",
    )  # fmt: skip
    cells = [
        (
            name, *(_digits(row.get(k), 4) for k in ("cosine", "least")),
            f">= {COSINE}" if name == BEST else None, _digits(row.get("mb"), 1),
            *(_digits(row.get(k), 2) for k in ("file", "params")),
            *(_digits(v, 2) for size in sizes for v in (
                row.get(f"ms, {size}"),
                1 / row[f"time, {size}"] if f"time, {size}" in row else None,
            )),
            row.get("seconds"), row.get("peak_mb"), row.get("error"),
        )
        for name, row in rows.items()
    ]  # fmt: skip
    title = "MiniLM, 2 of 12 heads and 25 % of the neurons of each layer removed; batch 1, 1 thread"
    return table(headers, cells, title)


def _digits(value: float | None, count: int) -> str | None:
    return None if value is None else f"{value:.{count}f}"


if __name__ == "__main__":
    sys.exit(main())

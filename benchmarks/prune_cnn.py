"""Structured pruning of CIFAR networks, without labels or training: accuracy, latency, time.

``graphopt optimize MODEL -o OUT --passes "cleanup,prune-channels{macs=0.5}" --data calib.npz`` and
other goals, each in a process of its own, its memory what the operating system says. 512 training
images calibrate; 5,000 images of the test set and 2,048 other training images judge. Latency is the
CPU time of one thread, all files in turns. onnxsim's structured pruning, which gets the model after
O2 and the nearest number of multiply-accumulates, stands beside. Exits with 1 where ResNet-56 loses
more than its bars allow; latency, time and memory are figures, and say where they miss theirs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    HERE,
    data_dir,
    environment,
    graphopt_cli,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)
from _int8 import TIMEOUT, Feeds, Outputs, Task, figures, latency, optimize, outputs, tasks
from repair import images

from graphopt import ir
from graphopt.analyses import Cost

ORIGINAL, PLAIN = "original", "O2"
MODELS = ("resnet56", "resnet20", "mobilenetv2_cifar")
SIZES = ("batch 1", "batch 32")
HELD = 2048
GOALS = ("macs=0.833", "macs=0.667", "macs=0.5")
TWICE = GOALS[-1]
LATENCIES = ("latency=0.8", "latency=0.67", "latency=0.6")
# By the options of prune-channels.
FORMS = {
    **{goal: goal for goal in (*GOALS, *LATENCIES)},
    "macs=0.5, no layer goes whole": "macs=0.5 whole=false",
    # Whatever is left of the accuracy.
    "macs=0.5 of each, by L2, nothing fitted": "macs=0.5 whole=false criterion=l2 ranking=local "
    "recover=false min-sqnr=-100",
}
PEERS = {"onnxsim L2": "l2", "onnxsim Wanda": "wanda"}
# What ResNet-56 has to reach, and what is aimed at: points of top-1 lost; speed of the form with
# half of the work, and what that may cost; seconds and MB of a run; latency beside what was asked.
DROPS = {"macs=0.833": (0.5, 0.3), "macs=0.667": (1.7, 1.5), "macs=0.5": (4.5, 3.5)}
SPEED, AIMED_SPEED = (1.5, 5.0), (1.7, 4.0)
SECONDS, PEAK_MB = 180.0, 1536.0
CLOSE = 0.05


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses a bar on accuracy."""
    args = parser(__doc__, "prune_cnn")
    args.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    args.add_argument("--seconds", type=float, default=40.0, help="of timing, for each batch size")
    args.add_argument("--skip-peers", action="store_true", help="graphopt alone")
    args.add_argument("--quick", action="store_true", help="half of the work only, 5 s of timing")
    options = args.parse_args(argv)
    if options.quick:
        options.seconds = 5.0
    rows: list[dict[str, Any]] = []
    with scratch(options.cache, "prune_cnn-") as folder:
        known = tasks(folder)
        for name in names(options.models):
            if name not in known:
                print(f"skipped: {name}, which is not here; GRAPHOPT_DATA is the shared folder")
                continue
            rows += compare(known[name](), folder, options)
    print(report(rows))
    missed, slow = (list(missed_by(rows, hard=hard)) for hard in (True, False))
    for each in (*missed, *slow):
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["onnxsim", "pillow"]), "rows": rows,
        "missed": missed, "slow": slow,
    })  # fmt: skip
    return int(bool(missed))


@dataclass(frozen=True)
class Part:
    """Images to judge by, and what the original makes of them."""

    batches: list[Feeds]
    labels: np.ndarray
    reference: Outputs

    def figures(self, path: Path) -> dict[str, float]:
        """How well a model does on them."""
        return figures(self.reference, outputs(path, self.batches), self.labels)


def parts(task: Task) -> dict[str, Part]:
    """Images of the test set, and training images that calibrate nothing."""
    # _int8 calibrates with the first of this permutation.
    picks = np.random.default_rng(0).permutation(50_000)[-HELD:]
    pixels, labels = images(data_dir() / "cifar10_train.npz", picks)
    (key,) = task.batches[0]
    held = [{key: pixels[i : i + 128]} for i in range(0, HELD, 128)]
    assert task.labels is not None
    return {
        "val": Part(task.batches, task.labels, outputs(task.model, task.batches)),
        "train": Part(held, labels, outputs(task.model, held)),
    }


def compare(task: Task, folder: Path, options: Any) -> list[dict[str, Any]]:
    """All forms of one network; the first are the original and the model after O2."""
    files = {ORIGINAL: task.model, PLAIN: folder / f"{task.name}-O2.onnx"}
    rows: dict[str, dict[str, Any]] = {ORIGINAL: {}, PLAIN: {}}
    child, _ = optimize(task, files[PLAIN], "O2", "cpu")
    if child.code:
        raise SystemExit(f"{task.name}: {child.reason()}")
    for form in (TWICE, LATENCIES[1]) if options.quick else FORMS:
        files[form] = folder / f"{task.name}-{len(files)}.onnx"
        passes = f"cleanup,prune-channels{{{FORMS[form]}}}"
        rows[form] = pruned(task, passes, files[form])
    goals = () if options.skip_peers else (TWICE,) if options.quick else GOALS
    for goal in goals:
        for tool, style in PEERS.items():
            name = f"{tool}, {goal}"
            path = files[name] = folder / f"{task.name}-{len(files)}.onnx"
            rows[name] = peer(style, files[PLAIN], task.array, path, goal.partition("=")[2])
    judged = parts(task)
    whole = cost(files[PLAIN])
    for name in [n for n, row in rows.items() if "error" not in row]:
        found = cost(files[name])
        rows[name] |= {
            "macs": found.macs / whole.macs,
            "params": found.parameters / whole.parameters,
            "file": files[name].stat().st_size / task.model.stat().st_size,
            **{key: part.figures(files[name]) for key, part in judged.items()},
        }
    clock(task, {n: p for n, p in files.items() if "error" not in rows[n]}, rows, options.seconds)
    return [{"model": task.name, "form": name, **row} for name, row in rows.items()]


def pruned(task: Task, passes: str, output: Path) -> dict[str, Any]:
    """Run the command line as users do; how it went and what the pass says."""
    report = output.with_suffix(".json")
    command: list[str | Path] = [
        "optimize", task.model, "-o", output, "--passes", passes, "--data", task.data,
        "--json", report,
    ]  # fmt: skip
    child = run_child(graphopt_cli(*command), timeout=TIMEOUT)
    print(f"{task.name}, {passes}: {child.wall:.0f} s", flush=True)
    row: dict[str, Any] = {"seconds": child.wall, "cpu_s": child.cpu, "peak_mb": child.max_rss}
    if child.code:
        return row | {"error": child.reason()}
    content = json.loads(report.read_text(encoding="utf-8"))
    records = [p for p in content["passes"] if p["name"].startswith("prune-")]
    declined = [f"{p['status']}: {p['reason']}" for p in records if p["status"] != "ok"]
    if declined:
        return row | {"error": "; ".join(declined)}
    row["said"] = ["; ".join(p["remarks"]) for p in records]
    row["phases"] = [p["details"].get("seconds") for p in records]
    row["left"] = [
        {g["name"]: (g["left"], g["channels"]) for g in p["details"]["groups"]} for p in records
    ]
    return row


def peer(style: str, source: Path, calibration: Path, output: Path, left: str) -> dict[str, Any]:
    """Run onnxsim in a process of its own."""
    script = [sys.executable, HERE / "_prune_peers.py", style, source, calibration, output, left]
    child = run_child(script, timeout=TIMEOUT)
    print(f"{source.stem}, onnxsim {style} {left}: {child.wall:.0f} s", flush=True)
    row: dict[str, Any] = {"seconds": child.wall, "cpu_s": child.cpu, "peak_mb": child.max_rss}
    return row | ({"error": child.reason()} if child.code else {})


def cost(path: Path) -> Cost:
    """Multiply-accumulates for one sample, and parameters."""
    model = ir.load(path)
    ir.infer_shapes(model)
    return Cost(model)


def clock(
    task: Task, files: dict[str, Path], rows: dict[str, dict[str, Any]], seconds: float
) -> None:
    """Time all files in turns; their latency in units of the original's and of that after O2."""
    for size, feeds in task.inputs.items():
        times = latency(files, feeds, seconds)
        for name in files:
            rows[name] |= {
                f"ms, {size}": 1e3 * times[name].median,
                f"time, {size}": times[name].ratio,
                f"time of O2, {size}": times[name].ratio / times[PLAIN].ratio,
            }


# --- bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """What ResNet-56 has to reach, and what it does reach.

    Attributes:
        figure: What is measured.
        found: The measurement.
        bar: The least that will do, in words.
        aim: What is aimed at, in words.
        met: Whether it will do.
        hard: Whether missing it fails the benchmark.
    """

    figure: str
    found: float
    bar: str
    aim: str | None
    met: bool
    hard: bool = False


def bars_of(row: dict[str, Any]) -> Iterator[Bar]:
    """The bars on a form, where there are any."""
    form = row["form"]
    if row["model"] != "resnet56" or form not in FORMS:
        return
    name, _, asked = form.partition("=")
    if "error" not in row:
        drop = round(row["val"]["drop"], 2)
        if form in DROPS:
            bar, aim = DROPS[form]
            left = row["macs"]
            yield Bar("points lost", drop, f"<= {bar}", f"<= {aim}", drop <= bar, hard=True)
            yield Bar(name, left, f"<= {asked}", None, left <= float(asked), hard=True)
        if form == TWICE:
            found = 1 / row["time, batch 1"]
            bar, aim = (f">= {s}x at <= {d} points" for s, d in (SPEED, AIMED_SPEED))
            met = found >= SPEED[0] and drop <= SPEED[1]
            yield Bar("x original, batch 1", found, bar, aim, met)
        if form in LATENCIES:
            got = row["time of O2, batch 1"]
            met = abs(got / float(asked) - 1) <= CLOSE
            yield Bar("time, batch 1 (O2 is 1)", got, f"{asked} within 5 %", None, met)
    seconds, peak = row["seconds"], row["peak_mb"]
    yield Bar("seconds", seconds, f"<= {SECONDS:.0f}", None, seconds <= SECONDS)
    yield Bar("peak MB", peak, f"<= {PEAK_MB:.0f}", None, peak <= PEAK_MB)


def missed_by(rows: list[dict[str, Any]], *, hard: bool) -> Iterator[str]:
    """Bars that are missed, in words; what fails altogether is a hard one."""
    for row in rows:
        where = f"{row['model']}, {row['form']}"
        if hard and "error" in row and row["model"] == "resnet56" and row["form"] in FORMS:
            yield f"{where}: {row['error']}"
        for bar in bars_of(row):
            if not bar.met and bar.hard == hard:
                yield f"{where}: {bar.figure} {bar.found:.3g}, the bar is {bar.bar}"


# --- tables --------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]]) -> str:
    """Three tables: accuracy, cost and speed, and what ResNet-56 has to reach."""
    return "\n".join((accuracy(rows), speed(rows), bars(rows)))


def accuracy(rows: list[dict[str, Any]]) -> str:
    """What pruning takes from the outputs."""
    headers = (
        "model", "form", "MACs x", "top-1 %", "points lost", "agree %", "SQNR dB",
        "train: lost", "agree %", "SQNR dB", "error",
    )  # fmt: skip
    shown = []
    for row in rows:
        val, train = row.get("val", {}), row.get("train", {})
        shown.append((
            row["model"], row["form"], two(inverse(row.get("macs"))),
            *(two(val.get(k)) for k in ("top1", "drop", "agree", "sqnr_db")),
            *(two(train.get(k)) for k in ("drop", "agree", "sqnr_db")), row.get("error"),
        ))  # fmt: skip
    title = f"Accuracy on 5,000 test images, and on {HELD:,} training images that calibrate nothing"
    return table(headers, shown, title)


def speed(rows: list[dict[str, Any]]) -> str:
    """What is left of a network, how fast it is, and what making it took."""
    headers = (
        "model", "form", "params", "file",
        *(f"{text} {size}" for size in SIZES for text in ("ms", "x original", "x O2")),
        "seconds", "CPU s", "peak MB",
    )  # fmt: skip
    shown = [
        (
            row["model"], row["form"], *(two(row.get(k)) for k in ("params", "file")),
            *(two(v) for size in SIZES for v in (
                row.get(f"ms, {size}"), inverse(row.get(f"time, {size}")),
                inverse(row.get(f"time of O2, {size}")),
            )),
            row.get("seconds"), row.get("cpu_s"), row.get("peak_mb"),
        )
        for row in rows
    ]  # fmt: skip
    return table(headers, shown, "What is left, speed (one thread, CPU time), what making it took")


def bars(rows: list[dict[str, Any]]) -> str:
    """Every bar, with what was measured beside it."""
    shown = [
        (row["form"], b.figure, b.found, b.bar, b.aim, b.met) for row in rows for b in bars_of(row)
    ]
    headers = ("form", "figure", "measured", "bar", "aim", "bar met")
    return table(headers, shown, "What ResNet-56 has to reach") if shown else ""


def inverse(value: float | None) -> float | None:
    """One over a figure, where there is one."""
    return None if value is None else 1 / value


def two(value: float | None) -> str | None:
    """A figure with two decimals, where there is one."""
    return None if value is None or not np.isfinite(value) else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())

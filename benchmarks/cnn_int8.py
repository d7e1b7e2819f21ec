"""int8 with ``O2,quantize-int8``: accuracy, latency, memory and time, other tools' beside them.

Three parts. Convolutional networks as each tool quantizes them, with the same calibration images,
judged on others. The mobile ones with a scale for each tensor, as mobile targets want it. Then
every model there is: what becomes of those whose int8 form would be slower. Each quantization is a
process of its own, its memory the ``VmHWM`` of that process. ``--peer nncf=PYTHON`` (``quark``)
runs these tools in environments of their own. Exits with 1 where a bar on accuracy is missed, or a
quantization of graphopt's fails; latency is a figure, and says so where it misses its bar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import (
    HERE,
    Child,
    environment,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)
from _int8 import TIMEOUT, Task, figures, latency, optimize, outputs, tasks

OURS, FP32, PLAIN = "graphopt", "fp32", "fp32 after O2"
FLOAT, INT8, TARGET = "O2", "O2,quantize-int8", "cpu-x64"
# Whether or not it pays, so that a mobile net that is fast as it is shows how accurate it would be.
ALL_NODES = "O2,quantize-int8{choose=all}"
PER_TENSOR = "O2,quantize-int8{per-channel=false choose=all spelling=qdq}"
# What graphopt has to reach, by model: least agreement in percent, least SQNR in dB, and most
# points of top-1 lost.
BARS = {
    "resnet20": {"agree": 98.8, "sqnr_db": 30.0, "drop": 0.2},
    "resnet56": {"agree": 98.8, "sqnr_db": 30.0, "drop": 0.2},
    "mobilenetv2_cifar": {"agree": 99.0, "sqnr_db": 32.0},
    "digits_mobilenet": {"agree": 99.0, "sqnr_db": 32.0},
}
PER_TENSOR_BARS = {"agree": 96.0, "drop": 0.5}
MOBILE = ("mobilenetv2_cifar", "digits_mobilenet")
# Their further forms: pipeline, target and bars (none: the model's own).
MOBILE_FORMS = {
    f"{OURS}, all nodes": (ALL_NODES, TARGET, None),
    f"{OURS} per tensor, cpu-x64": (PER_TENSOR, TARGET, PER_TENSOR_BARS),
    f"{OURS} per tensor, xnnpack": (PER_TENSOR, "xnnpack", PER_TENSOR_BARS),
    f"{OURS} per tensor, nnapi": (PER_TENSOR, "nnapi", PER_TENSOR_BARS),
}
PEERS = {
    "ORT QDQ MinMax": "qdq-minmax",
    "ORT QDQ Percentile": "qdq-percentile",
    "ORT QOperator MinMax": "qoperator-minmax",
    "ORT QOperator Percentile": "qoperator-percentile",
}
PER_TENSOR_PEERS = {
    "ORT per tensor, MinMax": "qdq-minmax-per-tensor",
    "ORT per tensor, Percentile": "qdq-percentile-per-tensor",
}
FOREIGN = {"NNCF": "nncf", "AMD Quark A8W8": "quark"}
# Of the time of the original or of a peer: what measurements differ by anyway.
NOISE = 0.02


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses a bar on accuracy."""
    args = parser(__doc__, "cnn_int8")
    args.add_argument("--only", default="", help="comma-separated model names")
    args.add_argument(
        "--seconds", type=float, default=20.0, help="of timing, for each model and input"
    )
    args.add_argument("--skip-peers", action="store_true", help="graphopt alone")
    args.add_argument(
        "--peer", action="append", default=[], help="NAME=PYTHON: nncf or quark, interpreter"
    )
    options = args.parse_args(argv)
    rows: list[dict[str, Any]] = []
    choices: list[dict[str, Any]] = []
    with scratch(options.cache, "cnn_int8-") as folder:
        known = tasks(folder)
        wanted = names(options.only) or list(known)
        for name in wanted:
            if name not in known:
                print(f"skipped: {name}, which is not here; GRAPHOPT_DATA is the shared folder")
                continue
            task = known[name]()
            task.reference.extend(outputs(task.model, task.batches))
            plain, ours = Form(task, PLAIN, folder), Form(task, OURS, folder)
            plain.optimized(FLOAT, TARGET)
            ours.optimized(INT8, TARGET)
            if name in BARS:
                rows += compare(task, plain, ours, folder, options)
            choices.append(choice(task, plain, ours, options.seconds))
    print(report(rows, choices))
    missed = [m for row in (*rows, *choices) for m in row["missed"]]
    slow = [m for row in (*rows, *choices) for m in row["slow"]]
    for each in (*missed, *slow):
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["pillow"]), "rows": rows, "choices": choices,
        "missed": missed, "slow": slow,
    })  # fmt: skip
    return int(bool(missed))


class Form:
    """A model as one tool left it: its file, and how the tool's process went."""

    def __init__(self, task: Task, name: str, folder: Path) -> None:
        self.task, self.name = task, name
        label = "".join(c if c.isalnum() else "-" for c in name)
        self.path = folder / f"{task.name}-{label}.onnx"
        self.child: Child | None = None
        self.report: dict[str, Any] = {}

    def took(self, child: Child) -> None:
        """Keep how the process went, and show that something happens."""
        self.child = child
        print(f"{self.task.name}, {self.name}: {child.wall:.0f} s", flush=True)

    def optimized(self, passes: str, target: str) -> None:
        """Let graphopt make it."""
        child, self.report = optimize(self.task, self.path, passes, target)
        self.took(child)

    def row(self) -> dict[str, Any]:
        """What is known without running the model, or why there is none."""
        row: dict[str, Any] = {
            "model": self.task.name, "form": self.name, "missed": [], "slow": [],
        }  # fmt: skip
        if self.child is not None:
            row |= {"wall_s": self.child.wall, "peak_mb": self.child.peaks.get("VmHWM")}
            if self.child.code or not self.path.exists():
                return row | {"error": self.child.reason()}
        found = outputs(self.path, self.task.batches)
        row |= {"kb": self.path.stat().st_size / 1e3}
        return row | figures(self.task.reference, found, self.task.labels)


def compare(
    task: Task, plain: Form, ours: Form, folder: Path, options: Any
) -> list[dict[str, Any]]:
    """One network in the forms of all tools; the first are the original and graphopt's."""
    original = Form(task, FP32, folder)
    original.path = task.model
    timed = [original, plain, ours]
    untimed: list[Form] = []
    if not options.skip_peers:
        timed += peers(task, PEERS, folder) + foreign(task, folder, options.peer)
    if task.name in MOBILE:
        for name, (passes, target, _) in MOBILE_FORMS.items():
            form = Form(task, name, folder)
            form.optimized(passes, target)
            untimed.append(form)
        if not options.skip_peers:
            untimed += peers(task, PER_TENSOR_PEERS, folder)
    rows = {form.name: form.row() for form in (*timed, *untimed)}
    for name, row in rows.items():
        row["bars"] = bars_of(task.name, name)
        row["missed"] += below(row, row["bars"])
    files = {f.name: f.path for f in timed if "error" not in rows[f.name]}
    for size, feeds in task.inputs.items():
        times = latency(files, feeds, options.seconds)
        for name in files:
            rows[name][f"ms, {size}"] = 1e3 * times[name].median
            rows[name][f"x, {size}"] = 1 / times[name].ratio
        rivals = [n for n in files if n not in (FP32, PLAIN, OURS)]
        if OURS in files and rivals:
            best = min(rivals, key=lambda n: times[n].ratio)
            share = times[best].ratio / times[OURS].ratio
            rows[OURS][f"x best peer, {size}"] = share
            if share < 1 - NOISE:
                rows[OURS]["slow"].append(
                    f"{task.name}, {size}: {share:.2f} times the speed of {best}"
                )
    return list(rows.values())


def bars_of(model: str, form: str) -> dict[str, float]:
    """What a form has to reach; nothing where it is not graphopt's."""
    if form != OURS and form not in MOBILE_FORMS:
        return {}
    return MOBILE_FORMS.get(form, (None, None, None))[2] or BARS[model]


def below(row: dict[str, Any], bars: dict[str, float]) -> Iterator[str]:
    """Bars that a row misses, in words."""
    where = f"{row['model']}, {row['form']}"
    if "error" in row and row["form"].startswith(OURS):
        yield f"{where}: {row['error']}"
        return
    for key, bar in bars.items():
        value = row[key]
        # Rounded as it is shown: one image of a few hundred is more than any rounding.
        if round(value, 2) > bar if key == "drop" else round(value, 2) < bar:
            yield f"{where}: {key} {value:.2f}, the bar is {bar:g}"


def peers(task: Task, wanted: dict[str, str], folder: Path) -> list[Form]:
    """ONNX Runtime's own quantization."""
    forms = []
    for name, style in wanted.items():
        form = Form(task, name, folder)
        form.took(run(sys.executable, "_int8_peers.py", style, task.model, task.array, form.path))
        forms.append(form)
    return forms


def run(python: str, script: str, *args: str | Path) -> Child:
    """Run a script of this folder in a process of its own."""
    return run_child([python, HERE / script, *args], timeout=TIMEOUT)


def foreign(task: Task, folder: Path, given: list[str]) -> list[Form]:
    """Other tools, in environments of their own, on the model as ONNX Runtime prepares it."""
    pythons = dict(each.split("=", 1) for each in given)
    forms = []
    for name, tool in FOREIGN.items():
        if tool not in pythons:
            print(f"skipped: {name} needs --peer {tool}=PYTHON")
            continue
        prepared = folder / f"{task.name}-prepared.onnx"
        if not prepared.exists():
            done = run(sys.executable, "_int8_peers.py", "prepare", task.model, "", prepared)
            if done.code:
                raise SystemExit(f"{task.name}: ONNX Runtime does not prepare it: {done.reason()}")
        form = Form(task, name, folder)
        form.took(run(pythons[tool], "_foreign.py", tool, prepared, task.array, form.path))
        forms.append(form)
    return forms


def choice(task: Task, plain: Form, ours: Form, seconds: float) -> dict[str, Any]:
    """What became of a model, and whether it is as fast as before."""
    row = ours.row()
    if "error" in row:
        return row | {"missed": list(below(row, {}))}
    record = next(p for p in ours.report["passes"] if p["name"] == "quantize-int8")
    row["choice"] = (
        record["details"].get("chosen") if record["status"] == "ok" else None
    ) or "none"
    row["reason"] = record["reason"] or "; ".join(record["remarks"])
    if record["status"] not in ("ok", "not-applicable"):
        row["missed"].append(f"{task.name}: {record['name']} {record['status']}: {row['reason']}")
    for size, feeds in task.inputs.items():
        files = {FP32: task.model, PLAIN: plain.path, OURS: ours.path}
        times = latency(files, feeds, seconds)
        row[f"times, {size}"] = found = (times[PLAIN].ratio, times[OURS].ratio)
        if found[1] > 1 + NOISE:
            row["slow"].append(f"{task.name}, {size}: {found[1]:.2f} of the original's time")
    return row


def report(rows: list[dict[str, Any]], choices: list[dict[str, Any]]) -> str:
    """The tables that have rows."""
    parts = []
    if rows:
        parts += [accuracy(rows), speed(rows)]
    shown = []
    for row in choices:
        times = {k.removeprefix("times, "): v for k, v in row.items() if k.startswith("times, ")}
        shown += [
            (row["model"], row.get("choice"), size, *ratios, row.get("sqnr_db"), row.get("agree"),
             row.get("error") or row["reason"])
            for size, ratios in (times or {"": (None, None)}).items()
        ]  # fmt: skip
    title = f"Time for {TARGET} in units of the original's, and what was chosen"
    headers = ("model", "choice", "input", FLOAT, INT8, "SQNR dB", "agree %", "reason")
    parts.append(table(headers, shown, title))
    return "\n".join(parts)


def accuracy(rows: list[dict[str, Any]]) -> str:
    """What quantization takes from the outputs."""
    headers = ("model", "form", "top-1 %", "points lost", "agree %", "SQNR dB", "bars", "missed")
    shown = []
    for row in rows:
        bars = row["bars"]
        shown.append((
            row["model"], row["form"], *(_two(row.get(k)) for k in ("top1", "drop", "agree")),
            None if row["form"] in (FP32, PLAIN) else _two(row.get("sqnr_db")),
            ", ".join(f"{k.removesuffix('_db')} {v:g}" for k, v in bars.items()) or None,
            row.get("error") or (len(row["missed"]) if bars else None),
        ))  # fmt: skip
    return table(headers, shown, "Accuracy on images that nothing was chosen on")


def speed(rows: list[dict[str, Any]]) -> str:
    """What it takes to quantize, and to run the result."""
    timed = [row for row in rows if any(k.startswith("x, ") for k in row)]
    sizes = list(dict.fromkeys(k[4:] for row in timed for k in row if k.startswith("ms, ")))
    headers = [
        "model", "form", "seconds", "peak MB", "KB",
        *(f"{unit} {size}" for size in sizes for unit in ("ms", "x fp32", "x best peer")),
    ]  # fmt: skip
    cells = [f"{key}, {size}" for size in sizes for key in ("ms", "x", "x best peer")]
    keys = ("model", "form", "wall_s", "peak_mb", "kb")
    shown = [[*(row.get(k) for k in keys), *(_two(row.get(k)) for k in cells)] for row in timed]
    return table(headers, shown, "Latency (one thread, CPU time), and what quantizing took")


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())

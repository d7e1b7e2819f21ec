"""Layers computed in parts, without labels or training: accuracy, multiply-accumulates, latency.

``graphopt optimize MODEL -o OUT --passes "cleanup,convert-depthwise{macs=0.592}" --data calib.npz``
and other forms and goals, each in a process of its own, its memory what the operating system says.
512 training images calibrate ResNet-56 and other networks; 5,000 images of the test set judge (of
networks for digits 450). Latency is the CPU time of one thread, all files in turns. No other tool
decomposes ONNX models: beside the figures stand those of a prototype, which fitted pointwise
kernels only, and of network decoupling as it was published, which fits nothing. Exits with 1 where
a bar on accuracy is missed; those on latency are figures, and say where they miss.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import environment, names, parser, scratch, table, write_json
from _int8 import Task, figures, optimize, outputs, tasks
from prune_cnn import ORIGINAL, PLAIN, Bar, clock, cost, inverse, speed, two

MODELS = ("resnet56", "resnet20", "mobilenetv2_cifar", "digits_vgg")
SHARE, CLOSE = 0.55, 0.05
LATENCY = f"latency={SHARE}"
ANY = f"{LATENCY} forms=spatial,input,output,depthwise"
# Names of forms, which hold no commas, so that --only can list them.
LESS, MORE, FAST = "depthwise 1.69x", "depthwise 2.25x", "depthwise faster"
SPATIAL, TWICE, LOW_RANK = "spatial 2x", "low rank 2x", "low rank faster"
MIXED, PRUNED = "mixed faster", "pruned faster"
FORMS = {
    LESS: "convert-depthwise{macs=0.592}",
    MORE: "convert-depthwise{macs=0.444}",
    FAST: f"convert-depthwise{{{LATENCY}}}",
    SPATIAL: "factorize{macs=0.5 forms=spatial}",
    TWICE: "factorize{macs=0.5}",
    LOW_RANK: f"factorize{{{LATENCY}}}",
    MIXED: f"factorize{{{ANY} whole=true}}",
    "mixed faster and no layer goes": f"factorize{{{ANY}}}",
    PRUNED: f"prune-channels{{{LATENCY}}}",
}
ALONE = (FAST, LOW_RANK, PRUNED)


@dataclass(frozen=True)
class Earlier:
    """What a prototype lost of ResNet-56 at the same multiply-accumulates.

    From ``shared/reference/pruning.md``, sections 3b and 3e: 2,000 of the test images, of which the
    original gets 84.15 % right; all layers in the same form.

    Attributes:
        fitted: Points lost with pointwise kernels, or the second factors, by least squares.
        plain: Points lost by the singular value decomposition as it is, where that was measured.
    """

    fitted: float
    plain: float | None


PROTOTYPE = {
    LESS: Earlier(0.9, 84.15 - 28.20),  # 4 terms
    MORE: Earlier(3.4, 84.15 - 11.90),  # 3 terms
    SPATIAL: Earlier(2.75, None),
}
# Points of top-1 that may be lost, and the multiply-accumulates that may be left.
DROPS = {
    "resnet56": {LESS: (0.5, 0.592), MORE: (2.5, 0.444), SPATIAL: (2.0, 0.5)},
    "digits_vgg": {TWICE: (1.0, 0.5)},
}
# How much faster than the original, what is aimed at, and the points that may be lost.
SPEED, AIMED_SPEED, SPEED_DROP = 1.6, 1.9, 4.0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses a bar on accuracy."""
    args = parser(__doc__, "decompose")
    args.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    args.add_argument("--only", default="", help=f"comma-separated forms: {', '.join(FORMS)}")
    args.add_argument("--seconds", type=float, default=40.0, help="of timing, for each batch size")
    options = args.parse_args(argv)
    unknown = set(names(options.only)) - set(FORMS)
    if unknown:
        args.error(f"no such form: {', '.join(sorted(unknown))}; there are {', '.join(FORMS)}")
    rows: list[dict[str, Any]] = []
    with scratch(options.cache, "decompose-") as folder:
        known = tasks(folder)
        for name in names(options.models):
            if name not in known:
                print(f"skipped: {name}, which is not here; GRAPHOPT_DATA is the shared folder")
                continue
            rows += compare(known[name](), folder, names(options.only) or list(FORMS), options)
    print(report(rows))
    missed, slow = (list(missed_by(rows, hard=hard)) for hard in (True, False))
    for each in (*missed, *slow):
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(["pillow"]), "rows": rows, "missed": missed, "slow": slow,
    })  # fmt: skip
    return int(bool(missed))


def compare(task: Task, folder: Path, forms: list[str], options: Any) -> list[dict[str, Any]]:
    """All forms of one network; the first are the original and the model after O2."""
    files = {ORIGINAL: task.model, PLAIN: folder / f"{task.name}-O2.onnx"}
    rows: dict[str, dict[str, Any]] = {ORIGINAL: {}, PLAIN: {}}
    child, _ = optimize(task, files[PLAIN], "O2", "cpu")
    if child.code:
        raise SystemExit(f"{task.name}: {child.reason()}")
    for form in forms:
        path = files[form] = folder / f"{task.name}-{len(files)}.onnx"
        rows[form] = made(task, f"cleanup,{FORMS[form]}", path)
    task.reference.extend(outputs(task.model, task.batches))
    good = {name: path for name, path in files.items() if "error" not in rows[name]}
    whole = cost(files[PLAIN])
    for name, path in good.items():
        found = cost(path)
        rows[name] |= {
            "macs": found.macs / whole.macs,
            "params": found.parameters / whole.parameters,
            "file": path.stat().st_size / task.model.stat().st_size,
            **figures(task.reference, outputs(path, task.batches), task.labels),
        }
    clock(task, good, rows, options.seconds)
    return [{"model": task.name, "form": name, **row} for name, row in rows.items()]


def made(task: Task, passes: str, output: Path) -> dict[str, Any]:
    """Run the command line as users do; how it went, and what became of the layers."""
    child, content = optimize(task, output, passes, "cpu")
    print(f"{task.name}, {passes}: {child.wall:.0f} s", flush=True)
    row: dict[str, Any] = {
        "passes": passes, "seconds": child.wall, "cpu_s": child.cpu, "peak_mb": child.max_rss,
    }  # fmt: skip
    if child.code:
        return row | {"error": child.reason()}
    record = content["passes"][-1]
    if record["status"] != "ok":
        return row | {"error": f"{record['status']}: {record['reason']}"}
    details = record["details"]
    return row | {
        "said": record["remarks"],
        "layers": {each["name"]: each["form"] for each in details.get("layers", [])},
        "removed": details.get("removed", []),
    }


# --- bars ----------------------------------------------------------------------------------------


def bars_of(row: dict[str, Any], others: dict[str, dict[str, Any]]) -> Iterator[Bar]:
    """The bars on a form, where there are any.

    Args:
        row: The form.
        others: All forms of the same network, by name.
    """
    form, model = row["form"], row["model"]
    if "error" in row:
        return
    drop = round(row["drop"], 2)
    if form in DROPS.get(model, {}):
        most, left = DROPS[model][form]
        yield Bar("points lost", drop, f"<= {most}", None, drop <= most, hard=True)
        yield Bar("macs", row["macs"], f"<= {left}", None, row["macs"] <= left, hard=True)
    if model != "resnet56":
        return
    if form == FAST:
        speed = 1 / row["time, batch 1"]
        bar, aim = (f">= {s}x at <= {SPEED_DROP} points" for s in (SPEED, AIMED_SPEED))
        met = speed >= SPEED and drop <= SPEED_DROP
        yield Bar("x original, batch 1", speed, bar, aim, met)
    if LATENCY in FORMS.get(form, ""):
        got = row["time of O2, batch 1"]
        met = got <= SHARE * (1 + CLOSE)
        yield Bar("time, batch 1 (O2 is 1)", got, f"<= {SHARE} within 5 %", None, met)
    alone = {name: others[name] for name in ALONE if "drop" in others.get(name, {})}
    if form == MIXED and alone:
        best = min(alone, key=lambda name: alone[name]["drop"])
        least = round(alone[best]["drop"], 2)
        yield Bar("points lost", drop, f"< {least} of {best}", None, drop < least, hard=True)


def failed(row: dict[str, Any]) -> bool:
    """Whether a form came to nothing that has to reach a bar."""
    wanted = set(DROPS.get(row["model"], {}))
    if row["model"] == "resnet56":
        wanted |= {FAST, MIXED}
    return "error" in row and row["form"] in wanted


def by_model(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by model and form."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["form"]] = row
    return found


def missed_by(rows: list[dict[str, Any]], *, hard: bool) -> Iterator[str]:
    """Bars that are missed, in words; what fails altogether is a hard one."""
    others = by_model(rows)
    for row in rows:
        where = f"{row['model']}, {row['form']}"
        if hard and failed(row):
            yield f"{where}: {row['error']}"
        for bar in bars_of(row, others[row["model"]]):
            if not bar.met and bar.hard == hard:
                yield f"{where}: {bar.figure} {bar.found:.3g}, the bar is {bar.bar}"


# --- tables --------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]]) -> str:
    """Three tables: accuracy, cost and speed, and what has to be reached."""
    return "\n".join((accuracy(rows), speed(rows), bars(rows)))


def accuracy(rows: list[dict[str, Any]]) -> str:
    """What forms take from the outputs."""
    headers = (
        "model", "form", "MACs x", "top-1 %", "points lost", "agree %", "SQNR dB",
        "prototype: lost", "nothing fitted: lost", "layers", "error",
    )  # fmt: skip
    shown = []
    for row in rows:
        earlier = PROTOTYPE.get(row["form"]) if row["model"] == "resnet56" else None
        shown.append((
            row["model"], row["form"], two(inverse(row.get("macs"))),
            *(two(row.get(k)) for k in ("top1", "drop", "agree", "sqnr_db")),
            *(two(getattr(earlier, k, None)) for k in ("fitted", "plain")),
            _kinds(row), row.get("error"),
        ))  # fmt: skip
    return table(headers, shown, "Accuracy on test images (prototype: 2,000 of them)")


def _kinds(row: dict[str, Any]) -> str | None:
    """How many layers got which form."""
    if not row.get("layers"):
        return None
    kinds = Counter(form.split()[0] for form in row["layers"].values())
    kinds["gone"] = len(row["removed"])
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common() if count)


def bars(rows: list[dict[str, Any]]) -> str:
    """Every bar, with what was measured beside it."""
    others = by_model(rows)
    shown = [
        (row["model"], row["form"], b.figure, b.found, b.bar, b.aim, b.met)
        for row in rows
        for b in bars_of(row, others[row["model"]])
    ]
    headers = ("model", "form", "figure", "measured", "bar", "aim", "bar met")
    return table(headers, shown, "What has to be reached") if shown else ""


if __name__ == "__main__":
    sys.exit(main())

"""The shared real models, optimized: equal on real data, the same task accuracy, size, latency.

Every model runs its whole data set through the original and the optimized file with ONNX Runtime's
own optimizations off. Latency is the ratio of interleaved medians on one thread under ONNX
Runtime's default optimizations, which is what users run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _common import (
    data_dir,
    environment,
    names,
    parser,
    scratch,
    single_thread_env,
    table,
    write_json,
)
from _pool import Task, Worker
from _tools import Options, Tool, pick


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where the first tool's result is not equal on some model."""
    args = parser(__doc__, "real_models")
    args.add_argument("--tools", default="graphopt", help="comma-separated tools")
    args.add_argument("--pipeline", default="O2", help="graphopt's pipeline")
    args.add_argument("--oracle", default="end", choices=("off", "end", "each"))
    args.add_argument("--models", default="", help="comma-separated model names (default: all)")
    args.add_argument(
        "--samples", type=int, default=0, help="at most so many samples (default: all)"
    )
    args.add_argument("--latency", type=float, default=3.0, help="seconds of timing per version")
    options = args.parse_args(argv)
    data = data_dir()
    if not (data / "models").is_dir():
        print("skipped: the shared data is not there; set GRAPHOPT_DATA to its folder")
        return 0
    tools = pick(names(options.tools))
    settings = Options(pipeline=options.pipeline, oracle=options.oracle)
    wanted = names(options.models) or sorted(p.stem for p in (data / "models").glob("*.onnx"))
    rows = []
    with scratch(options.cache, "real-") as folder:
        for model in wanted:
            rows.append(_one(model, data, tools, settings, options, folder))
            print(f"  {model}: {_brief(rows[-1])}", flush=True)
    print(report(rows))
    payload = {
        "environment": environment([tool.package for tool in tools]),
        "options": settings.to_json() | {"samples": options.samples},
        "models": rows,
    }
    write_json(options.json, payload)
    return int(any(not _equal(row["tools"].get(tools[0].name, {})) for row in rows))


def _one(
    model: str, data: Path, tools: list[Tool], settings: Options, options: Any, folder: Path
) -> dict[str, Any]:
    source = data / "models" / f"{model}.onnx"
    made: dict[str, str] = {}
    notes: dict[str, dict[str, Any]] = {}
    for tool in tools:
        target = folder / f"{model}-{tool.name}.onnx"
        worker = Worker(single_thread_env())
        arguments: dict[str, Any] = {"tool": tool.name, "source": str(source)}
        arguments |= {"target": str(target), "options": settings.to_json()}
        task = Task("_timing", "timed", arguments)
        outcome = worker.call(task, 600)
        worker.stop()
        if outcome.kind == "ok":
            made[tool.name] = str(target)
            notes[tool.name] = {k: outcome.value[k] for k in ("cpu_s", "hwm_mb", "notes")}
        else:
            notes[tool.name] = {"error": f"{outcome.kind}: {outcome.detail}"[:300]}
    worker = Worker(single_thread_env())
    arguments = {"model": model, "data": str(data), "results": made}
    arguments |= {"samples": options.samples, "latency_s": options.latency}
    outcome = worker.call(Task("_real_check", "check", arguments), 1800)
    worker.stop()
    if outcome.kind != "ok":
        return {"model": model, "error": f"{outcome.kind}: {outcome.detail}", "tools": notes}
    row: dict[str, Any] = outcome.value
    row["tools"] = {t.name: notes[t.name] | row["tools"].get(t.name, {}) for t in tools}
    return row


def _equal(entry: dict[str, Any]) -> bool:
    agreement = entry.get("agreement", {})
    return entry.get("problem", "missing") is None and bool(agreement.get("same"))


def _brief(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    parts = []
    for name, entry in row["tools"].items():
        verdict = entry.get("error") or entry.get("problem") or "equal"
        parts.append(f"{name} {row['nodes']} -> {entry.get('nodes', '?')} nodes, {verdict}")
    return "; ".join(parts)


def report(rows: list[dict[str, Any]]) -> str:
    """One line per model and tool."""
    headers = ["model", "tool", "nodes", "after", "KB", "after", "equal", "SQNR dB", "task before",
               "task after", "agreement", "ms", "ratio"]  # fmt: skip
    body: list[list[Any]] = []
    for row in rows:
        for name, entry in row["tools"].items():
            if "metric" not in entry or "metric" not in row:
                error = entry.get("error") or row.get("error")
                body.append([row["model"], name, row.get("nodes"), None, None, None, error]
                            + [None] * 6)  # fmt: skip
                continue
            key = next(iter(row["metric"]))
            agreement = {k: v for k, v in entry["agreement"].items() if k != "same"}
            label, value = next(iter(agreement.items()))
            body.append([
                row["model"], name, row["nodes"], entry["nodes"],
                row["bytes"] / 1024, entry["bytes"] / 1024,
                "bits" if entry.get("bits_equal") else _equal(entry), entry["sqnr_db"],
                f"{key} {row['metric'][key]:.6g}", f"{entry['metric'][key]:.6g}",
                f"{label} {value:.6g}" if value is not None else label,
                row.get("latency_ms"), entry.get("latency_ratio"),
            ])  # fmt: skip
    return table(headers, body, "Real models")


if __name__ == "__main__":
    sys.exit(main())

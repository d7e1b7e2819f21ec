"""CPU seconds of load + optimize + save on real models and torch exports, and their scaling.

Models: every tool has one process, imports done and one small model behind it; the tools take turns
on each model, and the table shows the median of --rounds. Scale: each run has a fresh process and a
CPU time limit; the exponent is the least-squares slope of log seconds over log nodes.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from _common import (
    data_dir,
    environment,
    exponent,
    interleave,
    names,
    parser,
    scratch,
    single_thread_env,
    table,
    write_json,
)
from _pool import Outcome, Task, Worker
from _tools import Options, Tool, pick


def main(argv: list[str] | None = None) -> int:
    """Run both parts."""
    args = parser(__doc__, "time_scale")
    args.add_argument(
        "--tools",
        default="graphopt,onnxslim",
        help="comma-separated tools; ratios are first to second",
    )
    args.add_argument(
        "--scale-tools", default=None, help="tools for the scaling part (default: --tools)"
    )
    args.add_argument("--pipeline", default="O2", help="graphopt's pipeline")
    args.add_argument(
        "--oracle", default="off", choices=("off", "end", "each"), help="graphopt's oracle mode"
    )
    args.add_argument("--rounds", type=int, default=5, help="runs per tool and model")
    args.add_argument(
        "--models",
        type=Path,
        nargs="*",
        help="files or folders (default: shared models, torch exports)",
    )
    args.add_argument(
        "--kinds", default="chain,dag,shapes,shapes_dynamic", help="synthetic graphs; empty: none"
    )
    args.add_argument("--sizes", default="1000,3000,10000,30000,100000", help="node counts")
    args.add_argument("--limit", type=float, default=60.0, help="CPU seconds per scaling run")
    args.add_argument(
        "--verify", type=int, default=10000, help="check results up to this many nodes for equality"
    )
    options = args.parse_args(argv)
    settings = Options(pipeline=options.pipeline, oracle=options.oracle)
    tools = pick(names(options.tools))
    scale_tools = pick(names(options.scale_tools)) if options.scale_tools else tools
    payload: dict[str, Any] = {
        "environment": environment([t.package for t in (*tools, *scale_tools)]),
        "options": settings.to_json() | {"rounds": options.rounds, "cpu_limit_s": options.limit},
    }
    with scratch(options.cache, "time-") as folder:
        files = find_models(options.models, options.cache)
        if files:
            payload["models"] = time_models(files, tools, settings, options, folder)
        if names(options.kinds):
            payload["scale"] = time_scale(scale_tools, settings, options, folder)
    write_json(options.json, payload)
    return 0


def find_models(listed: list[Path] | None, cache: Path) -> list[Path]:
    """Model files in the given files and folders; default: shared models and torch exports."""
    roots = listed if listed is not None else [data_dir() / "models", cache / "torch"]
    found: list[Path] = []
    for root in roots:
        if not root.exists():
            print(f"skipped: {root.name} is not there (set GRAPHOPT_DATA, or run torch_exports.py)")
        found += [root] if root.is_file() else sorted(root.glob("*.onnx"))
    return found


# --- models --------------------------------------------------------------------------------------


def time_models(
    files: list[Path], tools: list[Tool], settings: Options, options: Any, folder: Path
) -> dict[str, Any]:
    """Interleaved medians on each model file."""
    from generators import write

    tiny = write("chain", 14, options.cache / "scale")
    workers = {tool.name: Worker(single_thread_env()) for tool in tools}
    imports: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    try:
        for tool in tools:
            outcome = workers[tool.name].call(
                _task("warm", tool, tiny, folder / "warm.onnx", settings), 120
            )
            imports[tool.name] = outcome.value or {"error": outcome.detail}
        for file in files:
            rows.append(_time_model(file, tools, workers, settings, options.rounds, folder))
            print(f"  {file.stem}: {_brief(rows[-1], tools)}", flush=True)
    finally:
        for worker in workers.values():
            worker.stop()
    headers = ["model", "nodes", *(f"{t.name} {c}" for t in tools for c in ("CPU s", "nodes"))]
    body = []
    for row in rows:
        found = [row["tools"][tool.name] for tool in tools]
        pairs = [[e.get("cpu_s"), e.get("error") or e["nodes"]] for e in found]
        body.append([row["model"], row["nodes"], *(cell for pair in pairs for cell in pair)])
    summary = _summary(rows, tools)
    if len(tools) > 1:
        headers.append(f"{tools[0].name}/{tools[1].name}")
        body = [[*cells, row["ratio"]] for cells, row in zip(body, rows, strict=True)]
    print(table(headers, body, "Models: median CPU seconds of load + optimize + save"))
    print("  ".join(f"{key}: {value}" for key, value in summary.items()))
    return {"imports": imports, "summary": summary, "rows": rows}


def _time_model(
    file: Path,
    tools: list[Tool],
    workers: dict[str, Worker],
    settings: Options,
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    runs: dict[str, list[float]] = {tool.name: [] for tool in tools}
    errors: dict[str, str] = {}
    for tool in interleave(tools, rounds):
        if tool.name in errors:
            continue
        target = folder / f"{tool.name}.onnx"
        outcome = workers[tool.name].call(_task("timed", tool, file, target, settings), 300)
        if outcome.kind == "ok":
            runs[tool.name].append(outcome.value["cpu_s"])
        else:
            errors[tool.name] = f"{outcome.kind}: {outcome.detail}"[:200]
    checker = Worker(single_thread_env())
    found: dict[str, Any] = {}
    for tool in tools:
        entry: dict[str, Any] = {"runs": runs[tool.name]}
        if tool.name in errors:
            entry["error"] = errors[tool.name]
        else:
            entry["cpu_s"] = statistics.median(runs[tool.name])
            entry |= _facts(checker, folder / f"{tool.name}.onnx")
        found[tool.name] = entry
    original = _facts(checker, file)
    checker.stop()
    row = {"model": file.stem, **original, "tools": found, "ratio": None}
    if len(tools) > 1:
        first, second = (found[tool.name].get("cpu_s") for tool in tools[:2])
        row["ratio"] = first / second if first and second else None
    return row


def _facts(worker: Worker, path: Path) -> dict[str, Any]:
    outcome = worker.call(Task("_timing", "facts", {"path": str(path)}), 120)
    return dict(outcome.value) if outcome.kind == "ok" else {"nodes": None, "bytes": None}


def _summary(rows: list[dict[str, Any]], tools: list[Tool]) -> dict[str, Any]:
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    both = [row for row in rows if all("cpu_s" in row["tools"][tool.name] for tool in tools)]
    summary: dict[str, Any] = {
        f"{tool.name}_cpu_s": round(sum(row["tools"][tool.name]["cpu_s"] for row in both), 3)
        for tool in tools
    }
    if ratios:
        summary |= {
            "models": len(ratios),
            "at_or_below": sum(ratio <= 1 for ratio in ratios),
            "median_ratio": round(statistics.median(ratios), 3),
            "worst_ratio": round(max(ratios), 3),
        }
    return summary


def _brief(row: dict[str, Any], tools: list[Tool]) -> str:
    found = ((tool.name, row["tools"][tool.name]) for tool in tools)
    return ", ".join(
        f"{name} {e['cpu_s']:.3f} s" if "cpu_s" in e else f"{name} {e['error']}"
        for name, e in found
    )


def _task(
    function: str, tool: Tool, source: Path, target: Path, settings: Options, **extra: Any
) -> Task:
    arguments = {
        "tool": tool.name,
        "source": str(source),
        "target": str(target),
        "options": settings.to_json(),
    }
    return Task("_timing", function, arguments | extra)


# --- scale ---------------------------------------------------------------------------------------


def time_scale(tools: list[Tool], settings: Options, options: Any, folder: Path) -> dict[str, Any]:
    """CPU seconds, peak memory and nodes left for growing synthetic graphs."""
    sizes = [int(size) for size in names(options.sizes)]
    result: dict[str, Any] = {}
    for kind in names(options.kinds):
        result[kind] = {tool.name: {"runs": []} for tool in tools}
        finished = {tool.name: True for tool in tools}
        for size in sizes:
            for tool in tools:
                if not finished[tool.name]:
                    continue
                run = _scale_run(kind, size, tool, settings, options, folder)
                result[kind][tool.name]["runs"].append(run)
                finished[tool.name] = "cpu_s" in run
                print(f"  {kind} {size} {tool.name}: {_said(run)}", flush=True)
        for tool in tools:
            done = [run for run in result[kind][tool.name]["runs"] if "cpu_s" in run]
            slope = exponent([run["nodes_in"] for run in done], [run["cpu_s"] for run in done])
            result[kind][tool.name]["exponent"] = slope
    headers = ["graph", "tool", *map(str, sizes), "exponent", "peak MB", "equal"]
    print(table(headers, _scale_rows(result, sizes), "Scale: CPU seconds / nodes left"))
    return result


def _scale_run(
    kind: str, size: int, tool: Tool, settings: Options, options: Any, folder: Path
) -> dict[str, Any]:
    from generators import write

    cache = options.cache / "scale"
    source, target = write(kind, size, cache), folder / f"{tool.name}.onnx"
    tiny = write(kind, 20, cache)
    target.unlink(missing_ok=True)
    worker = Worker(single_thread_env())
    try:
        warm = worker.call(_task("warm", tool, tiny, folder / "warm.onnx", settings), 120)
        if warm.kind != "ok":
            return {"size": size, "error": f"warm-up: {warm.detail}"}
        task = _task("timed", tool, source, target, settings, cpu_limit=options.limit)
        outcome = worker.call(task, max(60.0, options.limit * 6))
    finally:
        worker.stop()
    run: dict[str, Any] = {"size": size}
    if outcome.kind != "ok":
        return run | {"error": _reason(outcome, options.limit)}
    run |= {key: outcome.value[key] for key in ("cpu_s", "wall_s", "hwm_mb", "maxrss_mb")}
    run["warm_mb"] = warm.value["hwm_mb"]
    checker = Worker(single_thread_env())
    try:
        run["nodes_in"] = _facts(checker, source)["nodes"]
        run["nodes_out"] = _facts(checker, target)["nodes"]
        if size <= options.verify:
            arguments = {"original": str(source), "result": str(target)}
            found = checker.call(Task("_timing", "equal", arguments), 300)
            run["problem"] = (
                found.value["problem"] if found.kind == "ok" else f"{found.kind}: {found.detail}"
            )
    finally:
        checker.stop()
    return run


def _reason(outcome: Outcome, limit: float) -> str:
    return (
        f"timeout > {limit:g} s"
        if outcome.kind == "timeout"
        else f"{outcome.kind}: {outcome.detail}"[:200]
    )


def _said(run: dict[str, Any]) -> str:
    if "cpu_s" not in run:
        return str(run["error"])
    equal = (
        ""
        if "problem" not in run
        else ", equal"
        if run["problem"] is None
        else f", {run['problem']}"
    )
    left = f"{run['nodes_in']} -> {run['nodes_out']} nodes"
    return f"{run['cpu_s']:.2f} s, {left}, {run['hwm_mb']:.0f} MB{equal}"


def _scale_rows(result: dict[str, Any], sizes: list[int]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for kind, tools in result.items():
        for name, found in tools.items():
            runs = {run["size"]: run for run in found["runs"]}
            cells = []
            for size in sizes:
                run = runs.get(size)
                if run is None:
                    cells.append("-")
                    continue
                done = f"{run['cpu_s']:.2f}/{run['nodes_out']}" if "cpu_s" in run else run["error"]
                cells.append(done)
            checked = [run["problem"] for run in runs.values() if "problem" in run]
            peak = max((run["hwm_mb"] for run in runs.values() if "hwm_mb" in run), default=None)
            rows.append(
                [
                    kind,
                    name,
                    *cells,
                    found["exponent"],
                    peak,
                    all(p is None for p in checked) if checked else None,
                ]
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())

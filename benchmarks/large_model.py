"""A 2.4 GB model with external data: peak memory, CPU seconds, and equality of the result.

Writes a 12-layer GPT with past (607 million parameters), optimizes it in fresh processes with the
oracle off and at the end, runs the original alone to learn what an oracle session needs by itself,
and compares results with the original. Peak memory is ``VmHWM``; ``ru_maxrss`` and the largest
sampled anonymous part are given too, since a mapped weights file counts as resident while it is
read. Needs about 8 GB in the --cache folder and cleans up after itself.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common import (
    Child,
    environment,
    memory_mb,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)

HERE = Path(__file__).resolve()


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt's result is missing or differs."""
    args = parser(__doc__, "large_model")
    args.add_argument("--pipeline", default="O2", help="graphopt's pipeline")
    args.add_argument("--oracles", default="off,end", help="oracle modes to run graphopt with")
    args.add_argument("--peers", default="", help="other tools to run, comma-separated")
    args.add_argument("--layers", type=int, default=12)
    args.add_argument("--width", type=int, default=1920)
    args.add_argument("--vocabulary", type=int, default=19840)
    args.add_argument("--timeout", type=float, default=1800.0, help="wall seconds per process")
    args.add_argument("--keep", action="store_true", help="leave the models in the cache folder")
    args.add_argument(
        "--child", nargs=2, metavar=("WHAT", "JSON"), help="what a child process does"
    )
    options = args.parse_args(argv)
    if options.child:
        child(options.child[0], json.loads(options.child[1]))
        return 0
    from _large_gpt import Size, write
    from _tools import pick

    size = Size(layers=options.layers, width=options.width, vocabulary=options.vocabulary)
    runs = [("graphopt", mode) for mode in names(options.oracles)]
    runs += [(tool.name, "") for tool in pick(names(options.peers))]
    need = 4 * size.parameters
    options.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.cache).free
    if free < 3 * need:
        print(f"skipped: {free / 1e9:.1f} GB free below --cache, {3 * need / 1e9:.1f} GB needed")
        return 0
    with scratch(options.cache, "large-", keep=options.keep) as folder:
        source = folder / "gpt.onnx"
        start = time.perf_counter()
        write(source, size)
        total = source.stat().st_size + (folder / "gpt.onnx.data").stat().st_size
        print(f"written in {time.perf_counter() - start:.0f} s: {total} bytes", flush=True)
        common = {"source": str(source), "size": asdict(size)}
        base = measured("session", common, options.timeout)
        print(f"  session alone: {_peak(base):.0f} MB", flush=True)
        rows = []
        for tool, oracle in runs:
            out = folder / f"{tool}-{oracle or 'default'}"
            out.mkdir()
            plan = common | {"tool": tool, "oracle": oracle or "off", "pipeline": options.pipeline}
            row = {"tool": tool, "oracle": oracle} | judge(plan, out / "out.onnx", options.timeout)
            rows.append(row)
            shutil.rmtree(out)
            print(
                f"  {tool} {oracle}: {row.get('error') or row.get('problem') or 'equal'}",
                flush=True,
            )
    print(report(rows, _peak(base)))
    payload = {
        "environment": environment([tool.package for tool in pick([r[0] for r in runs])]),
        "model": asdict(size) | {"parameters": size.parameters, "bytes": total},
        "session_alone": base,
        "runs": rows,
    }
    write_json(options.json, payload)
    ours = [row for row in rows if row["tool"] == "graphopt"]
    return int(any("error" in row or row.get("problem") for row in ours))


def measured(what: str, plan: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run a child process of this script and take its measurements."""
    done = run_child([sys.executable, HERE, "--child", what, json.dumps(plan)], timeout=timeout)
    figures = {"wall_s": done.wall, "process_cpu_s": done.cpu, "maxrss_mb": done.max_rss}
    figures |= {f"sampled_{key}_mb": value for key, value in done.peaks.items()}
    return figures | done.last_json() | _failure(done)


def _failure(done: Child) -> dict[str, str]:
    return {"error": done.reason()} if done.code or done.timed_out else {}


def _peak(figures: dict[str, Any]) -> float:
    return float(figures.get("hwm_mb") or figures.get("sampled_VmHWM_mb") or figures["maxrss_mb"])


def judge(plan: dict[str, Any], target: Path, timeout: float) -> dict[str, Any]:
    """Optimize in one process, compare in another."""
    row = measured("optimize", plan | {"target": str(target)}, timeout)
    row["peak_mb"] = _peak(row)
    if "error" in row:
        return row
    checked = measured("compare", plan | {"target": str(target)}, timeout)
    row["problem"] = checked.get("error") or checked.get("problem")
    return row | {key: checked.get(key) for key in ("nodes_before", "nodes_after", "bytes_after")}


def child(what: str, plan: dict[str, Any]) -> None:
    """What the child processes do; prints one JSON line."""
    result = {"session": _session, "optimize": _optimize, "compare": _compare}[what](plan)
    print(json.dumps(result | {"hwm_mb": memory_mb().get("VmHWM")}))


def _settings(plan: dict[str, Any]) -> list[dict[str, Any]]:
    from _large_gpt import Size, feeds

    size = Size(**plan["size"])
    return [feeds(size, 1, 4, 3), feeds(size, 2, 3, 0)]


def _session(plan: dict[str, Any]) -> dict[str, Any]:
    """One plain session on the original, run on small inputs: the least an oracle can need."""
    from _equality import ort_runner

    run = ort_runner(Path(plan["source"]))
    opened = memory_mb().get("VmHWM")
    for feeds in _settings(plan):
        run(feeds)
    return {"opened_hwm_mb": opened}


def _optimize(plan: dict[str, Any]) -> dict[str, Any]:
    from _tools import TOOLS, Options

    tool = TOOLS[plan["tool"]]
    tool.preload()
    imported = memory_mb().get("VmHWM")
    options = Options(pipeline=plan["pipeline"], oracle=plan["oracle"], external=True)
    cpu, wall = time.process_time(), time.perf_counter()
    notes = tool.run(Path(plan["source"]), Path(plan["target"]), options)
    return {
        "cpu_s": time.process_time() - cpu,
        "optimize_wall_s": time.perf_counter() - wall,
        "imported_hwm_mb": imported,
        "notes": notes,
    }


def _compare(plan: dict[str, Any]) -> dict[str, Any]:
    from _equality import equal_on
    from _models import file_bytes, load, node_count

    source, target = Path(plan["source"]), Path(plan["target"])
    return {
        "problem": equal_on(source, target, _settings(plan)),
        "nodes_before": node_count(load(source)),
        "nodes_after": node_count(load(target)),
        "bytes_after": file_bytes(target),
    }


def report(rows: list[dict[str, Any]], session_mb: float) -> str:
    """One line per run."""
    headers = ["tool", "oracle", "result", "nodes", "after", "wall s", "CPU s", "peak MB",
               "anonymous MB", "beyond the session MB"]  # fmt: skip
    body = [
        [
            row["tool"], row["oracle"], row.get("error") or row.get("problem") or "equal",
            row.get("nodes_before"), row.get("nodes_after"), row["wall_s"],
            row.get("cpu_s") or row["process_cpu_s"], row["peak_mb"],
            row.get("sampled_RssAnon_mb"), row["peak_mb"] - session_mb,
        ]
        for row in rows
    ]  # fmt: skip
    title = f"Large model (a session on the original alone peaks at {session_mb:.0f} MB)"
    return table(headers, body, title)


if __name__ == "__main__":
    sys.exit(main())

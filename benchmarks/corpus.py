"""All ONNX backend node tests and the onnx wheel's models through an optimizer, each judged.

A worker process handles each model, so that a native crash is counted and not fatal. A model's
class is the first of these that applies:

  crash              the optimizer (or ONNX Runtime on its result) ended the process
  timeout            it took longer than --timeout seconds
  raised             it raised a Python exception
  invalid_load       ONNX Runtime loads the original but not the result
  run_fail           the original runs, the result loads and fails to run
  wrong              outputs differ: on the test's own data at the test's own tolerance, or from the
                     original's on a second setting (other free dims where there are any, other
                     values of the same shapes otherwise)
  changed_interface  names, order, types or dims of inputs or outputs differ (inputs that an
                     initializer backs are left out for IR version 3)
  checker_only       runs and is equal, but onnx.checker accepted the original and rejects the
                     result
  grew               all is well, but the file grew by more than --slack bytes
  ok

Models that ONNX Runtime cannot run are compared with onnx's reference evaluator instead. The column
"hard" has the first seven classes in percent of all models; "strict" the same among the models that
onnx.checker accepts and ONNX Runtime runs deterministically: the fair figure for tools that rely on
either. Nearly all these models have fixed dims; --free-dims makes every dim of an input symbolic
before the tool sees it, and the second setting then has other dims.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from _common import environment, names, parser, scratch, single_thread_env, table, write_json
from _corpus_cases import GROUPS, Case, collect
from _pool import Outcome, Task, run_all
from _tools import Options, Tool, pick

CLASSES = (
    "crash", "timeout", "raised", "invalid_load", "run_fail", "wrong", "changed_interface",
    "checker_only", "grew", "ok", "original_fails",
)  # fmt: skip
HARD = CLASSES[:7]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where the first tool has a hard failure."""
    args = parser(__doc__, "corpus")
    args.add_argument(
        "--tool",
        default="graphopt",
        help="comma-separated tools; the first one sets the exit status",
    )
    args.add_argument("--pipeline", default="O2", help="graphopt's pipeline")
    args.add_argument(
        "--oracle", default="off", choices=("off", "end", "each"), help="graphopt's oracle mode"
    )
    args.add_argument("--groups", default=",".join(GROUPS), help="comma-separated groups")
    args.add_argument(
        "--only", default="", help="regular expression the test's name has to contain"
    )
    args.add_argument("--limit", type=int, default=0, help="this many models, spread over the list")
    args.add_argument(
        "--free-dims", action="store_true", help="make the dims of all inputs symbolic first"
    )
    args.add_argument("--workers", type=int, default=2)
    args.add_argument("--timeout", type=float, default=120.0, help="wall seconds per model")
    args.add_argument(
        "--slack", type=int, default=1024, help="bytes a file may grow before it is listed as grown"
    )
    args.add_argument(
        "--show",
        type=int,
        default=0,
        help="print at most this many failing models per tool (0: all)",
    )
    options = args.parse_args(argv)
    tools = pick(names(options.tool))
    cases = collect(options.cache, names(options.groups), options.only, options.limit)
    print(f"{len(cases)} models: {dict(Counter(case.group for case in cases))}", flush=True)
    settings = Options(pipeline=options.pipeline, oracle=options.oracle)
    payload: dict[str, Any] = {
        "environment": environment([tool.package for tool in tools]),
        "models": dict(Counter(case.group for case in cases)),
        "options": settings.to_json() | {"free_dims": options.free_dims},
        "tools": {},
    }
    for tool in tools:
        rows = run_tool(tool, cases, settings, options)
        payload["tools"][tool.name] = summarize(rows)
        print(failures_text(tool, rows, options.show), flush=True)
    print(overview(payload["tools"]))
    write_json(options.json, payload)
    return 1 if payload["tools"][tools[0].name]["hard_failures"] else 0


def run_tool(
    tool: Tool, cases: list[Case], settings: Options, options: Any
) -> list[dict[str, Any]]:
    """Put every case through one tool; returns one row per case."""
    start = time.monotonic()

    def progress(count: int, task: Task, outcome: Outcome) -> None:
        if count % 100 == 0:
            print(
                f"  {tool.name}: {count}/{len(cases)} after {time.monotonic() - start:.0f} s",
                flush=True,
            )

    with scratch(options.cache, "corpus-") as folder:
        tasks = [
            Task(
                "_corpus_check",
                "check",
                {
                    "case": case.to_json(),
                    "tool": tool.name,
                    "options": settings.to_json(),
                    "folder": str(folder),
                    "slack": options.slack,
                    "free_dims": options.free_dims,
                },
                label=case.name,
            )
            for case in cases
        ]
        outcomes = run_all(
            tasks,
            env=single_thread_env(),
            workers=options.workers,
            timeout=options.timeout,
            done=progress,
        )
    return [
        {"name": case.name, "group": case.group} | _row(outcome)
        for case, outcome in zip(cases, outcomes, strict=True)
    ]


def _row(outcome: Outcome) -> dict[str, Any]:
    if outcome.kind == "ok":
        return dict(outcome.value)
    if outcome.stage == "original":  # not the tool's doing
        return {"class": "original_fails", "reason": f"{outcome.kind}: {outcome.detail}"}
    if (
        outcome.kind == "raised"
    ):  # tools' exceptions are caught in the worker: this one is about the result
        return {"class": "invalid_load", "reason": f"{outcome.stage}: {outcome.detail}"}
    return {"class": outcome.kind, "reason": f"{outcome.stage}: {outcome.detail}"}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by class and group, coverage of the comparison, and every model that is not ok."""
    classes = Counter(row["class"] for row in rows)
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault(row["group"], Counter())[row["class"]] += 1
    hard = sum(classes[name] for name in HARD)
    sized = [row for row in rows if "bytes_after" in row]
    strict = [row for row in rows if row.get("strict") or row["class"] in ("crash", "timeout")]
    strict_hard = sum(row["class"] in HARD for row in strict)
    return {
        "models": len(rows),
        "classes": {name: classes[name] for name in CLASSES},
        "hard_failures": hard,
        "hard_percent": 100.0 * hard / max(1, len(rows)),
        "strict_models": len(strict),
        "strict_hard_failures": strict_hard,
        "strict_hard_percent": 100.0 * strict_hard / max(1, len(strict)),
        "groups": {name: dict(counts) for name, counts in groups.items()},
        "compared_with": dict(Counter(row.get("engine") or "nothing" for row in rows)),
        "second_setting": sum(bool(row.get("second")) for row in rows),
        "second_dims": sum(bool(row.get("resized")) for row in rows),
        "nondeterministic": sum(not row.get("deterministic", True) for row in rows),
        "nodes": [sum(row[f"nodes_{side}"] for row in sized) for side in ("before", "after")],
        "bytes": [sum(row[f"bytes_{side}"] for row in sized) for side in ("before", "after")],
        "more_nodes": sum(row["nodes_after"] > row["nodes_before"] for row in sized),
        "grew_any": sum(row["bytes_after"] > row["bytes_before"] for row in sized),
        "grew_1.5x": sum(row["bytes_after"] > 1.5 * row["bytes_before"] for row in sized),
        "cpu_s": sum(row.get("cpu_s", 0.0) for row in rows),
        "reverted": {
            row["name"]: r for row in rows if (r := (row.get("notes") or {}).get("reverted"))
        },
        "failures": [
            {key: row[key] for key in ("name", "group", "class", "reason")}
            for row in rows
            if row["class"] != "ok"
        ],
    }


def failures_text(tool: Tool, rows: list[dict[str, Any]], show: int) -> str:
    """The models of one tool that are not ok, worst class first."""
    bad = sorted((r for r in rows if r["class"] != "ok"), key=lambda r: CLASSES.index(r["class"]))
    shown = bad[:show] if show else bad
    lines = [f"\n{tool.name}: {len(bad)} of {len(rows)} models not ok"]
    lines += [
        f"  {row['class']:<17} {row['group']}/{row['name']}: {row['reason'][:200]}" for row in shown
    ]
    if len(shown) < len(bad):
        lines.append(f"  ... {len(bad) - len(shown)} more in the JSON file")
    return "\n".join(lines)


def overview(tools: dict[str, dict[str, Any]]) -> str:
    """One line per tool: classes, hard failures, growth, time."""
    used = [c for c in CLASSES if any(t["classes"][c] for t in tools.values()) or c in HARD]
    rows = [
        [
            name,
            found["models"],
            *(found["classes"][c] for c in used),
            f"{found['hard_percent']:.2f}%",
            f"{found['strict_hard_percent']:.2f}%",
            f"{found['nodes'][0]}->{found['nodes'][1]}",
            found["grew_1.5x"],
            found["cpu_s"],
        ]
        for name, found in tools.items()
    ]
    first = next(iter(tools.values()))
    text = table(
        ["tool", "models", *used, "hard", "strict", "nodes", ">1.5x bytes", "CPU s"], rows, "Corpus"
    )
    return (
        f"{text}\ncompared with: {first['compared_with']}; "
        f"second setting for {first['second_setting']} models, "
        f"with other dims for {first['second_dims']}; nondeterministic: {first['nondeterministic']}"
    )


if __name__ == "__main__":
    sys.exit(main())

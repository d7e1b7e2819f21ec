"""Random models through random pipelines under the oracle, and wrong passes it has to catch.

Every model goes through a random pipeline with the oracle after each pass, on two settings of the
dynamic dims; then original and result are compared once more by code that shares nothing with the
oracle, on other inputs. A pass undone for its numbers, its structure or an exception is a mismatch,
and so is any difference the second comparison finds. The wrong passes of wrong_rules.py run before
right ones: each has to be named by the oracle (after each pass, and at the end), by the exception,
and, down to its rule, by bisecting.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from _common import environment, names, parser, single_thread_env, table, write_json
from _pool import Task, Worker, run_all


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where there is a mismatch or a wrong pass is not caught."""
    args = parser(__doc__, "fuzz")
    args.add_argument("--models", type=int, default=1000, help="how many random models")
    args.add_argument("--seed", type=int, default=0, help="first seed")
    args.add_argument("--exclude", default="onnxsim", help="comma-separated passes to leave out")
    args.add_argument("--workers", type=int, default=2)
    args.add_argument("--batch", type=int, default=10, help="models per task")
    args.add_argument("--timeout", type=float, default=600.0, help="wall seconds per task")
    options = args.parse_args(argv)
    wrong = wrong_passes(options.timeout)
    rows, problems, used = random_models(options) if options.models else ([], [], [])
    failures = [row for row in rows if row["mismatch"] or row["own"]["problem"]]
    for row in failures:
        print(f"  MISMATCH seed {row['seed']}, {row['pipeline']}")
        for item in row["mismatch"]:
            print(f"    {item['pass']}: {item['reason']}")
        if row["own"]["problem"]:
            print(f"    own comparison: {row['own']['problem']}")
    for problem in problems:
        print(f"  {problem}")
    summary = {
        "models": len(rows),
        "mismatches": len(failures),
        "task_failures": len(problems),
        "changed": sum(row["changed"] for row in rows),
        "oracle": dict(Counter(row["oracle"] for row in rows)),
        "two_settings": sum(row["settings"] > 1 for row in rows),
        "own_comparisons": sum(row["own"]["settings"] for row in rows),
        "with_subgraphs": sum(row["subgraphs"] for row in rows),
        "nodes_before": sum(row["nodes"][0] for row in rows),
        "nodes_after": sum(row["nodes"][1] for row in rows),
        "passes": used,
    }
    print(table(["random models", "value"], [[k, str(v)] for k, v in summary.items()]))
    body = [
        [
            row["pass"],
            *(
                row.get(k, {}).get("caught")
                for k in ("oracle_each", "oracle_end", "raises", "bisect")
            ),
            row.get("bisect", {}).get("action") or row.get("error"),
        ]
        for row in wrong
    ]
    headers = ["wrong pass", "oracle each", "oracle end", "raises", "bisect", "bisect says"]
    print(table(headers, body, "Wrong passes caught and named"))
    caught = sum(bool(row.get("caught")) for row in wrong)
    print(f"{caught} of {len(wrong)} caught and named")
    payload = {
        "environment": environment(),
        "summary": summary,
        "failures": failures,
        "task_failures": problems,
        "wrong_passes": wrong,
    }
    write_json(options.json, payload)
    return int(bool(failures or problems) or caught < len(wrong))


def wrong_passes(timeout: float) -> list[dict[str, Any]]:
    """Run every wrong pass, in one worker."""
    from wrong_rules import WRONG

    tasks = [Task("_fuzz_check", "wrong", {"index": i}) for i in range(len(WRONG))]
    outcomes = run_all(tasks, env=single_thread_env(), timeout=timeout)
    rows = []
    for case, outcome in zip(WRONG, outcomes, strict=True):
        failed = {"pass": case.made.name, "error": f"{outcome.kind}: {outcome.detail}"}
        rows.append(outcome.value if outcome.kind == "ok" else failed)
    return rows


def random_models(options: Any) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Run all seeds; returns rows, tasks that failed as a whole, and the passes used."""
    first = Worker(single_thread_env())
    single = first.call(Task("_fuzz_check", "passes", {"exclude": names(options.exclude)}), 120)
    named = first.call(Task("_fuzz_check", "pipelines", {}), 120)
    first.stop()
    for outcome in (single, named):
        if outcome.kind != "ok":
            raise SystemExit(f"the passes cannot be listed: {outcome.detail}")
    if not single.value:
        raise SystemExit("no passes are installed")
    seeds = list(range(options.seed, options.seed + options.models))
    tasks = [
        Task(
            "_fuzz_check",
            "run",
            {
                "seeds": seeds[i : i + options.batch],
                "single": single.value,
                "named": named.value,
            },
        )
        for i in range(0, len(seeds), options.batch)
    ]

    def progress(count: int, task: Task, outcome: Any) -> None:
        if count % 10 == 0:
            print(f"  {count} of {len(tasks)} batches", flush=True)

    outcomes = run_all(
        tasks,
        env=single_thread_env(),
        workers=options.workers,
        timeout=options.timeout,
        done=progress,
    )
    rows = [row for outcome in outcomes if outcome.kind == "ok" for row in outcome.value]
    problems = [
        f"{outcome.kind} at {outcome.stage or 'the start'}: {outcome.detail}"
        for outcome in outcomes
        if outcome.kind != "ok"
    ]
    return rows, problems, single.value


if __name__ == "__main__":
    sys.exit(main())

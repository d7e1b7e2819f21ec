"""Random models through random pipelines, judged twice; runs inside a worker process."""

from __future__ import annotations

import random
from typing import Any

import onnx

# Reasons why the manager undoes a pass although its numbers are right.
_GATE = ("would rise", "would grow")


def passes(exclude: list[str]) -> list[str]:
    """Names of the installed passes that promise to keep the numbers and need no options.

    Args:
        exclude: Names to leave out.
    """
    import graphopt

    registry = graphopt.default_registry()
    found = []
    for name in registry.names():
        if name in exclude or registry.get(name).exactness is graphopt.Exactness.LOSSY:
            continue
        try:
            graphopt.parse(name)
        except graphopt.PipelineSyntaxError:  # it has an option without a default
            continue
        found.append(name)
    return found


def pipelines() -> list[str]:
    """Names of the installed pipelines of lossless passes."""
    import graphopt

    return [
        name
        for name in graphopt.default_registry().pipelines()
        if graphopt.parse(name).promise is not graphopt.Exactness.LOSSY
    ]


def random_pipeline(rng: random.Random, single: list[str], named: list[str]) -> str:
    """Pipeline text: one to eight passes in any order, now and then repeated, nested or named.

    Args:
        rng: Where the choices come from.
        single: Names of passes.
        named: Names of pipelines.
    """
    parts: list[str] = []
    for _ in range(rng.randint(1, 8)):
        roll = rng.random()
        if roll < 0.1 and named:
            parts.append(rng.choice(named))
        elif roll < 0.25:
            some = ",".join(rng.choice(single) for _ in range(rng.randint(1, 4)))
            parts.append(f"fixpoint{{max={rng.randint(2, 4)}}}({some})")
        else:
            parts.append(rng.choice(single))
    return ",".join(parts)


def run(seeds: list[int], single: list[str], named: list[str]) -> list[dict[str, Any]]:
    """Put random models through random pipelines, the oracle after each pass.

    Args:
        seeds: One model and one pipeline each.
        single: Names of passes to choose from.
        named: Names of pipelines to choose from.

    Returns:
        A row per seed; ``mismatch`` lists passes that were undone for their numbers, their
        structure or an exception, ``own`` is what an independent comparison says.
    """
    from _pool import stage

    import graphopt
    from graphopt.testing import random_model

    rows = []
    for seed in seeds:
        rng = random.Random(seed)
        text = random_pipeline(rng, single, named)
        stage(f"seed {seed}: {text}")
        model = random_model(seed)
        manager = graphopt.PassManager(
            text, oracle="each", objective=None, on_mismatch="revert", seeds=(seed,)
        )
        result = manager.run(model)
        report = result.report
        mismatch = [
            {"pass": record.text, "reason": record.reason, "rewrites": record.rewrites}
            for record in report.reverted
            if not any(word in (record.reason or "") for word in _GATE)
        ]
        before, after = (graphopt.ir.to_bytes(m) for m in (model, result.model))
        rows.append(
            {
                "seed": seed,
                "pipeline": text,
                "mismatch": mismatch,
                "oracle": report.oracle.get("verdict"),
                "settings": len((report.oracle.get("feeds") or {}).get("dims", [])),
                "changed": report.changed,
                "nodes": [report.before.nodes, report.after.nodes],
                "own": compare(before, after),
                "subgraphs": any(a.HasField("g") for a in _attributes(before)),
            }
        )
    return rows


def _attributes(data: bytes) -> list[onnx.AttributeProto]:
    model = onnx.load_from_string(data)
    return [attribute for node in model.graph.node for attribute in node.attribute]


def compare(before: bytes, after: bytes) -> dict[str, Any]:
    """Compare two models without graphopt: own inputs, two settings of the free dims.

    Args:
        before: The original, serialized.
        after: The result, serialized.

    Returns:
        ``settings`` compared, and ``problem`` (None where they agree).
    """
    from _equality import difference, ort_runner, random_feeds
    from _models import interface_change

    model = onnx.load_from_string(before)
    change = interface_change(model, onnx.load_from_string(after))
    if change:
        return {"settings": 0, "problem": change}
    run_before = ort_runner(before)
    compared = 0
    run_after = None
    for seed, free in ((1, 2), (2, 5)):
        feeds = random_feeds(model, seed, sizes={}, free=free)
        try:
            expected = run_before(feeds)
        except Exception:  # these made-up inputs do not suit the original
            continue
        try:
            run_after = run_after or ort_runner(after)
            found = difference(expected, run_after(feeds))
        except Exception as error:  # the result fails where the original ran
            found = f"does not run: {str(error)[:200]}"
        if found:
            return {"settings": compared, "problem": found}
        compared += 1
    return {"settings": compared, "problem": None}


def wrong(index: int) -> dict[str, Any]:
    """Let one of the deliberately wrong passes loose, right ones after it.

    Args:
        index: Which of ``wrong_rules.WRONG``.

    Returns:
        For each way to look: whether the pass was caught, named, and the result left right.
    """
    from wrong_rules import WRONG

    import graphopt

    case = WRONG[index]
    bad = case.made()
    model = graphopt.load(case.model())
    row: dict[str, Any] = {"pass": bad.name}
    good = graphopt.parse("cleanup") if "cleanup" in pipelines() else None
    pipeline = graphopt.Pipeline(passes=(bad,) if good is None else (bad, good))
    for mode in ("each", "end"):
        manager = graphopt.PassManager(pipeline, oracle=mode, objective=None)
        result = manager.run(model)
        guilty = [record.name for record in result.report.reverted]
        own = compare(*(graphopt.ir.to_bytes(m) for m in (model, result.model)))
        row[f"oracle_{mode}"] = {
            "named": guilty,
            "caught": guilty == [bad.name] and own["problem"] is None and own["settings"] > 0,
            "reason": next((r.reason for r in result.report.reverted), None),
        }
    try:
        graphopt.PassManager(pipeline, oracle="each", objective=None, on_mismatch="raise").run(
            model
        )
        row["raises"] = {"caught": False, "reason": "nothing was raised"}
    except graphopt.GraphOptError as error:
        row["raises"] = {"caught": bad.name in str(error), "reason": str(error)[:300]}
    found = graphopt.bisect(model, pipeline)
    row["bisect"] = {
        "caught": found.action is not None and found.action.startswith(f"{case.rule} at"),
        "action": found.action,
        "runs": found.runs,
    }
    row["caught"] = all(row[k]["caught"] for k in ("oracle_each", "oracle_end", "raises", "bisect"))
    return row

"""Judge optimized versions of a real model by its task; runs inside a worker process."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import interleave
from _equality import difference, ort_runner, session, sqnr_db
from _models import file_bytes, interface_change, load, node_count
from _tasks import JOBS


def check(
    model: str, data: str, results: dict[str, str], samples: int, latency_s: float
) -> dict[str, Any]:
    """Compare optimized versions with the original.

    Args:
        model: Stem of the model file.
        data: Folder of the shared data.
        results: Optimized files by tool.
        samples: At most so many samples; 0 takes all.
        latency_s: Seconds to spend on timing each version; 0 skips it.

    Returns:
        Facts on the original, and by tool: equality, task figures, size, latency.
    """
    job = next(job for job in JOBS if job.model == model)
    root = Path(data)
    source = root / "models" / f"{model}.onnx"
    expected = job.outputs(root, ort_runner(source), samples)
    before = load(source)
    found: dict[str, Any] = {
        "model": model,
        "nodes": node_count(before),
        "bytes": file_bytes(source),
        "metric": job.metric(root, expected),
        "tools": {},
    }
    for tool, path in results.items():
        target = Path(path)
        after = load(target)
        entry: dict[str, Any] = {"nodes": node_count(after), "bytes": file_bytes(target)}
        entry["interface"] = interface_change(before, after)
        try:
            got = job.outputs(root, ort_runner(target), samples)
        except Exception as error:  # a result that does not run is a row
            found["tools"][tool] = entry | {"error": str(error)[:300]}
            continue
        flat_a = [value for outputs in expected for value in outputs]
        flat_b = [value for outputs in got for value in outputs]
        entry |= {
            "problem": difference(flat_a, flat_b),
            "sqnr_db": sqnr_db(flat_a, flat_b),
            "bits_equal": all(np.array_equal(a, b) for a, b in zip(flat_a, flat_b, strict=True)),
            "metric": job.metric(root, got),
            "agreement": job.agree(expected, got),
        }
        found["tools"][tool] = entry
    if latency_s > 0:
        running = {t: p for t, p in results.items() if "error" not in found["tools"][t]}
        times = latency({"original": str(source), **running}, job.example(root), latency_s)
        found["latency_ms"] = times["original"]
        for tool in running:
            found["tools"][tool]["latency_ms"] = times[tool]
            found["tools"][tool]["latency_ratio"] = times[tool] / times["original"]
    return found


def latency(files: dict[str, str], feeds: dict[str, Any], seconds: float) -> dict[str, float]:
    """Medians in ms of interleaved single runs, ONNX Runtime's default optimizations, one thread.

    Args:
        files: Model files by name.
        feeds: What to run them on.
        seconds: About how long to time each.
    """
    sessions = {name: session(Path(path), optimize=True) for name, path in files.items()}
    start = time.perf_counter()
    for opened in sessions.values():
        for _ in range(3):
            opened.run(None, feeds)
    once = (time.perf_counter() - start) / (3 * len(sessions))
    rounds = int(min(5000, max(15, seconds / max(once, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for name in interleave(list(sessions), rounds):
        start = time.perf_counter()
        sessions[name].run(None, feeds)
        times[name].append(time.perf_counter() - start)
    return {name: 1000.0 * statistics.median(values) for name, values in times.items()}

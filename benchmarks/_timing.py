"""Timing and checking calls that run inside worker processes."""

from __future__ import annotations

import gc
import resource
import time
from pathlib import Path
from typing import Any

from _common import memory_mb
from _pool import limit_cpu, stage
from _tools import TOOLS, Options


def warm(tool: str, source: str, target: str, options: dict[str, Any]) -> dict[str, float]:
    """Import a tool and run it once, so that lazy imports do not count later.

    Returns:
        ``import_cpu_s``, ``first_cpu_s``, ``hwm_mb`` (peak resident memory so far).
    """
    start = time.process_time()
    TOOLS[tool].preload()
    imported = time.process_time()
    TOOLS[tool].run(Path(source), Path(target), Options(**options))
    return {
        "import_cpu_s": imported - start,
        "first_cpu_s": time.process_time() - imported,
        "hwm_mb": memory_mb().get("VmHWM", 0.0),
    }


def timed(
    tool: str, source: str, target: str, options: dict[str, Any], cpu_limit: float = 0.0
) -> dict[str, Any]:
    """Load, optimize and save once.

    Args:
        tool: Name of the tool.
        source: Model file.
        target: Where the result goes.
        options: ``Options`` as plain data.
        cpu_limit: CPU seconds after which the kernel ends the process; 0 sets no limit.

    Returns:
        ``cpu_s`` and ``wall_s`` of the call, ``hwm_mb`` and ``maxrss_mb`` of the process, and the
        tool's notes.
    """
    limit_cpu(cpu_limit)
    stage("optimize")
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    notes = TOOLS[tool].run(Path(source), Path(target), Options(**options))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "hwm_mb": memory_mb().get("VmHWM", 0.0),
        "maxrss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        "notes": notes,
    }


def facts(path: str) -> dict[str, int]:
    """Node count and bytes of a model file with its data files."""
    from _models import file_bytes, load, node_count

    model = load(Path(path))
    return {"nodes": node_count(model), "bytes": file_bytes(Path(path), model)}


def equal(original: str, result: str) -> dict[str, str | None]:
    """Compare two models at two settings of the free dims; ``problem`` is None: they agree."""
    from _equality import equal_on, random_feeds
    from _models import load

    model = load(Path(original))
    settings = [random_feeds(model, seed, sizes={}, free=free) for seed, free in ((0, 2), (1, 5))]
    return {"problem": equal_on(Path(original), Path(result), settings)}

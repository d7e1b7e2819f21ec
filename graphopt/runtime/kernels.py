"""What ONNX Runtime's kernels take, node by node, measured while the whole model runs.

A node measured alone pays for conversions of layout and type that its neighbours would spare it.
Inside of the model it does not, and what two nodes cost that became one kernel shows, too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from graphopt.runtime.session import ModelSource, open_session
from graphopt.runtime.values import Feeds

__all__ = ["KernelTime", "kernel_times"]

_SUFFIX = "_kernel_time"


class KernelTime(NamedTuple):
    """Time of one kernel.

    Attributes:
        node: Name of the node that ONNX Runtime runs; its optimizer names a fused node after one of
            the nodes or values that it took the place of, often with a suffix.
        op: Operator.
        seconds: Mean over the runs but the fastest and the slowest tenth, since times come in whole
            microseconds.
    """

    node: str
    op: str
    seconds: float


def kernel_times(
    model: ModelSource,
    feeds: Feeds,
    *,
    threads: int = 1,
    providers: Sequence[str | tuple[str, dict[str, Any]]] = ("CPUExecutionProvider",),
    config: Mapping[str, str] | None = None,
    seconds: float = 0.5,
    runs: tuple[int, int] = (10, 200),
    optimize: bool = True,
) -> list[KernelTime]:
    """Measure every kernel of a model.

    Args:
        model: The model. Nodes should have names that tell them apart.
        feeds: Inputs.
        threads: Threads within an operator.
        providers: Execution providers, preferred first.
        config: Session configuration entries.
        seconds: Roughly how long to measure.
        runs: Least and largest number of runs.
        optimize: Let ONNX Runtime optimize the model, as its users run it.

    Returns:
        Times in the order of execution; nodes of subgraphs are part of the node that owns these.

    Raises:
        SessionError: ONNX Runtime does not load or run the model.
    """
    with (
        tempfile.TemporaryDirectory(prefix="graphopt-") as folder,
        open_session(
            model,
            optimize=optimize,
            threads=threads,
            providers=providers,
            config=config,
            profile=str(Path(folder) / "kernels"),
        ) as session,
    ):
        session.run(feeds)
        began = time.perf_counter()
        session.run(feeds)
        once = max(time.perf_counter() - began, 1e-6)
        for _ in range(min(max(int(seconds / once), runs[0]), runs[1])):
            session.run(feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            found[name, event["args"]["op_name"]].append(event["dur"] * 1e-6)
    return [KernelTime(n, op, _middle(times)) for (n, op), times in found.items()]


def _middle(times: list[float]) -> float:
    tenth = len(times) // 10
    return statistics.fmean(sorted(times)[tenth : len(times) - tenth])

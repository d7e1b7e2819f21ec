"""Calibration on Dask with a worker killed in the middle: the result is the same, bit for bit.

Histograms, moving averages and channel statistics of ResNet-56 (or of a small model of the
repository, without the shared data) are collected serially, in threads, in processes and on a Dask
cluster of two workers; then again on Dask and in processes while one worker is killed (SIGKILL)
halfway through the data. Exits with 1 where any digest differs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from _common import REPO, data_dir, environment, parser, table, write_json

BATCH = 8


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a result differs."""
    args = parser(__doc__, "dask_kill")
    args.add_argument("--images", type=int, default=192)
    args.add_argument("--kills", type=int, default=1, help="runs on Dask with a kill")
    options = args.parse_args(argv)
    import graphopt

    shared = data_dir() / "models" / "resnet56.onnx"
    path = shared if shared.exists() else REPO / "models" / "digits_resnet.onnx"
    model = graphopt.optimize(path, oracle="off").model
    runs = [("serial", False), ("threads:2", False), ("processes:2", False),
            ("dask:local:2", False), ("processes:2", True)]  # fmt: skip
    runs += [("dask:local:2", True)] * options.kills
    rows = []
    for spec, kill in runs:
        rows.append(run(model, spec, options.images, kill=kill))
        print(f"  {rows[-1]}", flush=True)
    same = len({row["digest"] for row in rows}) == 1
    body = [[r["executor"], r["killed"], r["seconds"], r["digest"][:16]] for r in rows]
    print(table(["executor", "killed", "wall s", "digest"], body, f"{path.name}, 2 workers"))
    print("all results are the same" if same else "results differ")
    write_json(options.json, {
        "environment": environment(["dask", "distributed"]), "model": path.name,
        "images": options.images, "runs": rows, "same": same,
    })  # fmt: skip
    missed = [r for r in rows if r["wanted"] and not r["killed"]]
    if missed:
        print("a worker that was to be killed was not")
    return int(not same or bool(missed))


class Data:
    """Batches made up by number; something may happen halfway."""

    def __init__(self, model: Any, count: int, halfway: Any) -> None:
        from graphopt import ir

        value = ir.inputs(model)[0]
        self.name = value.name
        self.shape = (BATCH, *[d for d in (ir.dims(value) or ())[1:] if isinstance(d, int)])
        self.count, self.halfway = count, halfway

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        for i in range(self.count):
            if i == self.count // 2:
                self.halfway()
            rng = np.random.default_rng(i)
            yield {self.name: rng.standard_normal(self.shape, np.float32)}


def run(model: Any, spec: str, images: int, *, kill: bool) -> dict[str, Any]:
    """Collect once and digest all that was observed."""
    from graphopt.calibration import (
        ChannelStats,
        Histogram,
        MovingAverage,
        collect,
        from_batches,
        open_executor,
    )

    watch = {
        node.outputs[0].name: [Histogram(), MovingAverage(), ChannelStats(1)]
        for node in model.graph
        if node.op_type in ("Conv", "Relu", "Add")
    }
    killed: list[int] = []
    with open_executor(spec) as executor:

        def halfway() -> None:
            if kill:
                # A moment later, when what was submitted is being worked on.
                victim = pids(executor)[0]
                threading.Timer(0.2, murder, (victim, killed)).start()

        data = from_batches(Data(model, images // BATCH, halfway), model)
        start = time.perf_counter()
        seen = collect(model, watch, data, executor=executor)
        seconds = time.perf_counter() - start
    return {
        "executor": spec, "wanted": kill, "killed": len(killed), "seconds": seconds,
        "digest": digest(seen),
    }  # fmt: skip


def murder(pid: int, killed: list[int]) -> None:
    """Kill a process and write it down."""
    os.kill(pid, signal.SIGKILL)
    killed.append(pid)


def pids(executor: Any) -> list[int]:
    """Processes of the workers of an executor."""
    client = getattr(executor, "_client", None)
    if client is not None:
        return sorted(client.run(os.getpid).values())
    return sorted(executor._pool._processes)


def digest(seen: dict[str, Any]) -> str:
    """Digest of every attribute of every observer."""
    import numpy as np

    made = hashlib.sha256()
    for name, observers in seen.items():
        for observer in observers:
            for key, value in sorted(vars(observer).items()):
                made.update(f"{name} {type(observer).__name__} {key}\n".encode())
                made.update(np.ascontiguousarray(value).tobytes())
    return made.hexdigest()


if __name__ == "__main__":
    sys.exit(main())

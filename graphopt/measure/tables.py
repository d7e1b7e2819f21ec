"""Measured times that are kept from run to run, and what they hold for."""

from __future__ import annotations

import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.runtime import Feeds, ort
from graphopt.targets import Target

__all__ = ["LatencyTable", "machine_name", "shaped"]


class LatencyTable:
    """Measured seconds by shape: operator, attributes and the shapes it works on.

    Args:
        path: File that keeps the table from run to run, or None. One that cannot be read is
            ignored, since all of it can be measured again.
        machine: What the times hold for; other entries of the file are kept.
    """

    def __init__(self, path: Path | None, machine: str) -> None:
        self.path, self.machine = path, machine
        self.entries: dict[str, float] = {}
        if path is not None and path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))[machine]
                found = {str(k): float(v) for k, v in held.items()}
                self.entries = {k: v for k, v in found.items() if 0 <= v < math.inf}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                self.entries = {}

    @classmethod
    def of(cls, cache: Path | None, target: Target, threads: int) -> LatencyTable:
        """The table of a target on this machine, in a folder; nothing is kept without one."""
        if cache is None:
            return cls(None, "")
        return cls(cache / "latency.json", machine_name(target, threads))

    def save(self) -> None:
        """Write the table, whole or not at all."""
        if self.path is None:
            return
        held: dict[str, Any] = {}
        if self.path.exists():
            try:
                held = dict(json.loads(self.path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                held = {}
        held[self.machine] = dict(sorted(self.entries.items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ir.atomic_write(self.path, json.dumps(held, indent=1).encode())


def machine_name(target: Target, threads: int) -> str:
    """What measured times hold for: processor, ONNX Runtime, providers and threads."""
    cpu = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    where = named.group(1) if named else platform.processor()
    return f"{cpu} {where}; onnxruntime {ort().__version__}; {target.name}; {threads} threads"


def shaped(model: ir.Model, feeds: Feeds) -> ir.Model:
    """A copy of a model whose shapes are those that it has for some inputs."""
    copy = ir.clone(model)
    rw = Rewriter(copy)
    for value in copy.graph.inputs:
        fed = feeds.get(value.name or "")
        if isinstance(fed, np.ndarray):
            rw.declare(value, fed.shape)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    ir.infer_shapes(copy)
    return copy

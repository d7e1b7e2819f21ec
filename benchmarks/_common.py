"""What every benchmark shares: options, tables, JSON results, the environment, and child processes.

Nothing here imports onnx, onnxruntime or graphopt, so that a child process that only measures its
own memory or start-up time stays small.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
RESULTS = HERE / "results"
PACKAGES = ("graphopt", "numpy", "onnx", "onnx-ir", "onnxruntime")
MB = 1024.0 * 1024.0
_WIDEST = 60
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Feature|Failed): ")
T = TypeVar("T")
_private = {
    str(REPO),
    str(REPO.parent),
    sys.prefix,
    sys.base_prefix,
    tempfile.gettempdir(),
    str(Path.home()),
}


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Make an argument parser that has the options all benchmarks share.

    Args:
        description: The module docstring; its first line becomes the help text.
        name: Name of the benchmark; results go to ``benchmarks/results/NAME.json`` unless
            ``--json`` says otherwise.
    """
    result = argparse.ArgumentParser(
        prog=f"benchmarks/{name}.py", description=(description or "").strip().splitlines()[0]
    )
    result.add_argument(
        "--json", type=Path, default=RESULTS / f"{name}.json", help="where the result goes"
    )
    result.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder for generated models"
    )
    return result


def default_cache() -> Path:
    """``GRAPHOPT_BENCH_CACHE``, else ``graphopt-bench`` in the temporary folder."""
    return Path(
        os.environ.get("GRAPHOPT_BENCH_CACHE", Path(tempfile.gettempdir()) / "graphopt-bench")
    )


def data_dir() -> Path:
    """``GRAPHOPT_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("GRAPHOPT_DATA", REPO.parent / "shared" / "data"))


def names(text: str) -> list[str]:
    """Split a comma-separated option."""
    return [part for part in (item.strip() for item in text.split(",")) if part]


# --- environment and results ---------------------------------------------------------------------


def version(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a reader needs to judge a number: core count and versions, nothing else."""
    wanted = [*PACKAGES, *packages]
    found = {name: v for name in wanted if (v := version(name)) is not None}
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "versions": found}


_tables: list[str] = []  # what was shown, for benchmarks/summary.py


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Write a result file (UTF-8, keys in the order given, NaN and infinity become null)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = {**payload, "tables": _tables}
    path.write_text(json.dumps(_finite(payload), indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {os.path.relpath(path)}")


def _finite(value: Any) -> Any:
    """Replace floats JSON cannot hold, round the others to a readable length, hide paths."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return _without_paths(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _without_paths(text: str) -> str:
    """Messages of tools may name files; results must not say where this machine keeps them."""
    for root in sorted(_private, key=len, reverse=True):
        text = text.replace(f"{root}{os.sep}", "")
    return text


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> str:
    """Format a table: text left, numbers right, two spaces between columns."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(_is_number(row[i]) for row in cells if row[i]) and any(row[i] for row in cells)
        for i in range(len(headers))
    ]
    widths = [max(len(str(h)), *(len(row[i]) for row in cells), 0) for i, h in enumerate(headers)]

    def line(values: Sequence[str]) -> str:
        padded = (
            v.rjust(w) if right else v.ljust(w)
            for v, w, right in zip(values, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    lines = [line([str(h) for h in headers]), "  ".join("-" * w for w in widths), *map(line, cells)]
    text = "\n".join(["", title, *lines] if title else ["", *lines])
    _tables.append(text)
    return text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.0f}"
            if abs(value) >= 1000
            else f"{value:.3g}"
            if abs(value) < 1
            else f"{value:.2f}"
        )
    text = str(value).replace("\n", " ")
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text.rstrip("%x"))
        return True
    return False


# --- measuring -----------------------------------------------------------------------------------


def interleave(items: Sequence[T], rounds: int) -> Iterator[T]:
    """Yield every item ``rounds`` times, the order rotated each round: drift hits all alike."""
    for turn in range(rounds):
        for i in range(len(items)):
            yield items[(turn + i) % len(items)]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Least-squares slope of log(seconds) over log(size): 1 is linear; None below two points."""
    points = [
        (math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True) if n > 0 and s > 0
    ]
    if len(points) < 2:
        return None
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """MiB of a process (Linux): ``VmHWM`` (peak), ``VmRSS``, ``RssAnon``, ``RssFile``."""
    wanted = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            key, _, rest = line.partition(":")
            if key in wanted:
                found[key] = int(rest.split()[0]) / 1024.0
    return found


@dataclass(frozen=True)
class Child:
    """How a finished child process went.

    Attributes:
        code: Exit status; negative is the signal that ended it.
        stdout: What it wrote to standard output.
        stderr: What it wrote to standard error.
        wall: Wall seconds.
        cpu: User plus system CPU seconds.
        max_rss: ``ru_maxrss`` in MiB.
        peaks: Largest sampled ``VmHWM``, ``RssAnon`` and ``RssFile`` in MiB.
        timed_out: True where it was killed at the time limit.
    """

    code: int
    stdout: str
    stderr: str
    wall: float
    cpu: float
    max_rss: float
    peaks: dict[str, float]
    timed_out: bool

    def last_json(self) -> dict[str, Any]:
        """The JSON object on the last line of the output; an empty one where there is none."""
        for line in reversed(self.stdout.splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(line)
                if isinstance(value, dict):
                    return value
        return {}

    def reason(self) -> str:
        """One line on why it failed."""
        if self.timed_out:
            return "timeout"
        if self.code < 0:
            return f"killed by signal {-self.code}"
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        raised = [line for line in lines if _RAISED.match(line)]  # its message may go on below
        return (raised or lines or [f"exit status {self.code}"])[-1][:300]


def single_thread_env(**extra: str) -> dict[str, str]:
    """The environment of a child: numeric libraries on one thread, output unbuffered."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one, "PYTHONUNBUFFERED": "1", **extra}


def run_child(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 600.0,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    sample: float = 0.02,
) -> Child:
    """Run a program to its end and measure it.

    Args:
        argv: Program and arguments.
        timeout: Wall seconds after which it is killed.
        env: Its environment; by default one thread per numeric library.
        cwd: Its working folder.
        sample: Seconds between two looks at its memory.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [os.fspath(a) for a in argv], stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            env=env or single_thread_env(), cwd=cwd,
        )  # fmt: skip
        peaks: dict[str, float] = {}
        timed_out = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            for key, value in memory_mb(process.pid).items():
                peaks[key] = max(value, peaks.get(key, 0.0))
            if not timed_out and time.perf_counter() - start > timeout:
                timed_out = True
                process.kill()
            time.sleep(sample)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        return Child(
            code=process.returncode,
            stdout=out.read().decode("utf-8", "replace"),
            stderr=err.read().decode("utf-8", "replace"),
            wall=wall,
            cpu=usage.ru_utime + usage.ru_stime,
            max_rss=usage.ru_maxrss / 1024.0,
            peaks=peaks,
            timed_out=timed_out,
        )


def graphopt_cli(*args: str | os.PathLike[str]) -> list[str]:
    """The command line ``python -m graphopt ARGS``."""
    return [sys.executable, "-m", "graphopt", *(os.fspath(a) for a in args)]


@contextlib.contextmanager
def scratch(parent: Path, prefix: str, keep: bool = False) -> Iterator[Path]:
    """A fresh folder below ``parent`` that is removed afterwards unless ``keep``."""
    parent.mkdir(parents=True, exist_ok=True)
    _private.add(os.path.abspath(parent))
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)

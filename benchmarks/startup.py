"""What starting graphopt costs: CPU ms of ``graphopt --help``, and what ``import graphopt`` loads.

Medians of fresh processes, user and system time together, taken in turns; ``python -c pass`` is the
floor. The peers' command lines stand beside where they are installed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from typing import Any

from _common import environment, graphopt_cli, interleave, parser, run_child, table, write_json

HEAVY = (
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxsim",
    "networkx",
    "numpy",
    "google.protobuf",
    "rich",
)
FORBIDDEN = ("onnx", "onnxruntime")
_PROBE = (
    "import json, sys\n"
    "{action}\n"
    "print(json.dumps([name for name in {names!r} if name in sys.modules]))"
)
_ACTIONS = {
    "import graphopt": "import graphopt",
    "graphopt --help": (
        "import contextlib, io, runpy\n"
        "sys.argv = ['graphopt', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('graphopt', run_name='__main__')"
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where --help fails or onnx is loaded."""
    args = parser(__doc__, "startup")
    args.add_argument("--rounds", type=int, default=11, help="fresh processes per command")
    args.add_argument("--limit", type=float, default=120.0, help="CPU ms that --help may take")
    args.add_argument("--no-peers", action="store_true")
    options = args.parse_args(argv)
    commands: dict[str, list[str]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import graphopt": [sys.executable, "-c", "import graphopt"],
        "graphopt --help": graphopt_cli("--help"),
        "graphopt --version": graphopt_cli("--version"),
    }
    if not options.no_peers:
        for peer in ("onnxsim", "onnxslim"):
            found = shutil.which(peer)
            if found:
                commands[f"{peer} --help"] = [found, "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    walls: dict[str, list[float]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for name in interleave(list(commands), options.rounds):
        child = run_child(commands[name], timeout=120, sample=0.001)
        if child.code:
            failed[name] = child.reason()
        times[name].append(1000 * child.cpu)
        walls[name].append(1000 * child.wall)
    loaded = {name: _modules(action) for name, action in _ACTIONS.items()}
    rows = [
        [
            name,
            statistics.median(times[name]),
            min(times[name]),
            statistics.median(walls[name]),
            failed.get(name, "ok"),
        ]
        for name in commands
    ]
    print(table(["command", "CPU ms", "least", "wall ms", "status"], rows, "Start-up"))
    for name, modules in loaded.items():
        print(f"{name} loads of {', '.join(HEAVY)}: {', '.join(modules) or 'none'}")
    bad = {n: [m for m in modules if m in FORBIDDEN] for n, modules in loaded.items()}
    needed = statistics.median(times["graphopt --help"])
    print(f"graphopt --help: {needed:.0f} ms CPU, the limit is {options.limit:g}")
    payload: dict[str, Any] = {
        "environment": environment(),
        "cpu_ms": {name: statistics.median(values) for name, values in times.items()},
        "wall_ms": {name: statistics.median(values) for name, values in walls.items()},
        "runs_cpu_ms": times,
        "failed": failed,
        "loaded": loaded,
        "limit_ms": options.limit,
        "within_limit": needed <= options.limit,
    }
    write_json(options.json, payload)
    ours = any(name.startswith(("graphopt", "import graphopt")) for name in failed)
    return int(ours or any(bad.values()) or needed > options.limit)


def _modules(action: str) -> list[str]:
    """Which of the heavy modules are loaded after an action in a fresh process."""
    code = _PROBE.format(action=action, names=HEAVY)
    child = run_child([sys.executable, "-c", code], timeout=60)
    if child.code:
        return [f"failed: {child.reason()}"]
    return list(json.loads(child.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())

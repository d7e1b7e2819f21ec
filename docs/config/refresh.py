"""Rewrite what documents show of graphopt's own output: `python docs/config/refresh.py`.

Between `<!-- output: COMMAND -->` and `<!-- /output -->` stands what COMMAND printed, between
`<!-- pipelines -->` and `<!-- /pipelines -->` the table of named pipelines. It needs graphopt to be
installed, with onnxruntime.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from graphopt.manager.registry import default_registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def output(command: str) -> str:
    """Run a command beside the reference models and return its standard output, fenced."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / "models")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
        )
    lines = [line.rstrip() for line in done.stdout.decode().strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


def pipelines() -> str:
    """Return the table of named pipelines."""
    known = default_registry().pipelines()
    rows = [
        f"| `{name}` | {f'`{text}`' if text else '(nothing)'} |" for name, text in known.items()
    ]
    return "\n".join(["| name | passes |", "|---|---|", *rows])


def refresh(text: str) -> str:
    """Return a document with every generated part made anew."""
    text = re.sub(
        r"(<!-- output: (.*?) -->\n).*?(<!-- /output -->)",
        lambda m: f"{m[1]}{output(m[2])}\n{m[3]}",
        text,
        flags=re.DOTALL,
    )
    return re.sub(
        r"(<!-- pipelines -->\n).*?(<!-- /pipelines -->)",
        lambda m: f"{m[1]}{pipelines()}\n{m[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = refresh(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"refreshed {page.relative_to(ROOT)}")

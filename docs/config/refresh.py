"""Rewrite what documents show of graphopt's own output: `python docs/config/refresh.py`.

Between `<!-- output: COMMAND -->` and `<!-- /output -->` stands what COMMAND printed, between
`<!-- pipelines -->` and `<!-- /pipelines -->` the table of named pipelines, and between
`<!-- targets -->` and `<!-- /targets -->` that of targets. It needs graphopt to be installed, with
onnxruntime.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from graphopt.manager.registry import default_registry
from graphopt.targets import TARGETS, Format

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


def targets() -> str:
    """Return the table of targets."""
    head = "| target | for | quantized | opsets | sizes | dimensions | operators of others | fp16 |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for each in TARGETS.values():
        scheme = each.scheme
        formats = f"{_format(scheme.activation)}, {_format(scheme.weight)}" if scheme else "-"
        if scheme and not any("static" in kernel.forms for kernel in scheme.kernels.values()):
            formats = f"weights only: {_format(scheme.weight)}"
        cells = (
            f"`{each.name}`",
            each.description,
            "as that machine" if each.name == "cpu" else formats,
            "{} to {}".format(*each.opsets),
            "known" if each.static_shapes else "any",
            f"up to {each.max_rank}" if each.max_rank else "any",
            ", ".join(f"`{name}`" for name in sorted(each.domains)) or "none",
            {"native": "yes", "slow": "slow", "none": "no"}[each.fp16],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _format(each: Format) -> str:
    kind = f"{each.dtype} symmetric" if each.symmetric else each.dtype
    bits = f" in {each.bits} bits" if each.levels else ""
    where = {"tensor": "", "channel": " per channel", "block": f" per block of {each.block}"}
    return f"{kind}{bits}{where[each.granularity]}"


def refresh(text: str) -> str:
    """Return a document with every generated part made anew."""
    for mark, table in (("pipelines", pipelines), ("targets", targets)):
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)",
            lambda m, table=table: f"{m[1]}{table()}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
    return re.sub(
        r"(<!-- output: (.*?) -->\n).*?(<!-- /output -->)",
        lambda m: f"{m[1]}{output(m[2])}\n{m[3]}",
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

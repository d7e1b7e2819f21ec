"""A 2.4 GB model whose weights are tied, shared and stored in fewer bytes: memory, time and bytes.

Writes the GPT of ``large_model.py``, whose weights lie in a data file, and runs passes over it by
the command line, each in a process of its own: as it is, and with the last layer's weights the
transposed embedding, written once more as exporters do. There are no samples. Peak memory is
``VmHWM``, in which pages of mapped files count; the largest sampled anonymous part stands beside
it. What ONNX Runtime takes to load and run the results is measured in further processes. Exits
with 1 where a run fails, a file grows, weights that are the same stay in the file twice, passes
that promise the same bits compute others, or a pass takes half the memory of the weights. Needs
about 3 times the size in the --cache folder.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import (
    MB,
    environment,
    graphopt_cli,
    memory_mb,
    names,
    parser,
    run_child,
    scratch,
    table,
    write_json,
)
from _large_gpt import Size, feeds, write

from graphopt.runtime import open_session

HERE = Path(__file__).resolve()
SHARED = "share-weights{entries=16}"
APART, TWICE = "as it is", "head tied, written twice"
PASSES = {
    APART: ("tie-weights", "compact-storage", SHARED),
    TWICE: ("tie-weights", "compact-storage", f"tie-weights,{SHARED}"),
}
EXACT = ("tie-weights", "compact-storage")
# Anonymous memory in units of the bytes of the weights.
MEMORY = 0.5
SETTINGS = ((1, 4, 3), (2, 3, 0))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses a bar."""
    args = parser(__doc__, "large_sharing")
    args.add_argument("--gb", type=float, default=2.4, help="size of the weights")
    args.add_argument("--only", default="", help="comma-separated pipelines, without their options")
    args.add_argument("--oracle", default="off", help="of graphopt, off or end")
    args.add_argument("--timeout", type=float, default=3600.0, help="wall seconds per process")
    args.add_argument("--child", nargs=2, metavar=("MODEL", "JSON"), help="what a child does")
    options = args.parse_args(argv)
    if options.child:
        run(Path(options.child[0]), json.loads(options.child[1]))
        return 0
    size = size_of(options.gb)
    need = 3 * 4 * size.parameters
    options.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.cache).free
    if free < need:
        print(f"skipped: {free / 1e9:.1f} GB free below --cache, {need / 1e9:.1f} GB needed")
        return 0
    rows: list[dict[str, Any]] = []
    with scratch(options.cache, "large-sharing-") as folder:
        source = folder / "gpt.onnx"
        write(source, size)
        for variant in PASSES:
            if variant == TWICE:
                tie(source)
            rows += compare(source, variant, size, options)
    missed = list(below(rows, options.oracle))
    print(report(rows))
    for each in missed:
        print(f"missed: {each}")
    write_json(options.json, {
        "environment": environment(), "model": asdict(size), "oracle": options.oracle,
        "rows": rows, "missed": missed,
    })  # fmt: skip
    return int(bool(missed))


def size_of(gb: float) -> Size:
    """The network of about so many GB of weights, in the proportions of the default one."""
    usual = Size()
    wide = usual.width * math.sqrt(gb * 1e9 / (4 * usual.parameters))
    width = max(1, round(wide / (2 * usual.heads))) * 2 * usual.heads
    return Size(width=width, vocabulary=width * usual.vocabulary // usual.width)


def tie(path: Path) -> None:
    """Write the transposed embedding over the weights of the last layer."""
    model = onnx.load(path, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def mapped(name: str) -> Any:
        where = {entry.key: entry.value for entry in tensors[name].external_data}
        return np.memmap(
            path.parent / where["location"], np.float32, "r+", int(where["offset"]),
            tuple(tensors[name].dims),
        )  # fmt: skip

    head = mapped("head")
    head[:] = mapped("wte").T
    head.flush()


def compare(source: Path, variant: str, size: Size, options: Any) -> list[dict[str, Any]]:
    """Run each pipeline over one variant, and ONNX Runtime on what comes out."""
    only, target = names(options.only), source.parent / "out"
    rows = [{"variant": variant, "passes": "", "bytes": bytes_of(source)}]
    rows[0] |= runtime(source, size, options.timeout)
    reference = outputs(source)
    for passes in PASSES[variant]:
        if only and passes.replace("{entries=16}", "") not in only:
            continue
        target.mkdir()
        path, said = target / "gpt.onnx", target / "report.json"
        child = run_child(
            graphopt_cli(
                "optimize", source, "-o", path, "--passes", passes, "--oracle", options.oracle,
                "--json", said,
            ),
            timeout=options.timeout,
        )  # fmt: skip
        print(f"{variant}, {passes}: {child.wall:.0f} s", flush=True)
        row: dict[str, Any] = {
            "variant": variant, "passes": passes, "seconds": child.wall, "cpu_s": child.cpu,
            "peak_mb": child.max_rss, "anonymous_mb": child.peaks.get("RssAnon"),
        }  # fmt: skip
        rows.append(row)
        if child.code:
            row["error"] = child.reason()
        else:
            records = json.loads(said.read_text(encoding="utf-8"))["passes"]
            row["said"] = [f"{p['name']}: {each}" for p in records for each in p["remarks"]]
            row["bytes"] = bytes_of(path)
            row["head"] = "head" in initializers(path)
            row |= runtime(path, size, options.timeout)
            if "error" not in row:
                row |= agreement(reference, outputs(path))
        shutil.rmtree(target)
    return rows


def bytes_of(path: Path) -> int:
    """Bytes of a model and of its data files."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.stem}*"))


def initializers(path: Path) -> set[str]:
    """Names of the constants of a model."""
    return {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer}


# --- what ONNX Runtime makes of it ---------------------------------------------------------------


def runtime(path: Path, size: Size, timeout: float) -> dict[str, Any]:
    """Load and run a model in a process of its own, which leaves its outputs beside it."""
    child = run_child([sys.executable, HERE, "--child", path, json.dumps(asdict(size))],
                      timeout=timeout)  # fmt: skip
    return child.last_json() | ({"error": child.reason()} if child.code else {})


def run(path: Path, size: dict[str, int]) -> None:
    """What that process does; prints one JSON line."""
    start = time.perf_counter()
    with open_session(path, optimize=True) as session:
        loaded = time.perf_counter() - start
        found = [session.run(feeds(Size(**size), *setting))["logits"] for setting in SETTINGS]
    print(json.dumps({"load_s": loaded, "session_mb": memory_mb().get("VmHWM")}))
    np.savez(path.parent / "outputs.npz", *found)


def outputs(path: Path) -> list[Any]:
    """What that process left."""
    with np.load(path.parent / "outputs.npz") as archive:
        return list(archive.values())


def agreement(reference: list[Any], found: list[Any]) -> dict[str, Any]:
    """Whether outputs are the same bit by bit, and their signal-to-noise ratio."""
    same = all(np.array_equal(a, b) for a, b in zip(reference, found, strict=True))
    noise = sum(float(np.square(a - b, dtype=np.float64).sum())
                for a, b in zip(reference, found, strict=True))  # fmt: skip
    energy = sum(float(np.square(a, dtype=np.float64).sum()) for a in reference)
    return {"same": same, "sqnr_db": 10 * math.log10(energy / noise) if noise else math.inf}


# --- bars and the table --------------------------------------------------------------------------


def below(rows: list[dict[str, Any]], oracle: str) -> Iterator[str]:
    """Bars that are missed, in words; the oracle takes the memory of sessions."""
    whole = {row["variant"]: row["bytes"] for row in rows if not row["passes"]}
    for row in rows:
        where = f"{row['variant']}, {row['passes']}"
        if "error" in row:
            yield f"{where}: {row['error']}"
            continue
        if row["bytes"] > whole[row["variant"]]:
            yield f"{where}: the file grew from {whole[row['variant']]:,} to {row['bytes']:,} bytes"
        memory = row.get("anonymous_mb", 0) * MB / whole[row["variant"]]
        if memory > MEMORY and oracle == "off":
            yield f"{where}: memory of {memory:.2f} times the weights, the bar is {MEMORY}"
        if row["passes"] in EXACT and not row["same"]:
            yield f"{where}: other bits, {row['sqnr_db']:.1f} dB"
        if row["variant"] == TWICE and row["passes"].startswith("tie") and row["head"]:
            yield f"{where}: the weights of the last layer are in the file"


def report(rows: list[dict[str, Any]]) -> str:
    """One line per run."""
    whole = {row["variant"]: row["bytes"] for row in rows if not row["passes"]}
    headers = (
        "model", "passes", "MB", "file x", "seconds", "CPU s", "peak MB", "anonymous MB",
        "load s", "session MB", "same bits", "SQNR dB", "error",
    )  # fmt: skip
    cells = []
    for row in rows:
        ratio = row.get("sqnr_db")
        cells.append((
            row["variant"], row["passes"] or "none",
            round(row["bytes"] / MB) if "bytes" in row else None,
            row["bytes"] / whole[row["variant"]] if "bytes" in row else None,
            *(row.get(k) for k in ("seconds", "cpu_s", "peak_mb", "anonymous_mb", "load_s")),
            row.get("session_mb"), row.get("same"),
            None if ratio in (None, math.inf) else f"{ratio:.1f}", row.get("error"),
        ))  # fmt: skip
    return table(headers, cells, "Weights tied, shared and stored in fewer bytes, without samples")


if __name__ == "__main__":
    sys.exit(main())

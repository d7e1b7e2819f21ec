"""MiniLM in int8: cosine of sentence embeddings to the original's, latency ratios and file sizes.

ONNX Runtime's dynamic quantization, the fastest peer, stands beside it; ``--ablate`` adds a row for
each step of the recipe. Choices are made on the calibration sentences; the others only report.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import data_dir, environment, parser, scratch, table, write_json

LENGTHS = (16, 128)
COSINE = 0.995
SPEEDS = (2.1, 1.8)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where graphopt misses the cosine that it is to reach."""
    args = parser(__doc__, "minilm_int8")
    args.add_argument("--seconds", type=float, default=20.0, help="time for each latency")
    args.add_argument("--ablate", action="store_true", help="one row for each step")
    options = args.parse_args(argv)
    source = data_dir() / "models" / "minilm_l6.onnx"
    if not source.is_file():
        print(f"skipped: there is no {source.name} in the shared data")
        return 0
    calib, val = (sentences(data_dir() / f"minilm_{part}.npz") for part in ("calib", "val"))
    with scratch(options.cache, "minilm") as folder:
        files = {"fp32": source, **make(source, calib, folder, options.ablate)}
        reference = {"calib": embeddings(source, calib), "val": embeddings(source, val)}
        rows: dict[str, dict[str, Any]] = {}
        for name, path in files.items():
            row = rows[name] = {"mb": path.stat().st_size / 1e6}
            for part, feeds in (("calib", calib), ("val", val)):
                cosines = (embeddings(path, feeds) * reference[part]).sum(axis=1)
                row[f"{part}_mean"], row[f"{part}_min"] = (
                    float(cosines.mean()),
                    float(cosines.min()),
                )
        for length in LENGTHS:
            for name, ratio in speeds(files, length, options.seconds).items():
                rows[name][f"speed_{length}"] = ratio
    print(
        table(
            ["model", "mean cosine", "least", "MB", *(f"speed at {n}" for n in LENGTHS)],
            [
                [n, f"{r['val_mean']:.5f}", f"{r['val_min']:.5f}", f"{r['mb']:.1f}"]
                + [f"{r[f'speed_{length}']:.2f}x" for length in LENGTHS]
                for n, r in rows.items()
            ],
            f"MiniLM, {len(val)} sentences, batch 1, 1 thread",
        )
    )
    ours = rows["graphopt"]
    speed = " and ".join(f"{s}x at {n}" for s, n in zip(SPEEDS, LENGTHS, strict=True))
    print(f"bar: mean cosine {COSINE}, {speed}")
    write_json(options.json, {"environment": environment(), "models": rows})
    return int(ours["val_mean"] < COSINE)


def sentences(path: Path) -> list[dict[str, Any]]:
    """One batch per tokenized sentence."""
    with np.load(path) as archive:
        tokens, offsets = archive["token_ids"].astype(np.int64), archive["offsets"]
    return [feed(tokens[a:b][None]) for a, b in itertools.pairwise(offsets)]


def feed(ids: Any) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def embeddings(path: Path, feeds: list[dict[str, Any]]) -> Any:
    """Mean over the tokens of a sentence, of length one."""
    from graphopt.runtime import open_session

    with open_session(path, optimize=True) as session:
        each = [next(iter(session.run(f).values()))[0].mean(axis=0) for f in feeds]
    return np.stack([e / np.linalg.norm(e) for e in each])


def make(source: Path, calib: list[dict[str, Any]], folder: Path, ablate: bool) -> dict[str, Path]:
    """Write the contenders; the paths by name."""
    import graphopt
    from graphopt import ir
    from graphopt.quant.products import quantize_products, quantize_tables
    from graphopt.quant.residuals import keep_normalizations
    from graphopt.rewrite import Rewriter

    files: dict[str, Path] = {}
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as e:
        print(f"ONNX Runtime's quantization is left out: {e}")
    else:
        files["onnxruntime dynamic"] = folder / "peer.onnx"
        quantize_dynamic(
            source, files["onnxruntime dynamic"], weight_type=QuantType.QInt8, per_channel=True
        )
    model = graphopt.optimize(graphopt.load(source), "O2").model

    def write(name: str, change: Callable[[Rewriter], object]) -> None:
        copy = ir.clone(model)
        rw = Rewriter(copy)
        change(rw)
        rw.remove_initializers()
        ir.verify(copy)
        files[name] = folder / f"{len(files)}.onnx"
        ir.save(copy, files[name])

    if ablate:
        nearest: dict[str, Any] = {"rounding": "nearest", "correct_bias": False}
        write("O2", lambda rw: None)
        write("O2, products to the nearest", lambda rw: quantize_products(rw))
        write(
            "+ shifts in constants",
            lambda rw: quantize_products(rw, None, calib, least=math.inf, **nearest),
        )
        write("+ factors by Mul", lambda rw: quantize_products(rw, None, calib, **nearest))
        write(
            "+ rounding by Gram matrix",
            lambda rw: quantize_products(rw, None, calib, correct_bias=False),
        )
        write("+ bias correction", lambda rw: quantize_products(rw, None, calib))

    def everything(rw: Rewriter) -> None:
        quantize_products(rw, None, calib)
        quantize_tables(rw)
        keep_normalizations(rw)

    write("graphopt", everything)
    return files


def speeds(files: dict[str, Path], length: int, seconds: float) -> dict[str, float]:
    """How many times as fast as the first: medians of CPU times of runs taken in turns."""
    from graphopt.runtime import interleaved, open_session

    ids = np.random.default_rng(0).integers(1000, 30000, (1, length))
    with contextlib.ExitStack() as stack:
        opened = {
            n: stack.enter_context(open_session(p, optimize=True, threads=1))
            for n, p in files.items()
        }
        runners = {n: (lambda s=s: s.run(feed(ids))) for n, s in opened.items()}
        found = interleaved(runners, seconds=seconds, clock=time.thread_time)
    return {name: 1 / found[name].ratio for name in files}


if __name__ == "__main__":
    sys.exit(main())

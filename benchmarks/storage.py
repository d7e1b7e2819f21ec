"""ResNet-56 with weights of few values: bytes, load time and latency of its codes.

The weights of the model after ``O2`` are set to quantiles of each tensor, so that 256 to 2 values
are left, with and without half of them zero; and stored densely and by ``compact-storage``. What
such values do to accuracy is not looked at here. Exits with 1 where the coded model computes other
bits than the dense one with the same weights, ONNX Runtime runs other operators, or latency differs
by more than 3 %.
"""

from __future__ import annotations

import functools
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import data_dir, environment, parser, scratch, table, write_json
from sparsity import run_by

import graphopt
from graphopt import Rewriter, ir
from graphopt.runtime import interleaved, open_session

Array = np.ndarray[Any, Any]

LEAST = 1024  # weights of a tensor that is changed
LATENCY = 0.03


def few(weight: Array, entries: int) -> Array:
    """The middles of so many parts of equal size of a tensor's distribution."""
    ordered = np.sort(weight, axis=None)
    book = ordered[((np.arange(entries) + 0.5) / entries * weight.size).astype(int)]
    return np.asarray(book[np.abs(weight.reshape(-1, 1) - book).argmin(1)].reshape(weight.shape))


def few_in_blocks(weight: Array, entries: int, blocks: int) -> Array:
    """The same in each of several blocks of rows."""
    return np.concatenate([few(part, entries) for part in np.split(weight, blocks)])


def halved(weight: Array, change: Callable[[Array], Array]) -> Array:
    """The smaller half of the weights zero, the others changed."""
    kept = np.abs(weight) > np.median(np.abs(weight))
    changed = weight.copy()
    changed[kept] = change(weight[kept])
    changed[~kept] = 0
    return changed


def same(weight: Array) -> Array:
    """No change."""
    return weight


def half_precision(weight: Array) -> Array:
    """Rounded to 16 bits."""
    return weight.astype(np.float16).astype(np.float32)


FORMS: dict[str, tuple[Callable[[Array], Array], int | None]] = {
    "O2": (same, None),
    "16 bits": (half_precision, None),
    **{f"{n} values": (functools.partial(few, entries=n), None) for n in (256, 64, 16, 4, 2)},
    "4 values in 8 blocks": (functools.partial(few_in_blocks, entries=4, blocks=8), None),
    "half zero, 16 bits": (functools.partial(halved, change=half_precision), None),
    **{
        f"half zero, {n} values": (
            functools.partial(halved, change=functools.partial(few, entries=n)),
            None,
        )
        for n in (256, 64, 16, 4, 2)
    },
    "16 values at opset 21": (functools.partial(few, entries=16), 21),
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    args = parser(__doc__, "storage")
    args.add_argument("--model", type=Path, default=None, help="model file, ResNet-56 by default")
    args.add_argument("--seconds", type=float, default=20.0, help="of timing, loading and running")
    options = args.parse_args(argv)
    source = options.model or data_dir() / "models" / "resnet56.onnx"
    rows: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    with scratch(options.cache, "storage-") as folder:
        plain = graphopt.optimize(source, "O2").model
        for name, (change, opset) in FORMS.items():
            model = changed(plain, change, opset)
            for kind, passes in (("dense", "O0"), ("coded", "compact-storage")):
                each = f"{name}, {kind}"
                path = files[each] = folder / f"{len(files)}.onnx"
                start = time.process_time()
                result = graphopt.optimize(model, passes)
                ir.save(result.model, path)
                rows[each] = figures(path, source, folder) | {
                    "form": name, "kind": kind, "seconds": time.process_time() - start,
                    "codes": [each.details.get("codes") for each in result.report.passes],
                }  # fmt: skip
        measure_times(rows, files, options.seconds)
    missed = list(below(rows))
    print(report(rows))
    for missing in missed:
        print(f"missed: {missing}")
    write_json(options.json, {"environment": environment(), "rows": rows, "missed": missed})
    return int(bool(missed))


def changed(plain: ir.Model, change: Callable[[Array], Array], opset: int | None) -> ir.Model:
    """The model with other weights."""
    model = ir.clone(plain) if opset is None else ir.convert_opset(plain, opset)
    rw = Rewriter(model)
    for value in tuple(model.graph.initializers.values()):
        array = ir.array(value)
        if array is not None and array.dtype == np.float32 and array.size >= LEAST:
            rw.replace(value, rw.const(change(array), value.name or "weight"))
    rw.remove_initializers()
    return model


def figures(path: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Bytes, the operators that ONNX Runtime runs, and the outputs for random numbers."""
    data, whole = path.read_bytes(), source.stat().st_size
    optimized = run_by(path, folder)
    with open_session(path, optimize=True, threads=1) as session:
        outputs = session.run(feeds(path))
    return {
        "file": len(data) / whole,
        "deflated": len(zlib.compress(data, 6)) / whole,
        "operators": dict(sorted(Counter(n.op_type for n in optimized.graph.node).items())),
        "crc": zlib.crc32(b"".join(np.ascontiguousarray(y).tobytes() for y in outputs.values())),
    }


def feeds(path: Path) -> dict[str, Array]:
    """One sample of random numbers."""
    rng = np.random.default_rng(0)
    shapes = {
        each.name: [d.dim_value or 1 for d in each.type.tensor_type.shape.dim]
        for each in onnx.load(path).graph.input
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def measure_times(rows: dict[str, dict[str, Any]], files: dict[str, Path], seconds: float) -> None:
    """CPU time to load, and to run in units of the dense model with the same weights."""

    def load(path: Path) -> None:
        with open_session(path, optimize=True, threads=1):
            pass

    loads = interleaved(
        {name: functools.partial(load, path) for name, path in files.items()},
        seconds=seconds, clock=time.process_time,
    )  # fmt: skip
    for form in FORMS:
        pair = [f"{form}, dense", f"{form}, coded"]
        with (
            open_session(files[pair[0]], optimize=True, threads=1) as dense,
            open_session(files[pair[1]], optimize=True, threads=1) as coded,
        ):
            given = feeds(files[pair[0]])
            runs = interleaved(
                {
                    pair[0]: functools.partial(dense.run, given),
                    pair[1]: functools.partial(coded.run, given),
                },
                seconds=seconds / 10, clock=time.thread_time,
            )  # fmt: skip
        for name in pair:
            rows[name]["load_ms"] = 1e3 * loads[name].median
            rows[name]["latency"] = runs[name].median / runs[pair[0]].median


def below(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Bars that are missed, in words."""
    for form in FORMS:
        dense, coded = rows[f"{form}, dense"], rows[f"{form}, coded"]
        if coded["crc"] != dense["crc"]:
            yield f"{form}: the codes compute other bits"
        if coded["operators"] != dense["operators"]:
            yield f"{form}: ONNX Runtime runs other operators"
        if abs(coded["latency"] - 1) > LATENCY:
            yield f"{form}: {coded['latency']:.3f} of the latency, the bar is {LATENCY:.0%}"


def report(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    headers = (
        "weights", "dense file x", "deflated x", "coded file x", "deflated x", "dense load ms",
        "coded load ms", "latency x", "same operators", "same bits",
    )  # fmt: skip
    cells = []
    for form in FORMS:
        dense, coded = rows[f"{form}, dense"], rows[f"{form}, coded"]
        cells.append((
            form, dense["file"], dense["deflated"], coded["file"], coded["deflated"],
            dense["load_ms"], coded["load_ms"], coded["latency"],
            coded["operators"] == dense["operators"], coded["crc"] == dense["crc"],
        ))  # fmt: skip
    return table(headers, cells, "Weights of few values in ResNet-56 (the original file is 1)")


if __name__ == "__main__":
    sys.exit(main())

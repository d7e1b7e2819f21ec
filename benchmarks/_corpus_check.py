"""Optimize one model of the corpus and judge the result; runs inside a worker process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _corpus_cases import Case, read_data
from _equality import (
    Feeds,
    Runner,
    checker_accepts,
    difference,
    has_free_dims,
    ort_runner,
    reference_runner,
    vary,
)
from _free_dims import freed
from _models import dims, file_bytes, interface_change, load, node_count
from _pool import stage
from _tools import TOOLS, Options

# Other inputs, boldest first; the first that the original itself can run is used.
_VARIATIONS = (
    {"resize": True, "integers": True, "noise": True},
    {"resize": True, "integers": False, "noise": True},
    {"resize": False, "integers": True, "noise": True},
    {"resize": False, "integers": False, "noise": True},
    {"resize": False, "integers": False, "noise": False},
)


@dataclass
class Original:
    """What the unoptimized model does.

    Attributes:
        loads: Whether ONNX Runtime opens it.
        engine: What runs it: ``ort``, ``reference``, or empty where neither can.
        checked: Whether ``onnx.checker`` accepts it.
        own: Data sets of the test: feeds, what to compare with, and the tolerances to use.
        other: Second setting: feeds and outputs, where one was found.
        resized: Whether the second setting has other dims.
        deterministic: Whether two runs agree, and no operator draws random numbers.
    """

    loads: bool
    engine: str
    checked: bool
    own: list[tuple[Feeds, list[Any], dict[str, Any]]]
    other: tuple[Feeds, list[Any]] | None
    resized: bool
    deterministic: bool


def check(
    case: dict[str, Any],
    tool: str,
    options: dict[str, Any],
    folder: str,
    slack: int,
    free_dims: bool = False,
) -> dict[str, Any]:
    """Optimize and judge one model.

    Args:
        case: A ``Case`` as plain data.
        tool: Name of the tool.
        options: ``Options`` as plain data.
        folder: Where the result may be written.
        slack: Bytes a file may grow before it counts as grown.
        free_dims: Give the inputs symbolic dims first.

    Returns:
        A row with ``class``, ``reason`` and figures.
    """
    item = Case(**{**case, "data": tuple(case["data"])})
    source, target = Path(item.model), Path(folder) / f"{item.group}-{item.name}.onnx"
    stage("original")
    proto = load(source)
    if free_dims:
        proto = freed(proto)
        source = Path(folder) / f"{item.group}-{item.name}-free.onnx"
        source.write_bytes(proto.SerializeToString())
        item = replace(item, model=str(source))
    original = _original(item, proto)
    row: dict[str, Any] = {
        "engine": original.engine,
        "loads": original.loads,
        "second": original.other is not None,
        "resized": original.resized,
        "deterministic": original.deterministic,
        "strict": original.engine == "ort" and original.checked and original.deterministic,
        "nodes_before": node_count(proto),
        "bytes_before": file_bytes(source, proto),
    }
    TOOLS[tool].preload()
    settings = Options(**options)
    stage("optimize")
    start = time.process_time()
    try:
        row["notes"] = TOOLS[tool].run(source, target, settings)
    except Exception as error:  # the class this benchmark counts
        text = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
        return row | {"class": "raised", "reason": text[:400]}
    row["cpu_s"] = time.process_time() - start
    stage("result")
    try:
        row |= _judge(item, proto, original, target, slack)
    finally:
        for path in target.parent.glob(f"{target.name}*"):
            path.unlink()
    return row


_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [*graph.node, *(node for g in inner for node in _nodes(g))]


def _original(item: Case, proto: onnx.ModelProto) -> Original:
    source = Path(item.model)
    loads, runner, engine = False, None, ""
    data = _read(item, proto)
    for name, make in (("ort", ort_runner), ("reference", reference_runner)):
        try:
            candidate = make(source)
            loads = loads or name == "ort"
            for feeds, _ in data:
                candidate(feeds)
        except (
            Exception
        ):  # this engine lacks the operator, the type or the input kind: try the next
            continue
        runner, engine = candidate, name if data else ""
        break
    result = Original(loads, engine, checker_accepts(source) is None, [], None, False, True)
    if runner is None or not data:
        return result
    # Two runs of a few random numbers may agree by chance, so a random operator decides, too.
    result.deterministic = not any(node.op_type in _RANDOM for node in _nodes(proto.graph))
    again = ort_runner(source) if engine == "ort" else reference_runner(source)
    for feeds, expected in data:
        outputs = runner(feeds)
        result.deterministic &= difference(outputs, again(feeds), rtol=0.0, atol=0.0) is None
        own: dict[str, Any] = {"rtol": item.rtol, "atol": item.atol, "scaled": False}
        if difference(expected, outputs, **own) is None:
            result.own.append((feeds, expected, own))
        else:  # the engine itself misses the tolerance: the result has to stay with the original
            result.own.append((feeds, outputs, {}))
    if result.deterministic:
        result.other, result.resized = _second_setting(data[0][0], proto, runner, again)
    return result


def _read(item: Case, proto: onnx.ModelProto) -> list[tuple[Feeds, list[Any]]]:
    try:
        return [read_data(proto, Path(source)) for source in item.data]
    except (
        TypeError,
        ValueError,
        NotImplementedError,
    ):  # an element type numpy has no counterpart for
        return []


def _second_setting(
    feeds: Feeds, proto: onnx.ModelProto, run: Runner, again: Callable[[Feeds], list[Any]]
) -> tuple[tuple[Feeds, list[Any]] | None, bool]:
    free = has_free_dims(proto)
    for options in _VARIATIONS:
        if options["resize"] and not free:
            continue
        try:
            other = vary(feeds, proto, seed=1, **options)
            outputs = run(other)
            same = difference(outputs, again(other), rtol=0.0, atol=0.0) is None
            if same and _as_declared(proto, outputs):
                return (other, outputs), options["resize"]
        except Exception:  # the operator does not accept these values; a milder variation follows
            continue
    return None, False


def _as_declared(proto: onnx.ModelProto, outputs: list[Any]) -> bool:
    """Whether outputs have the sizes that the model states; a tool may rely on those."""
    for value, output in zip(proto.graph.output, outputs, strict=True):
        stated = dims(value.type)
        if stated is None or not isinstance(output, np.ndarray):
            continue
        if len(stated) != output.ndim or any(
            isinstance(want, int) and want != got
            for want, got in zip(stated, output.shape, strict=True)
        ):
            return False
    return True


def _judge(
    item: Case, proto: onnx.ModelProto, original: Original, target: Path, slack: int
) -> dict[str, Any]:
    after = load(target)
    size = file_bytes(target, after)
    before = file_bytes(Path(item.model), proto)
    row = {"nodes_after": node_count(after), "bytes_after": size}

    def verdict(name: str, reason: str | None = None) -> dict[str, Any]:
        return row | {"class": name, "reason": reason or ""}

    if original.loads:
        try:
            runner = ort_runner(target)
        except Exception as error:  # what the class is about
            return verdict("invalid_load", str(error).replace("\n", " ")[:400])
    if original.engine == "reference":
        runner = reference_runner(target)
    if original.engine:
        problem = _run_and_compare(original, runner)
        if problem:
            return verdict(*problem)
    change = interface_change(proto, after)
    if change:
        return verdict("changed_interface", change)
    complaint = checker_accepts(target) if original.checked else None
    if complaint:
        return verdict("checker_only", complaint)
    if size > before + slack:
        return verdict("grew", f"{before} -> {size} bytes")
    return verdict("ok")


def _run_and_compare(original: Original, run: Runner) -> tuple[str, str] | None:
    settings = list(original.own)
    if original.other is not None:
        settings.append((*original.other, {}))
    for i, (feeds, expected, tolerance) in enumerate(settings):
        where = "own data" if i < len(original.own) else "second setting"
        try:
            got = run(feeds)
        except Exception as error:  # the original ran on this
            return "run_fail", f"{where}: {str(error).replace(chr(10), ' ')[:400]}"
        if original.deterministic:
            found = difference(expected, got, **tolerance)
            if found:
                return "wrong", f"{where}: {found}"
        elif len(got) != len(expected):
            return "wrong", f"{where}: {len(expected)} outputs became {len(got)}"
    return None

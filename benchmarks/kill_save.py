"""Kill an in-place save at random moments; the old or the new file has to be there, whole.

Half of the kills hit ``graphopt optimize m.onnx -o m.onnx`` anywhere in its run, the other half a
process that has just begun to save; half of each with the weights in the file, half with external
data. After every kill the model's content (the graph and every weight, wherever it is stored) is
hashed and must equal the old or the new one, and ONNX Runtime must load it. Files left behind are
listed, and again after one more save that nobody interrupts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import (
    environment,
    graphopt_cli,
    parser,
    scratch,
    single_thread_env,
    table,
    write_json,
)
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve()
NAME = "m.onnx"


@dataclass
class Variant:
    """One way to save and to be killed.

    Attributes:
        name: Name in the table.
        external: Weights in a data file.
        anywhere: Kill anywhere in the command line's run, rather than during the save.
        kills: Real kills (the process was still running).
        states: How often the old or the new model was there, or something else.
        broken: What was wrong, for each other state.
        leftovers: Files beside the model and its data after the last kill.
        after_save: The same after one more save.
        mistaken: Leftovers whose name looks like a model's.
    """

    name: str
    external: bool
    anywhere: bool
    kills: int = 0
    states: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    after_save: list[str] = field(default_factory=list)
    mistaken: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a model was neither old nor new, or did not load."""
    args = parser(__doc__, "kill_save")
    args.add_argument("--kills", type=int, default=50, help="kills altogether")
    args.add_argument("--megabytes", type=int, default=64, help="size of the model")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--child", nargs=2, metavar=("FILE", "EXTERNAL"), help="what a process does")
    options = args.parse_args(argv)
    if options.child:
        save_in_place(Path(options.child[0]), options.child[1] == "1")
        return 0
    rng = random.Random(options.seed)
    variants = [
        Variant(f"{'external' if external else 'inline'}, {'anywhere' if anywhere else 'in save'}",
                external, anywhere)
        for external in (False, True) for anywhere in (True, False)
    ]  # fmt: skip
    with scratch(options.cache, "kill-") as folder:
        for i, variant in enumerate(variants):
            count = options.kills // 4 + (i < options.kills % 4)
            place = folder / str(i)
            place.mkdir()
            run_variant(variant, place, count, options.megabytes, rng)
            print(f"  {variant.name}: {variant.kills} kills, {dict(variant.states)}", flush=True)
    headers = ["save", "kills", "old", "new", "broken", "left behind", "after next save"]
    body = [
        [v.name, v.kills, v.states["old"], v.states["new"], v.states["broken"],
         len(v.leftovers), len(v.after_save)]
        for v in variants
    ]  # fmt: skip
    print(table(headers, body, "Kill during save"))
    for variant in variants:
        for line in variant.broken:
            print(f"  BROKEN {variant.name}: {line}")
        if variant.leftovers:
            print(f"  {variant.name} left behind: {', '.join(variant.leftovers)}")
    mistaken = [name for v in variants for name in v.mistaken]
    print(f"left-over files that look like models: {', '.join(mistaken) or 'none'}")
    broken = sum(v.states["broken"] for v in variants)
    payload: dict[str, Any] = {
        "environment": environment(),
        "megabytes": options.megabytes,
        "kills": sum(v.kills for v in variants),
        "broken": broken,
        "mistaken_for_models": len(mistaken),
        "variants": [
            {"name": v.name, "kills": v.kills, "states": dict(v.states), "broken": v.broken,
             "left_behind": v.leftovers, "left_after_next_save": v.after_save}
            for v in variants
        ],
    }  # fmt: skip
    write_json(options.json, payload)
    return int(broken > 0 or bool(mistaken))


# --- one variant ---------------------------------------------------------------------------------


def run_variant(variant: Variant, folder: Path, count: int, size: int, rng: random.Random) -> None:
    """Kill ``count`` saves of one kind."""
    original = folder / "original"
    original.mkdir()
    write_model(original / NAME, size, variant.external)
    place = folder / "work"
    place.mkdir()
    model = place / NAME
    restore(original, place)
    old = digest(model)
    window = measure_window(variant, model)
    new = digest(model)
    if old == new:
        raise SystemExit("the save changed nothing: there is no new model to tell from the old")
    for _ in range(4 * count):
        if variant.kills >= count:
            break
        restore(original, place)
        if not kill_once(variant, model, rng.uniform(0.0, window)):
            continue  # it had finished: no kill
        variant.kills += 1
        state, problem = judge(model, old, new)
        variant.states[state] += 1
        if problem:
            variant.broken.append(problem)
    variant.leftovers = strangers(place)
    variant.mistaken = [name for name in variant.leftovers if name.endswith((".onnx", ".pb"))]
    restore(original, place)
    finish(start(variant, model))
    variant.after_save = strangers(place)


def start(variant: Variant, model: Path) -> subprocess.Popen[str]:
    """Start the process that saves in place."""
    if variant.anywhere:
        command = graphopt_cli("optimize", model, "-o", model, "--oracle", "off")
        if variant.external:
            command.append("--external-data")
    else:
        command = [sys.executable, str(HERE), "--child", str(model), str(int(variant.external))]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=single_thread_env(), text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Wait until the process says where it is."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise SystemExit(f"the saving process ended early, exit status {process.wait()}")


def finish(process: subprocess.Popen[str]) -> None:
    """Let a process end by itself."""
    process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"an uninterrupted save failed, exit status {process.returncode}")


def measure_window(variant: Variant, model: Path) -> float:
    """Seconds in which to kill: the whole run, or the save alone; leaves the new model behind."""
    begin = time.perf_counter()
    process = start(variant, model)
    if not variant.anywhere:
        wait_for(process, "saving")
        begin = time.perf_counter()
        wait_for(process, "saved")
    else:
        process.wait()
    seconds = time.perf_counter() - begin
    finish(process)
    return seconds


def kill_once(variant: Variant, model: Path, delay: float) -> bool:
    """Start a save and kill it after a while; False where it had ended before."""
    process = start(variant, model)
    if not variant.anywhere:
        wait_for(process, "saving")
    time.sleep(delay)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return alive and process.returncode == -signal.SIGKILL


def save_in_place(path: Path, external: bool) -> None:
    """What the killed process does: optimize, say so, save over the source."""
    import graphopt

    result = graphopt.optimize(str(path), oracle="off")
    print("saving", flush=True)
    graphopt.save(result.model, str(path), external_data=external)
    print("saved", flush=True)
    time.sleep(0.2)  # a kill that comes late should find this process, not miss it


def restore(original: Path, place: Path) -> None:
    """Put the old model back; strange files stay, as they would for a user."""
    for file in original.iterdir():
        shutil.copyfile(file, place / file.name)


def strangers(place: Path) -> list[str]:
    """Files that are neither the model nor data that it, or the old one, refers to."""
    from _models import data_files, load

    model = place / NAME
    known = {NAME, f"{NAME}.data", *(p.name for p in data_files(model, load(model)))}
    return sorted(p.name for p in place.iterdir() if p.name not in known)


# --- what is on disk -----------------------------------------------------------------------------


def judge(model: Path, old: str, new: str) -> tuple[str, str | None]:
    """Whether the old or the new model is there, whole; otherwise what is wrong."""
    from _equality import ort_runner

    try:
        found = digest(model)
    except Exception as error:  # unreadable in any way is what this looks for
        return "broken", f"unreadable: {type(error).__name__}: {error}"
    if found not in (old, new):
        return "broken", "neither the old nor the new content"
    try:
        ort_runner(model)({"x": np.ones((1, _WIDTH), np.float32)})
    except Exception as error:  # any reason
        return "broken", f"ONNX Runtime: {str(error)[:200]}"
    return ("old" if found == old else "new"), None


def digest(path: Path) -> str:
    """SHA-256 of a model's content: the graph, and every weight wherever it is stored."""
    model = onnx.load(str(path), load_external_data=False)
    parts: list[Callable[[], bytes]] = []
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            parts.append(lambda where=where: _read(path.parent, where))  # type: ignore[misc]
            del tensor.external_data[:]
    result = hashlib.sha256(model.SerializeToString(deterministic=True))
    for part in parts:
        result.update(part())
    return result.hexdigest()


def _read(folder: Path, where: dict[str, str]) -> bytes:
    length = int(where["length"])
    with open(folder / where["location"], "rb") as file:
        file.seek(int(where.get("offset", 0)))
        data = file.read(length)
    if len(data) != length:
        raise ValueError(f"{where['location']} is cut off")
    return data


_WIDTH = 1024


def write_model(path: Path, megabytes: int, external: bool) -> None:
    """Write a chain of MatMul, Identity, Add and Relu, 4 MB of weights a layer."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    value = "x"
    for i in range(max(1, megabytes // 4)):
        w = rng.standard_normal((_WIDTH, _WIDTH), np.float32) / _WIDTH
        b = rng.standard_normal(_WIDTH, np.float32)
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], f"matmul{i}"),
            helper.make_node("Identity", [f"m{i}"], [f"i{i}"], f"identity{i}"),
            helper.make_node("Add", [f"i{i}", f"b{i}"], [f"a{i}"], f"add{i}"),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"),
        ]
        value = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", _WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{NAME}.data")
    else:
        onnx.save(model, str(path))


if __name__ == "__main__":
    sys.exit(main())

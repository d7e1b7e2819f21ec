"""Tasks of the int8 benchmark: models with samples to calibrate on and others to be judged by."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import REPO, Child, data_dir, graphopt_cli, run_child
from _tasks import _chunks, _faces, _mnist_images
from minilm_int8 import feed, sentences
from repair import images

from graphopt.runtime import Latency, interleaved, open_session

Feeds = dict[str, Any]
Outputs = list[dict[str, Any]]

_CALIBRATION = 512
TIMEOUT = 3600.0


@dataclass(frozen=True)
class Task:
    """A model with its data.

    Attributes:
        model: The file.
        data: What ``--data`` takes; none of it is in ``batches``.
        batches: Inputs to judge by.
        inputs: Inputs to measure latency with, by their size in words.
        labels: What the rows of the first output should be, of classifiers.
        reference: What the original computes from ``batches``.
    """

    model: Path
    data: Path
    batches: list[Feeds]
    inputs: dict[str, Feeds]
    labels: np.ndarray | None = None
    reference: Outputs = field(default_factory=list)

    @property
    def name(self) -> str:
        """Stem of the model's file."""
        return self.model.stem

    @property
    def array(self) -> Path:
        """The calibration samples of a model with one input, as a .npy file."""
        return self.data.with_suffix(".npy")


def tasks(folder: Path) -> dict[str, Callable[[], Task]]:
    """All tasks by the name of the model; data are read and written when one is made."""
    digits = sorted((REPO / "models").glob("digits_*.onnx"))
    made: dict[str, Callable[[], Task]] = {}
    if (data_dir() / "models").is_dir():
        for name in ("resnet20", "resnet56", "mobilenetv2_cifar"):
            made[name] = functools.partial(_cifar, name, folder)
    for path in digits:
        made[path.stem] = functools.partial(_digits, path, folder)
    if (data_dir() / "models").is_dir():
        made["mnist"] = lambda: _mnist(folder)
        made["ultraface_rfb_320"] = lambda: _ultraface(folder)
        made["silero_vad"] = lambda: _silero(folder)
        made["minilm_l6"] = lambda: _minilm(folder)
    return made


def _shared(name: str) -> Path:
    return data_dir() / "models" / f"{name}.onnx"


def _images(
    model: Path,
    name: str,
    calibration: np.ndarray,
    pixels: np.ndarray,
    labels: np.ndarray | None,
    folder: Path,
    *,
    batch: int,
    sizes: tuple[int, ...],
) -> Task:
    """A task whose model takes images."""
    arrays: dict[str, Any] = {name: calibration}
    np.savez(folder / f"{model.stem}-calib.npz", **arrays)
    np.save(folder / f"{model.stem}-calib.npy", calibration)
    return Task(
        model=model,
        data=folder / f"{model.stem}-calib.npz",
        batches=[{name: pixels[i : i + batch]} for i in range(0, len(pixels), batch)],
        inputs={f"batch {n}": {name: pixels[:n]} for n in sizes},
        labels=labels,
    )


def _cifar(name: str, folder: Path) -> Task:
    picks = np.random.default_rng(0).permutation(50_000)[:_CALIBRATION]
    calibration, _ = images(data_dir() / "cifar10_train.npz", picks)
    pixels, labels = images(data_dir() / "cifar10_val.npz", np.arange(5000))
    return _images(
        _shared(name), "input", calibration, pixels, labels, folder, batch=100, sizes=(1, 32)
    )


def _digits(model: Path, folder: Path) -> Task:
    calibration, pixels = (
        np.load(model.parent / f"digits_{part}.npz")["image"] for part in ("calib", "test")
    )
    labels = np.load(model.parent / "digits_test_labels.npy")
    return _images(model, "image", calibration, pixels, labels, folder, batch=50, sizes=(1, 32))


def _mnist(folder: Path) -> Task:
    found, labels = _mnist_images(data_dir())
    found = found[:, 0]
    first, rest = found[:_CALIBRATION], found[_CALIBRATION:]
    return _images(
        _shared("mnist"), "Input3", first, rest, labels[_CALIBRATION:], folder, batch=1, sizes=(1,)
    )


def _ultraface(folder: Path) -> Task:
    found = np.concatenate(_faces(data_dir()))
    return _images(
        _shared("ultraface_rfb_320"), "input", found[::2], found[1::2], None, folder,
        batch=1, sizes=(1,),
    )  # fmt: skip


def _silero(folder: Path) -> Task:
    """Chunks of speech, each with the state that the original is in by then.

    The first half calibrates, the second judges: forms that were fed their own states would be
    compared on different inputs.
    """
    model = _shared("silero_vad")
    state, feeds = np.zeros((2, 1, 128), np.float32), []
    with open_session(model, optimize=True) as session:
        for chunk in _chunks(data_dir()):
            feeds.append({"input": chunk, "state": state, "sr": np.array(16000, np.int64)})
            state = session.run(feeds[-1])["stateN"]
    half = len(feeds) // 2
    picked = feeds[: half : max(1, half // _CALIBRATION)]
    data = folder / "silero_vad-calib.npz"
    arrays: dict[str, Any] = {name: np.stack([f[name] for f in picked]) for name in feeds[0]}
    np.savez(data, **arrays)
    return Task(model, data, feeds[half:], {"1 chunk": feeds[half]})


def _minilm(folder: Path) -> Task:
    data = folder / "minilm_l6-calib"
    data.mkdir()
    for i, each in enumerate(sentences(data_dir() / "minilm_calib.npz")):
        np.savez(data / f"{i}.npz", **each)
    draw = np.random.default_rng(0)
    sizes = {f"1 x {n} tokens": feed(draw.integers(1000, 30_000, (1, n))) for n in (16, 128)}
    return Task(_shared("minilm_l6"), data, sentences(data_dir() / "minilm_val.npz"), sizes)


# --- making and judging forms --------------------------------------------------------------------


def optimize(
    task: Task, output: Path, passes: str, target: str, *, blind: bool = False
) -> tuple[Child, dict[str, Any]]:
    """Run ``graphopt optimize`` in a process of its own, without samples where it is blind.

    Returns:
        How it went, and its JSON report; an empty one where it failed.
    """
    report = output.with_suffix(".json")
    command: list[str | Path] = [
        "optimize", task.model, "-o", output, "--passes", passes, "--target", target,
        "--json", report,
    ]  # fmt: skip
    command += [] if blind else ["--data", task.data]
    child = run_child(graphopt_cli(*command), timeout=TIMEOUT)
    if child.code or not report.exists():
        return child, {}
    return child, json.loads(report.read_text(encoding="utf-8"))


def outputs(path: Path, batches: list[Feeds]) -> Outputs:
    """What a model computes, as ONNX Runtime's users run it."""
    with open_session(path, optimize=True) as session:
        return [session.run(feeds) for feeds in batches]


def figures(reference: Outputs, found: Outputs, labels: np.ndarray | None) -> dict[str, float]:
    """How well outputs agree with the original's.

    Returns:
        ``sqnr_db``, of several float outputs the lowest; with labels also ``top1``, ``drop`` in
        points below the original's, and ``agree``, in percent.
    """
    ratios = []
    for name, value in reference[0].items():
        if value.dtype.kind != "f":
            continue
        pairs = [
            (a[name].astype(np.float64), b[name]) for a, b in zip(reference, found, strict=True)
        ]
        energy = math.fsum(float(np.square(a).sum()) for a, _ in pairs)
        noise = math.fsum(float(np.square(a - b).sum()) for a, b in pairs)
        ratios.append(10 * math.log10(energy / noise) if noise else math.inf)
    row = {"sqnr_db": min(ratios)}
    if labels is not None:
        first, second = _guesses(reference), _guesses(found)
        row["top1"] = 100 * float((second == labels).mean())
        row["drop"] = 100 * float((first == labels).mean()) - row["top1"]
        row["agree"] = 100 * float((first == second).mean())
    return row


def _guesses(found: Outputs) -> np.ndarray:
    rows = [next(iter(each.values())) for each in found]
    return np.concatenate([r.reshape(-1, r.shape[-1]).argmax(axis=1) for r in rows])


def latency(files: dict[str, Path], feeds: Feeds, seconds: float) -> Latency:
    """CPU time of one thread, files in turns; all are compared with the first."""
    with contextlib.ExitStack() as stack:
        runners = {
            name: functools.partial(
                stack.enter_context(open_session(path, optimize=True, threads=1)).run, feeds
            )
            for name, path in files.items()
        }
        return interleaved(runners, seconds=seconds, clock=time.thread_time)

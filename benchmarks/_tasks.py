"""What the shared real models are for: their inputs, outputs and the figure that counts."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _equality import Feeds, Runner

Outputs = list[list[Any]]


@dataclass(frozen=True)
class Job:
    """One model's task.

    Attributes:
        model: Stem of the model file.
        outputs: Runs the whole data set through a runner; at most so many samples (0: all).
        metric: The figures of a model by itself, from its outputs.
        agree: How far another model's outputs agree, as figures; ``same`` is the verdict.
        example: A typical single input, for latency.
    """

    model: str
    outputs: Callable[[Path, Runner, int], Outputs]
    metric: Callable[[Path, Outputs], dict[str, float]]
    agree: Callable[[Outputs, Outputs], dict[str, Any]]
    example: Callable[[Path], Feeds]


# --- classification ------------------------------------------------------------------------------


def _mnist_images(data: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data / "mnist_t10k_a.npz") as archive:
        return archive["images"].astype(np.float32)[:, None, None], archive["labels"]


def _mnist_outputs(data: Path, run: Runner, limit: int) -> Outputs:
    images, _ = _mnist_images(data)
    return [run({"Input3": image}) for image in images[: limit or None]]


def _mnist_metric(data: Path, outputs: Outputs) -> dict[str, float]:
    return _top1(outputs, _mnist_images(data)[1])


def _cifar_images(data: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with np.load(data / "cifar10_val.npz") as archive:
        jpeg, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]
    files = (jpeg[a:b].tobytes() for a, b in pairwise(offsets))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels


def _cifar_outputs(data: Path, run: Runner, limit: int) -> Outputs:
    images, _ = _cifar_images(data)
    images = images[: limit or None]
    return [run({"input": images[i : i + 100]}) for i in range(0, len(images), 100)]


def _cifar_metric(data: Path, outputs: Outputs) -> dict[str, float]:
    with np.load(data / "cifar10_val.npz") as archive:
        return _top1(outputs, archive["labels"])


def _top1(outputs: Outputs, labels: np.ndarray) -> dict[str, float]:
    guesses = _guesses(outputs)
    right = int((guesses == labels[: len(guesses)]).sum())
    return {"top1_percent": 100.0 * right / len(guesses), "samples": len(guesses)}


def _guesses(outputs: Outputs) -> np.ndarray:
    return np.concatenate([np.argmax(o[0], axis=-1).reshape(-1) for o in outputs])


def _classes_agree(a: Outputs, b: Outputs) -> dict[str, Any]:
    same = _guesses(a) == _guesses(b)
    return {"prediction_agreement_percent": 100.0 * float(same.mean()), "same": bool(same.all())}


# --- faces ---------------------------------------------------------------------------------------


def _faces(data: Path) -> list[np.ndarray]:
    from PIL import Image

    images = []
    for path in sorted((data / "faces").glob("*.jpg")):
        image = Image.open(path).convert("RGB").resize((320, 240))
        pixels = (np.asarray(image, np.float32) - 127) / 128
        images.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    return images


def _faces_outputs(data: Path, run: Runner, limit: int) -> Outputs:
    return [run({"input": image}) for image in _faces(data)[: limit or None]]


def boxes(
    scores: np.ndarray, corners: np.ndarray, threshold: float = 0.7, overlap: float = 0.5
) -> np.ndarray:
    """Faces after greedy non-maximum suppression.

    Args:
        scores: Face probabilities, one per candidate.
        corners: Candidates as x1, y1, x2, y2 in 0 to 1; shape (candidates, 4).
        threshold: Least probability.
        overlap: Most intersection over union with a better candidate.

    Returns:
        Array (faces, 5): corners and score, best first.
    """
    chosen: list[int] = []
    area = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    candidates = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > threshold]
    for i in candidates:
        clear = True
        for j in chosen:
            size = np.maximum(
                np.minimum(corners[i, 2:], corners[j, 2:])
                - np.maximum(corners[i, :2], corners[j, :2]),
                0,
            ).prod()
            clear = clear and size <= overlap * (area[i] + area[j] - size)
        if clear:
            chosen.append(i)
    return np.concatenate([corners[chosen], scores[chosen, None]], axis=1)


def _all_boxes(outputs: Outputs) -> list[np.ndarray]:
    return [boxes(o[0][0, :, 1], o[1][0]) for o in outputs]


def _faces_metric(data: Path, outputs: Outputs) -> dict[str, float]:
    return {"faces": sum(len(found) for found in _all_boxes(outputs)), "images": len(outputs)}


def _faces_agree(a: Outputs, b: Outputs) -> dict[str, Any]:
    first, second = _all_boxes(a), _all_boxes(b)
    if [len(x) for x in first] != [len(y) for y in second]:
        return {"same": False, "worst_corner": None}
    worst = max(
        (float(np.abs(x - y).max()) for x, y in zip(first, second, strict=True) if len(x)),
        default=0.0,
    )
    return {"same": worst < 1e-4, "worst_corner": worst}


# --- voice activity ------------------------------------------------------------------------------


def _chunks(data: Path) -> list[np.ndarray]:
    """Chunks of 512 samples, each after the last 64 of the one before."""
    with wave.open(str(data / "speech_16k.wav")) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        samples = raw.reshape(-1, file.getnchannels())[:, 0].astype(np.float32) / 32768
    padded = np.concatenate([np.zeros(64, np.float32), samples])
    count = len(samples) // 512
    return [padded[None, i * 512 : i * 512 + 576] for i in range(count)]


def _voice_outputs(data: Path, run: Runner, limit: int) -> Outputs:
    state = np.zeros((2, 1, 128), np.float32)
    results: Outputs = []
    for chunk in _chunks(data)[: limit or None]:
        answer, state = run({"input": chunk, "state": state, "sr": np.array(16000, np.int64)})
        results.append([answer, state])
    return results


def _voice_metric(data: Path, outputs: Outputs) -> dict[str, float]:
    voiced = [float(o[0].reshape(-1)[0]) > 0.5 for o in outputs]
    return {"speech_percent": 100.0 * sum(voiced) / len(voiced), "chunks": len(voiced)}


def _voice_agree(a: Outputs, b: Outputs) -> dict[str, Any]:
    worst = max(float(np.abs(x[0] - y[0]).max()) for x, y in zip(a, b, strict=True))
    same = all((x[0] > 0.5) == (y[0] > 0.5) for x, y in zip(a, b, strict=True))
    return {"same": bool(same) and worst < 1e-3, "worst_probability_change": worst}


# --- sentences -----------------------------------------------------------------------------------


def _sentences(data: Path) -> list[Feeds]:
    with np.load(data / "minilm_val.npz") as archive:
        ids, offsets = archive["token_ids"].astype(np.int64), archive["offsets"]
    feeds = []
    for a, b in pairwise(offsets):
        row = ids[None, a:b]
        feeds.append(
            {
                "input_ids": row,
                "attention_mask": np.ones_like(row),
                "token_type_ids": np.zeros_like(row),
            }
        )
    return feeds


def _sentence_outputs(data: Path, run: Runner, limit: int) -> Outputs:
    return [run(feeds) for feeds in _sentences(data)[: limit or None]]


def _embeddings(outputs: Outputs) -> np.ndarray:
    pooled = np.concatenate([o[0].mean(axis=1) for o in outputs]).astype(np.float64)
    return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


def _sentence_metric(data: Path, outputs: Outputs) -> dict[str, float]:
    vectors = _embeddings(outputs)
    similar = vectors @ vectors.T
    off = similar[~np.eye(len(similar), dtype=bool)]
    return {"mean_similarity": float(off.mean()), "sentences": len(vectors)}


def _sentence_agree(a: Outputs, b: Outputs) -> dict[str, Any]:
    cosine = (_embeddings(a) * _embeddings(b)).sum(axis=1)
    return {"same": bool(cosine.min() > 1 - 1e-6), "least_cosine": float(cosine.min())}


# --- the table -----------------------------------------------------------------------------------


def _cifar(model: str) -> Job:
    return Job(
        model, _cifar_outputs, _cifar_metric, _classes_agree,
        lambda data: {"input": _cifar_images(data)[0][:1]},
    )  # fmt: skip


def _voice_example(data: Path) -> Feeds:
    state = np.zeros((2, 1, 128), np.float32)
    return {"input": _chunks(data)[0], "state": state, "sr": np.array(16000, np.int64)}


JOBS = (
    Job(
        "mnist",
        _mnist_outputs,
        _mnist_metric,
        _classes_agree,
        lambda d: {"Input3": _mnist_images(d)[0][0]},
    ),
    _cifar("resnet20"),
    _cifar("resnet56"),
    _cifar("mobilenetv2_cifar"),
    Job(
        "ultraface_rfb_320",
        _faces_outputs,
        _faces_metric,
        _faces_agree,
        lambda d: {"input": _faces(d)[0]},
    ),
    Job("silero_vad", _voice_outputs, _voice_metric, _voice_agree, _voice_example),
    Job(
        "minilm_l6",
        _sentence_outputs,
        _sentence_metric,
        _sentence_agree,
        lambda d: _sentences(d)[0],
    ),
)

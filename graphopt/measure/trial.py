"""Trying forms of a model on samples: how much noise they add to what the original computes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.runtime import Feeds, batch_size, open_session

__all__ = ["Quality", "Trial", "decibels", "difference", "square"]

_WORKERS = 2
# Variants after which the memory of earlier ones is given back.
_FREED = 8


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well outputs agree with the original's, over all samples tried.

    Attributes:
        sqnr_db: Ratio of the energy of the original's outputs to that of the difference, in dB; of
            several outputs the lowest.
        cosine: Mean cosine of the angle between vectors along the last axis; of a vector of zeros
            it is 1 with another of zeros, and 0 with others.
        agreement: Share of the rows of ``[rows, classes]`` outputs whose largest element is at the
            same place; None where there are no such outputs.
        samples: Number of samples.
    """

    sqnr_db: float
    cosine: float
    agreement: float | None
    samples: int

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data; an infinite ratio is None."""
        ratio = None if math.isinf(self.sqnr_db) else self.sqnr_db
        return {**dataclasses.asdict(self), "sqnr_db": ratio}

    def __str__(self) -> str:
        """The figures as a person reads them."""
        share = "" if self.agreement is None else f", {100 * self.agreement:.2f} % same predictions"
        return f"SQNR {self.sqnr_db:.1f} dB, cosine {self.cosine:.5f}{share}"


class Trial:
    """The original's outputs on some batches, and comparisons with them.

    Elements that are NaN or infinite in the original do not count where they are the same in the
    other; where they differ, or an output has another shape, the noise is infinite.

    ONNX Runtime optimizes the models as it does for users, so that integer kernels are tried and
    not their simulation.

    Attributes:
        batches: The inputs.
        finite: Whether the original computes no NaN and no infinity.
        silent: Whether all that it computes is zero, which no noise compares with.
    """

    def __init__(self, model: ir.Model, batches: Iterable[Feeds]) -> None:
        """Run the original.

        Raises:
            CalibrationError: There are no batches, or no output is a float tensor.
            SessionError: ONNX Runtime does not run the model.
        """
        self.batches = list(batches)
        if not self.batches:
            raise CalibrationError("there are no samples to try the model on")
        self._reference = self._outputs(model)
        self._names = [
            name
            for name, value in self._reference[0].items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        ]
        if not self._names:
            raise CalibrationError("the model has no float output to compare")
        self.finite = all(np.isfinite(r[n]).all() for r in self._reference for n in self._names)
        self._energy = {
            n: math.fsum(square(_finite(r[n])) for r in self._reference) for n in self._names
        }
        self.silent = not any(self._energy.values())

    def noise(self, model: ir.Model) -> float:
        """Energy of the difference in units of the original's, averaged over the outputs."""
        found = self._outputs(model)
        shares = [
            self._noise(name, found) / max(self._energy[name], 1e-300) for name in self._names
        ]
        return float(np.mean(shares))

    def noises(self, build: Callable[[Any], ir.Model], variants: Sequence[Any]) -> list[float]:
        """Noise of several forms of the model, two of them at a time.

        Args:
            build: Makes a model of a variant; called in this thread.
            variants: What ``build`` takes.
        """
        out: list[float] = []
        with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
            pending: list[concurrent.futures.Future[float]] = []
            for i, each in enumerate(variants):
                pending.append(pool.submit(self.noise, build(each)))
                if len(pending) > 2 * _WORKERS:
                    out.append(pending.pop(0).result())
                if i % _FREED == _FREED - 1:
                    # A graph and its nodes refer to each other, and the collector may be paused.
                    gc.collect()
            out += [future.result() for future in pending]
        return out

    def quality(self, model: ir.Model) -> Quality:
        """Compare a model with the original."""
        found = self._outputs(model)
        ratios: list[float] = []
        cosines: list[Any] = [np.ones(0)]
        same: list[Any] = []
        for name in self._names:
            energy, noise = self._energy[name], self._noise(name, found)
            ratios.append(decibels(energy, noise))
            for one, other in zip(self._reference, found, strict=True):
                fits = one[name].shape == other[name].shape
                a = _rows(one[name])
                b = _rows(other[name]) if fits else np.full_like(a, np.nan)
                cosines.append(_cosines(_finite(a), _finite(b)))
                if one[name].ndim == 2 and one[name].shape[1] > 1:
                    same.append((a.argmax(axis=1) == b.argmax(axis=1)) & fits)
        angles, agree = np.concatenate(cosines), np.concatenate([np.ones(0), *same])
        return Quality(
            min(ratios),
            float(angles.mean()) if angles.size else 1.0,
            float(agree.mean()) if agree.size else None,
            sum(map(batch_size, self.batches)),
        )

    def _outputs(self, model: ir.Model) -> list[dict[str, Any]]:
        with open_session(model, optimize=True, threads=1) as session:
            return [session.run(feeds) for feeds in self.batches]

    def _noise(self, name: str, found: Sequence[dict[str, Any]]) -> float:
        parts = [difference(a[name], b[name]) for a, b in zip(self._reference, found, strict=True)]
        return math.fsum(parts) if all(map(math.isfinite, parts)) else math.inf


def square(array: Any) -> float:
    """Energy of an array."""
    flat = np.asarray(array, np.float64).reshape(-1)
    return float(flat @ flat)


def difference(one: Any, other: Any) -> float:
    """Energy of the difference; infinite where the two do not compare."""
    if one.shape != other.shape:
        return math.inf
    odd = ~(np.isfinite(one) & np.isfinite(other))
    if odd.any() and not np.array_equal(one[odd], other[odd], equal_nan=True):
        return math.inf
    return square(_finite(one) - _finite(other))


def _finite(array: Any) -> Any:
    """An array with 0 for what is not finite."""
    wide = np.asarray(array, np.float64)
    return np.where(np.isfinite(wide), wide, 0.0)


def decibels(energy: float, noise: float) -> float:
    """Ratio of energies in dB; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if energy > 0 and noise < math.inf else -math.inf


def _cosines(a: Any, b: Any) -> Any:
    one, other = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    norms = one * other
    product = np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0)
    return np.where((one == 0) & (other == 0), 1.0, product)


def _rows(array: Any) -> Any:
    wide = np.asarray(array, np.float64)
    last = wide.shape[-1] if wide.ndim else 1
    return wide.reshape(math.prod(wide.shape[:-1]), last)

"""Trying forms of a model on samples: how much noise they add to what the original computes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.runtime import Feeds, open_session

__all__ = ["Quality", "Trial"]

_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well outputs agree with the original's, over all samples tried.

    Attributes:
        sqnr_db: Ratio of the energy of the original's outputs to that of the difference, in dB; of
            several outputs the lowest.
        cosine: Mean cosine of the angle between vectors along the last axis.
        agreement: Share of the rows of ``[rows, classes]`` outputs whose largest element is at the
            same place; None where there are no such outputs.
        samples: Number of rows, or of batches where outputs have none.
    """

    sqnr_db: float
    cosine: float
    agreement: float | None
    samples: int

    def __str__(self) -> str:
        """The figures as a person reads them."""
        share = "" if self.agreement is None else f", {100 * self.agreement:.2f} % same predictions"
        return f"SQNR {self.sqnr_db:.1f} dB, cosine {self.cosine:.5f}{share}"


class Trial:
    """The original's outputs on some batches, and comparisons with them.

    ONNX Runtime optimizes the models as it does for users, so that integer kernels are tried and
    not their simulation.

    Attributes:
        batches: The inputs.
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
        self._energy = {n: _total(_square(r[n]) for r in self._reference) for n in self._names}

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
            for each in variants:
                pending.append(pool.submit(self.noise, build(each)))
                if len(pending) > 2 * _WORKERS:
                    out.append(pending.pop(0).result())
            out += [future.result() for future in pending]
        return out

    def quality(self, model: ir.Model) -> Quality:
        """Compare a model with the original."""
        found = self._outputs(model)
        ratios, cosines, same, rows = [], [], [], 0
        for name in self._names:
            energy, noise = self._energy[name], self._noise(name, found)
            ratios.append(math.inf if noise == 0 else 10 * math.log10(max(energy, 1e-300) / noise))
            for one, other in zip(self._reference, found, strict=True):
                a, b = (_rows(v[name]) for v in (one, other))
                norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
                product = np.einsum("ij,ij->i", a, b)
                cosines.append(np.where(norms > 0, product / np.maximum(norms, 1e-300), 1.0))
                if one[name].ndim == 2 and one[name].shape[1] > 1:
                    same.append(a.argmax(axis=1) == b.argmax(axis=1))
                    rows += len(a)
        return Quality(
            min(ratios),
            float(np.mean(np.concatenate(cosines))),
            float(np.mean(np.concatenate(same))) if same else None,
            rows or len(self.batches),
        )

    def _outputs(self, model: ir.Model) -> list[dict[str, Any]]:
        with open_session(model, optimize=True, threads=1) as session:
            return [session.run(feeds) for feeds in self.batches]

    def _noise(self, name: str, found: Sequence[dict[str, Any]]) -> float:
        return _total(
            _square(np.subtract(a[name], b[name], dtype=np.float64))
            for a, b in zip(self._reference, found, strict=True)
        )


def _square(array: Any) -> float:
    flat = np.asarray(array, np.float64).reshape(-1)
    return float(flat @ flat)


def _total(parts: Iterable[float]) -> float:
    total = math.fsum(parts)
    return total if math.isfinite(total) else math.inf


def _rows(array: Any) -> Any:
    flat = np.asarray(array, np.float64)
    return flat.reshape(-1, flat.shape[-1] if flat.ndim else 1)

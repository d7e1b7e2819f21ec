"""How few values each constant gets: as many for all, or where they cost the outputs least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt import NotApplicable, Rewriter, ir
from graphopt.measure import Trial, allocate
from graphopt.passes.sharing._constants import Constant
from graphopt.passes.sharing._plain import errors, tensor_of
from graphopt.pruning.batches import first
from graphopt.reconstruct.layers import layers
from graphopt.reconstruct.problem import Problem
from graphopt.reconstruct.rebuild import rebuild
from graphopt.runtime import Feeds
from graphopt.sharing.level import Level, interpolated
from graphopt.sharing.problems import shared_layer, with_bias

__all__ = ["Choice", "Curves", "uniform"]

Array = np.ndarray[Any, Any]

# Numbers of values whose places fill bytes well; 0 is floats of 16 bits.
_ENTRIES = (2, 3, 4, 5, 6, 7, 9, 10, 16, 21, 40, 73, 256, 0)
# Numbers of values whose errors are computed; others follow from them. As many as 16-bit floats are
# as good as.
_COMPUTED, _AS_MANY = (2, 3, 4, 6, 9, 16), 2048
# Numbers of vectors.
_VECTORS = (16, 40, 73, 256)
# Rows that share a book, where that is left to us; finer books pay where there are few values.
_BLOCK, _COARSE = 8, 6
# The level that each constant is tried at alone.
_REFERENCE = Level(6)
# Samples that the noise at the outputs is measured on: it only has to rank constants. They are of
# this part of the batches, which weights are not fitted to.
_SAMPLES, _PART = 128, 4
# Noise beyond this is all the same.
_MOST = 1e30
# How exactly the fewest bytes for some noise are found: a thousandth of the model.
_BISECTIONS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """A constant and what it gets.

    Attributes:
        constant: The constant.
        level: How many values.
        noise: What this alone adds to the outputs in units of their energy, as far as known.
        same: Classes of output channels that get the same weights, or None.
    """

    constant: Constant
    level: Level
    noise: float | None = None
    same: Array | None = None

    @property
    def nbytes(self) -> float:
        """Bytes that it takes then, about."""
        return _nbytes(self.constant, self.level)


def uniform(
    found: Sequence[Constant], entries: int, block: int | None, vector: int
) -> list[Choice]:
    """As many values for all."""
    return [
        Choice(
            each,
            Level(entries, 0, vector)
            if _vectors(each, vector)
            else Level(entries, _block(each, block or 0)),
        )
        for each in found
    ]


class Curves:
    """What levels of each constant cost the outputs, and in bytes.

    The error that few values make in what a layer computes follows from the moments of its inputs;
    what it does to the outputs is measured, with few values in this constant alone.
    """

    def __init__(
        self, model: ir.Model, found: Sequence[Constant], batches: Sequence[Feeds],
        block: int | None, vector: int, threads: int,
    ) -> None:  # fmt: skip
        """Measure.

        Args:
            model: The model.
            found: Its constants.
            batches: Samples; without any, the errors of the numbers themselves are compared.
            block: Rows that share a book, None for what is best.
            vector: Elements of the vectors that constants may consist of which are not fitted.
            threads: Threads within an operator.
        """
        self._found = found
        self._levels = [_levels(each, block, vector) for each in found]
        curves, noises = _measured(model, found, self._levels, batches, threads)
        self._total = ir.nbytes(model)
        self._others = self._total - sum(each.tensor.nbytes for each in found)
        self._sizes = [
            np.array([_nbytes(each, level) for level in some])
            for each, some in zip(found, self._levels, strict=True)
        ]
        self._noise = [
            noise * curve / max(float(curve[some.index(_reference(each, some))]), 1e-300)
            for each, some, curve, noise in zip(found, self._levels, curves, noises, strict=True)
        ]

    def for_bytes(self, share: float) -> list[Choice]:
        """The levels at which outputs change least for a share of the model's bytes.

        Raises:
            NotApplicable: The bytes are too few.
        """
        picked = self._picked(share)
        if (least := self._left(picked)) > share:
            raise NotApplicable(
                f"bytes={share:g} is too little: 2 values for each constant leave {least:.3g} of "
                "the model; raise it, or let sparsify{code=false} make zeros before"
            )
        return self._choices(picked)

    def for_noise(self, most: float) -> list[Choice]:
        """The fewest bytes for some noise at the outputs, in units of their energy.

        Where the noise is less than 16-bit floats or 256 values make, these are it.
        """
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            picked = self._picked(middle)
            if self._left(picked) <= middle and self._sum(picked) <= most:
                high = middle
            else:
                low = middle
        return self._choices(self._picked(high))

    def _picked(self, share: float) -> list[int]:
        saved = [
            (each.tensor.nbytes - size) / self._total
            for each, size in zip(self._found, self._sizes, strict=True)
        ]
        return allocate(self._noise, saved, self._left, share)

    def _left(self, places: Sequence[int]) -> float:
        taken = sum(float(size[at]) for size, at in zip(self._sizes, places, strict=True))
        return (self._others + taken) / self._total

    def _sum(self, places: Sequence[int]) -> float:
        return sum(float(noise[at]) for noise, at in zip(self._noise, places, strict=True))

    def _choices(self, places: Sequence[int]) -> list[Choice]:
        return [
            Choice(each, some[at], float(noise[at]))
            for each, some, noise, at in zip(
                self._found, self._levels, self._noise, places, strict=True
            )
        ]


def _levels(constant: Constant, block: int | None, vector: int) -> list[Level]:
    """What a constant may get."""
    one = _block(constant, block or 0)
    found = [Level(entries, one) for entries in _ENTRIES]
    fine = _block(constant, _BLOCK) if block is None and constant.layer is not None else 0
    if fine and fine < constant.rows:
        found += [Level(entries, fine) for entries in _ENTRIES if 0 < entries <= _COARSE]
    if _vectors(constant, vector):
        found += [Level(entries, 0, vector) for entries in _VECTORS]
    return found


def _vectors(constant: Constant, vector: int) -> bool:
    """Whether a constant can consist of few vectors."""
    fitted = constant.layer is not None or constant.whole or constant.listed is not None
    return vector > 1 and not fitted and constant.columns % vector == 0


def _curve(levels: Sequence[Level], error: Callable[[Level], float]) -> Array:
    """The error at each level, computed at some."""
    found = {level: error(level) for level in levels if _computed(level)}
    out = []
    for level in levels:
        alike = {
            each.entries: wrong for each, wrong in found.items()
            if (each.block, each.unit) == (level.block, level.unit)
        }  # fmt: skip
        out.append(interpolated(alike, level.entries or _AS_MANY))
    return np.array(out)


def _computed(level: Level) -> bool:
    return level.unit > 1 or level.entries in _COMPUTED


def _errors(constant: Constant, levels: Sequence[Level]) -> Array:
    """Errors of the numbers themselves."""
    few = [level for level in levels if _computed(level)]
    known = dict(zip(few, errors(constant, few), strict=True))
    return _curve(levels, lambda level: float(known[level]))


def _reference(constant: Constant, levels: Sequence[Level]) -> Level:
    return next(level for level in levels if level.entries == _REFERENCE.entries)


def _block(constant: Constant, block: int) -> int:
    """Rows that share a book, such that all books have as many."""
    if constant.layer is not None and constant.layer.transposed:
        return 0  # its outputs do not lie one after the other, as codes want them
    return block if block and constant.rows % block == 0 else 0


def _nbytes(constant: Constant, level: Level) -> float:
    if not level.entries and constant.whole:
        return float(constant.tensor.nbytes)
    return level.nbytes(constant.rows, constant.columns, constant.listed)


def _measured(
    model: ir.Model, found: Sequence[Constant], levels: Sequence[Sequence[Level]],
    batches: Sequence[Feeds], threads: int,
) -> tuple[list[Array], list[float]]:  # fmt: skip
    """Errors of each constant at its levels, and the noise at its reference."""
    if not batches:
        curves = [_errors(each, some) for each, some in zip(found, levels, strict=True)]
        return curves, [
            float(curve[some.index(_reference(each, some))])
            for each, some, curve in zip(found, levels, curves, strict=True)
        ]
    start = len(batches) - max(len(batches) // _PART, 1) if len(batches) > 1 else 1
    at = {each.layer.name: i for i, each in enumerate(found) if each.layer is not None}
    known: dict[int, Array] = {}
    weights: dict[int, Array] = {}

    def look(problem: Problem) -> None:
        i = at[problem.layer.name]
        reference = _reference(found[i], levels[i])

        def error(level: Level) -> float:
            made = with_bias(problem, shared_layer(problem, level, rounds=0))
            if level == reference:
                weights[i] = made
            return max(problem.error(made), 0.0)

        known[i] = _curve(levels[i], error)

    rebuild(
        model, ir.clone(model), batches[:start], look, wanted=lambda layer: layer.name in at,
        only=lambda layer: layer.name in at, threads=threads,
    )  # fmt: skip
    for i, each in enumerate(found):
        if i not in known:
            known[i] = _errors(each, levels[i])
    trial = Trial(model, first(batches[start:] or batches, _SAMPLES))

    def alone(i: int) -> ir.Model:
        changed = ir.clone(model)
        rw = Rewriter(changed)
        fitted = found[i].layer
        if fitted is not None and i in weights:
            (layer,) = (each for each in layers(changed) if each.name == fitted.name)
            k = layer.columns
            bias = weights[i][:, k] if layer.takes_bias else None
            layer.write(rw, weights[i][:, :k].transpose(0, 2, 1), bias)
        else:
            value = changed.graph.initializers[found[i].name]
            reference = _reference(found[i], levels[i])
            rw.replace(value, rw.const(tensor_of(found[i], reference), found[i].name))
        rw.remove_initializers()
        return changed

    noises = np.minimum(trial.noises(alone, range(len(found))), _MOST)
    return [known[i] for i in range(len(found))], noises.tolist()

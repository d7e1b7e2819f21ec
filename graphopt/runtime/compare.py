"""Comparing the outputs of two models, as strictly as what was promised about them."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt.runtime.values import Array

__all__ = ["Comparison", "Tolerance", "compare", "merge", "promised", "tolerance"]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far rounding may move a value: ``|a - b| <= relative*|a| + scaled*rms(a) + absolute``.

    Attributes:
        relative: Relative to the element.
        scaled: Relative to the root mean square of the whole output, since an element near zero
            carries the rounding errors of the larger terms it is the sum of.
        absolute: For outputs that cancel to zero from values of order one.
    """

    relative: float
    scaled: float
    absolute: float


# Fusing and reordering move the outputs of real float32 models by up to 5e-6 of their root mean
# square; leaving out the epsilon of a batch normalization moves them by 5e-4.
_TOLERANCES = {
    "float64": Tolerance(1e-7, 1e-8, 1e-12),
    "float32": Tolerance(1e-4, 1e-4, 1e-6),
    "float16": Tolerance(1e-2, 5e-3, 1e-4),
    "bfloat16": Tolerance(5e-2, 3e-2, 1e-3),
    "float8": Tolerance(0.25, 0.125, 1e-2),
}
_NAMES = {"complex64": "float32", "complex128": "float64"}

# Of a large integer or boolean output, this fraction of the elements may differ under ROUNDING: the
# ties of an ArgMax, a comparison or a quantization step, where the last bit decides.
_TIES = 1e-3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Outcome of comparing outputs.

    Attributes:
        ok: Whether the promise holds.
        worst_output: The output that breaks it or, if none does, that differs most; an element of a
            sequence is spelled ``name[0]``.
        max_abs: Largest absolute difference over all floating-point outputs.
        max_rel: Largest difference in units of the root mean square of its output.
        sqnr_db: Lowest signal-to-noise ratio over all floating-point outputs, in dB; infinite where
            nothing differs.
        reason: Why it does not hold, or None.
    """

    ok: bool
    worst_output: str | None = None
    max_abs: float = 0.0
    max_rel: float = 0.0
    sqnr_db: float = math.inf
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON, an infinite ratio as None."""
        data = dataclasses.asdict(self)
        for key in ("max_abs", "max_rel", "sqnr_db"):
            if not math.isfinite(data[key]):
                data[key] = None
        return data


def promised(exactness: str | enum.Enum) -> str:
    """An ``Exactness`` or its value as text."""
    return str(exactness.value if isinstance(exactness, enum.Enum) else exactness).lower()


def tolerance(dtype: str) -> Tolerance | None:
    """What rounding may move elements of a NumPy type by, or None for types that do not round."""
    if dtype.startswith("float8") or dtype.startswith("float4"):
        dtype = "float8"
    return _TOLERANCES.get(_NAMES.get(dtype, dtype))


def compare(
    reference: Mapping[str, Any],
    got: Mapping[str, Any],
    exactness: str | enum.Enum,
    *,
    coarsest: str | None = None,
) -> Comparison:
    """Compare outputs of a changed model with those of its original.

    Names, kinds, shapes and element types must agree whatever was promised. Beyond that:

    * ``bitwise``: every element is the same. All NaNs count as one value, since which payload
      survives is the processor's choice; and 0.0 equals -0.0, which IEEE 754 calls equal and which
      identities such as x+0 = x do not preserve.
    * ``rounding``: floating-point elements agree within :func:`tolerance`, infinities and NaNs are
      in the same places; strings and integers are the same (of 1,000 integers or booleans one may
      differ, where the last bit of a float decided a tie).
    * ``lossy``: outputs are finite wherever the reference is; the ratio of signal to noise is only
      reported.

    Args:
        reference: Outputs of the original, by name.
        got: Outputs of the changed model, by name.
        exactness: An ``Exactness`` or its value: "bitwise", "rounding" or "lossy".
        coarsest: NumPy name of the coarsest float type that the model computes in. A float32 output
            of a model that computes in float16 is only as good as float16.

    Raises:
        ValueError: ``exactness`` is none of the three.
    """
    promise = promised(exactness)
    if promise not in ("bitwise", "rounding", "lossy"):
        raise ValueError(f"unknown exactness {promise!r}")
    if reference.keys() != got.keys():
        odd = sorted(reference.keys() ^ got.keys())
        return Comparison(False, odd[0], reason=f"output {odd[0]!r} is missing or new")
    floor = None if coarsest is None else tolerance(coarsest)
    return merge(
        _leaf(name, a, b, promise, floor)
        for key in reference
        for name, a, b in _leaves(key, reference[key], got[key])
    )


def merge(parts: Iterable[Comparison]) -> Comparison:
    """The outcome of several comparisons as one: the first failure, the worst of the numbers."""
    found = list(parts)
    if not found:
        return Comparison(True)
    failed = [c for c in found if not c.ok]
    worst = failed[0] if failed else max(found, key=lambda c: c.max_rel)
    return Comparison(
        not failed,
        worst.worst_output,
        max(c.max_abs for c in found),
        max(c.max_rel for c in found),
        min(c.sqnr_db for c in found),
        worst.reason,
    )


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of arrays; a difference in structure comes out as a pair of strings that tell it."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            yield name, f"a sequence of {len(a)}", f"a sequence of {len(b)}"
            return
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _leaves(f"{name}[{i}]", x, y)
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield name, f"a map with keys {sorted(a)}", f"a map with keys {sorted(b)}"
            return
        for k in a:
            yield from _leaves(f"{name}[{k!r}]", a[k], b[k])
    elif a is None and b is None:
        return
    elif _kind(a) != _kind(b):
        yield name, _kind(a), _kind(b)
    else:
        yield name, np.asarray(a), np.asarray(b)


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, (list, tuple)):
        return "a sequence"
    return "a map" if isinstance(value, dict) else "a tensor"


def _leaf(name: str, a: Any, b: Any, promise: str, floor: Tolerance | None) -> Comparison:
    if isinstance(a, str):
        return Comparison(False, name, reason=f"{name} is {b}, was {a}")
    if a.dtype != b.dtype and not (a.dtype.kind in "OUT" and b.dtype.kind in "OUT"):
        return Comparison(False, name, reason=f"{name} is of type {b.dtype}, was {a.dtype}")
    if a.shape != b.shape:
        return Comparison(
            False, name, reason=f"{name} is of shape {list(b.shape)}, was {list(a.shape)}"
        )
    allowed = tolerance(a.dtype.name)
    if allowed is None:
        return _exact(name, a, b, promise)
    if floor is not None and floor.relative > allowed.relative:
        allowed = floor
    return _floats(name, a, b, promise, allowed)


def _exact(name: str, a: Array, b: Array, promise: str) -> Comparison:
    differing = np.flatnonzero(np.asarray(a != b))
    if differing.size == 0:
        return Comparison(True, name)
    ties = 0 if a.dtype.kind in "OUT" or promise == "bitwise" else int(a.size * _TIES)
    if promise == "lossy" or differing.size <= ties:
        return Comparison(True, name, max_rel=differing.size / a.size)
    i = int(differing[0])
    was, now = a.reshape(-1)[i], b.reshape(-1)[i]
    few = f"; {differing.size} of {a.size} elements differ" if a.size > 1 else ""
    return Comparison(False, name, reason=f"{name}{_at(a, i)} is {now!s}, was {was!s}{few}")


def _floats(name: str, a: Array, b: Array, promise: str, allowed: Tolerance) -> Comparison:
    if promise == "bitwise" and a.tobytes() == b.tobytes():
        return Comparison(True, name)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide).reshape(-1), b.astype(wide).reshape(-1)
    with np.errstate(all="ignore"):
        finite = np.isfinite(x)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        odd = ~np.isfinite(y) & finite if promise == "lossy" else (finite != np.isfinite(y))
        odd |= ~finite & ~same if promise != "lossy" else False
        both = finite & np.isfinite(y)
        error = np.where(both, np.abs(x - y), 0.0)
        power = _mean_square(x, both)
        noise = _mean_square(error, both)
    rms = math.sqrt(power)
    worst = float(error.max(initial=0.0))
    relative = worst / rms if rms > 0 else (0.0 if worst == 0 else math.inf)
    sqnr = math.inf if noise == 0 else 10 * math.log10(power / noise) if power > 0 else -math.inf
    if odd.any():
        i = int(np.flatnonzero(odd)[0])
        why = f"{name}{_at(a, i)} is {y[i]}, was {x[i]}"
        return Comparison(False, name, worst, relative, sqnr, why)
    if promise == "bitwise":
        broken, limit = ~same, "the same bits were promised"
    elif promise == "rounding":
        bound = allowed.relative * np.abs(x) + allowed.scaled * rms + allowed.absolute
        broken, limit = both & (error > bound), "more than rounding"
    else:
        broken, limit = np.zeros(x.shape, bool), ""
    if not broken.any():
        return Comparison(True, name, worst, relative, sqnr)
    i = int(np.argmax(np.where(broken, error, -1.0)))
    why = (
        f"{name}{_at(a, i)} is {y[i]:.9g}, was {x[i]:.9g} "
        f"({limit}; {int(broken.sum())} of {x.size} elements)"
    )
    return Comparison(False, name, worst, relative, sqnr, why)


def _mean_square(x: Array, where: Array) -> float:
    count = int(where.sum())
    total = float(np.sum(np.square(np.abs(x)), where=where))
    # The square of a value beyond 1e154 overflows; such outputs are compared element by element.
    return total / count if count and math.isfinite(total) else 0.0


def _at(a: Array, flat: int) -> str:
    return str([int(i) for i in np.unravel_index(flat, a.shape)]) if a.ndim else ""

"""Batches of model inputs, and what they have to be like."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import InputSpec
from graphopt.runtime.values import Array, Feeds, element_type

__all__ = ["Batches", "Samples", "check_convertible", "check_named"]

Batches: TypeAlias = Callable[[], Iterator[tuple[str, Feeds]]]


class Samples:
    """Batches of model inputs. They are read and checked anew whenever they are iterated over.

    Attributes:
        source: The path they come from.
        count: Number of samples, or None where batches are files and nobody has counted.
        remarks: Conversions made and data left out.
    """

    def __init__(
        self,
        source: str,
        specs: Sequence[InputSpec],
        batches: Batches,
        length: int,
        *,
        count: int | None,
        remarks: Sequence[str] = (),
    ) -> None:
        self.source, self.count, self.remarks = source, count, list(remarks)
        self._specs, self._batches, self._length = tuple(specs), batches, length

    @property
    def divisible(self) -> bool:
        """Whether the model takes batches of any size: the first dimension of inputs is free."""
        firsts = {spec.dims[0] if spec.dims else 1 for spec in self._specs}
        return len(firsts) == 1 and not isinstance(firsts.pop(), int)

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    def __iter__(self) -> Iterator[Feeds]:
        """Iterate over batches, each a dict of arrays by input name.

        Raises:
            CalibrationError: A value does not fit the model's inputs; file and sample are named.
        """
        for _, feeds in self.named():
            yield feeds

    def first(self, count: int) -> Samples:
        """The first batches, at most ``count`` of them."""
        return Samples(
            self.source,
            self._specs,
            lambda: itertools.islice(self._batches(), count),
            min(count, len(self)),
            count=None,
            remarks=self.remarks,
        )

    def named(self) -> Iterator[tuple[str, Feeds]]:
        """Iterate over batches, each with words on where it comes from, for messages.

        Raises:
            CalibrationError: As for iterating.
        """
        for where, feeds in self._batches():
            yield where, _checked(feeds, self._specs, where, self.remarks)


def check_named(
    names: Sequence[str], specs: Sequence[InputSpec], where: str, remarks: list[str]
) -> None:
    """Check that there is an array for every input."""
    for spec in specs:
        if spec.name in names or spec.type.startswith("optional("):
            continue
        near = difflib.get_close_matches(spec.name, names, 1)
        hint = f"; did you mean to name {near[0]!r} so?" if near else ""
        listed = ", ".join(map(repr, names)) or "nothing"
        raise CalibrationError(
            f"{where} has no array for input {spec.name!r}, it holds {listed}{hint}"
        )
    inputs = {s.name for s in specs}
    _remark(
        remarks, *(f"array {n!r} is no input and is not used" for n in names if n not in inputs)
    )


def _remark(remarks: list[str], *texts: str) -> None:
    remarks.extend(t for t in dict.fromkeys(texts) if t not in remarks)


def check_convertible(
    dtype: np.dtype[Any], spec: InputSpec, where: str, remarks: list[str]
) -> np.dtype[Any]:
    """Type that data of ``dtype`` are converted to for an input.

    Raises:
        CalibrationError: They are of another kind: the conversion is the user's to choose.
    """
    inner = re.sub(r"^(optional\(|seq\()*(tensor\(\w+\))\)*$", r"\2", spec.type)
    name = element_type(inner)
    if name is None:
        return dtype
    if name == "string":
        if dtype.kind in "OUST":
            return dtype
        raise CalibrationError(f"{where}: input {spec.name!r} takes strings, not {dtype}")
    wanted = np.dtype(ir.DataType[name.upper()].numpy())
    if dtype == wanted:
        return wanted
    kinds = _kind(dtype), _kind(wanted)
    if kinds in (("float", "float"), ("int", "int")):
        _remark(remarks, f"input {spec.name!r}: {dtype} was converted to {wanted}")
        return wanted
    raise CalibrationError(
        f"{where}: input {spec.name!r} takes {wanted}, not {dtype}; convert it as the model's "
        "preprocessing does"
    )


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu" or dtype.name.startswith(("int", "uint")):
        return "int"
    return "float" if dtype.kind == "f" or "float" in dtype.name else dtype.name


def _checked(feeds: Feeds, specs: Sequence[InputSpec], where: str, remarks: list[str]) -> Feeds:
    out: Feeds = {}
    for spec in specs:
        if spec.name not in feeds:
            continue
        value = feeds[spec.name]
        if value is None or isinstance(value, dict):
            out[spec.name] = value
        elif isinstance(value, list) and "seq(" in spec.type:
            out[spec.name] = [_fitted(np.asarray(v), spec, where, remarks) for v in value]
        else:
            array = out[spec.name] = _fitted(np.asarray(value), spec, where, remarks)
            _shape(array, spec, where)
    return out


def _fitted(array: Array, spec: InputSpec, where: str, remarks: list[str]) -> Array:
    wanted = check_convertible(array.dtype, spec, where, remarks)
    if _kind(array.dtype) == "float":
        finite = np.isfinite(array.astype(np.float64))
        if not finite.all():
            at = [int(i) for i in np.argwhere(~finite)[0]]
            raise CalibrationError(f"{where}: input {spec.name!r} is {array[tuple(at)]} at {at}")
    if wanted == array.dtype:
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    lost = (
        not np.isfinite(converted.astype(np.float64)).all()
        if _kind(wanted) == "float"
        else bool((converted.astype(array.dtype) != array).any())
    )
    if lost:
        raise CalibrationError(f"{where}: values of input {spec.name!r} do not fit into {wanted}")
    return converted


def _shape(array: Array, spec: InputSpec, where: str) -> None:
    """Check a shape against the declared one."""
    if spec.dims is None:
        return
    declared = "[" + ", ".join("?" if d is None else str(d) for d in spec.dims) + "]"
    fits = array.ndim == len(spec.dims) and all(
        not isinstance(d, int) or d == n for d, n in zip(spec.dims, array.shape, strict=True)
    )
    if not fits:
        raise CalibrationError(
            f"{where}: input {spec.name!r} takes {declared}, not {list(array.shape)}"
        )

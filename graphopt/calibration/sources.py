"""Sample data as users have them: an ``.npz`` file, or a folder of ``.npz`` or ``.pb`` files."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graphopt import ir
from graphopt.calibration.npz import Archive, open_archive
from graphopt.calibration.protos import read_value
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import InputSpec, input_specs
from graphopt.runtime.values import Array, Feeds, element_type

__all__ = ["Samples", "from_batches", "load_data"]

Batches: TypeAlias = Callable[[], Iterator[tuple[str, Feeds]]]

_BATCH = 8


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

    def named(self) -> Iterator[tuple[str, Feeds]]:
        """Iterate over batches, each with words on where it comes from, for messages.

        Raises:
            CalibrationError: As for iterating.
        """
        for where, feeds in self._batches():
            yield where, _checked(feeds, self._specs, where, self.remarks)


def load_data(
    path: str | os.PathLike[str],
    model: ir.Model | Sequence[ir.Value],
    *,
    batch_size: int | None = None,
) -> Samples:
    """Find the samples of a model's inputs.

    A file: ``.npz`` with an array per input, of the input's name, with samples along axis 0. Arrays
    of the input's rank are cut into batches; arrays of one more rank hold complete inputs, each a
    batch. A folder holds one batch per ``.npz`` file, or per sub-folder with ``input_0.pb``,
    ``input_1.pb``, ... in the order of the inputs; shapes may then vary from batch to batch.

    Args:
        path: The file or folder.
        model: The model, or its inputs.
        batch_size: Samples per batch where the model leaves it open; 8 by default.

    Returns:
        The samples, which may be iterated over again and again; data are read as they are needed.

    Raises:
        CalibrationError: There are no data, or they do not fit the inputs.
    """
    specs = input_specs(ir.inputs(model) if isinstance(model, ir.Model) else model)
    path = Path(path)
    if not specs:
        raise CalibrationError("the model has no inputs to feed")
    if path.is_dir():
        return _folder(path, specs)
    if path.suffix != ".npz":
        what = "is no .npz file" if path.exists() else "does not exist"
        raise CalibrationError(
            f"{path} {what}: give an .npz file, or a folder of .npz or .pb files"
        )
    return _file(path, specs, batch_size)


def from_batches(
    batches: Mapping[str, Any] | Iterable[Mapping[str, Any]], model: ir.Model | Sequence[ir.Value]
) -> Samples:
    """Take batches that are in memory as samples of a model's inputs.

    Args:
        batches: Dicts of values by input name, or a single one. What has no length, such as a
            generator, is read into memory.
        model: The model, or its inputs.

    Returns:
        The samples; each batch is checked when it is read.

    Raises:
        CalibrationError: There are no batches, or a batch is no dict or lacks an input.
    """
    specs = input_specs(ir.inputs(model) if isinstance(model, ir.Model) else model)
    if isinstance(batches, Mapping):
        batches = [batches]
    kept: Any = batches if hasattr(batches, "__len__") else list(batches)
    if not len(kept):
        raise CalibrationError("the data holds no batches")
    remarks: list[str] = []

    def named() -> Iterator[tuple[str, Feeds]]:
        for i, batch in enumerate(kept):
            where = f"data, batch {i}"
            if not isinstance(batch, Mapping):
                kind = type(batch).__name__
                raise CalibrationError(f"{where} is no dict of arrays by input name, but {kind}")
            _named(list(batch), specs, where, remarks)
            yield where, dict(batch)

    next(named())  # the first mistake is in all of them
    return Samples("data", specs, named, len(kept), count=None, remarks=remarks)


def _file(path: Path, specs: Sequence[InputSpec], batch_size: int | None) -> Samples:
    remarks: list[str] = []
    with open_archive(path) as archive:
        _named(list(archive.headers), specs, str(path), remarks)
        headers = {s.name: archive.headers[s.name] for s in specs if s.name in archive.headers}
    for spec in specs:
        if spec.name in headers:
            _convertible(headers[spec.name].dtype, spec, str(path), remarks)
    counts = {n: h.shape[0] for n, h in headers.items() if h.shape}
    if not counts:
        raise CalibrationError(f"{path}: no array has an axis of samples")
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n}: {c}" for n, c in counts.items())
        raise CalibrationError(f"{path}: arrays hold different numbers of samples ({found})")
    total = next(iter(counts.values()))
    if total == 0:
        raise CalibrationError(f"{path} holds no samples")
    whole = {s.name for s in specs if s.name in counts and _is_stack(headers[s.name].shape, s)}
    size = 1 if whole else _batch_size(specs, counts, batch_size, path)
    if size > total:
        raise CalibrationError(
            f"{path}: the model takes {size} samples at a time, there are {total}"
        )
    if total % size:
        remarks.append(f"{path}: the last {total % size} samples do not fill a batch of {size}")

    def batches() -> Iterator[tuple[str, Feeds]]:
        with open_archive(path) as archive:
            constant = {n: archive.array(n) for n in headers if n not in counts}
            rows = {n: archive.rows(n, size) for n in counts}
            with contextlib.ExitStack() as stack:
                for row in rows.values():
                    stack.callback(row.close)
                for i in range(total // size):
                    last = f" to {(i + 1) * size - 1}" if size > 1 else ""
                    feeds = {n: next(r)[0] if n in whole else next(r) for n, r in rows.items()}
                    yield f"{path}, sample {i * size}{last}", {**constant, **feeds}
                for row in rows.values():
                    next(row, None)  # let it compare its checksum

    return Samples(str(path), specs, batches, total // size, count=total, remarks=remarks)


def _is_stack(shape: Sequence[int], spec: InputSpec) -> bool:
    """Whether an array holds complete inputs along its first axis."""
    return spec.dims is not None and len(shape) == len(spec.dims) + 1


def _batch_size(
    specs: Sequence[InputSpec], counts: dict[str, int], wanted: int | None, path: Path
) -> int:
    fixed = {s.name: s.dims[0] for s in specs if s.name in counts and s.dims}
    sizes = {n: d for n, d in fixed.items() if isinstance(d, int)}
    if len(set(sizes.values())) > 1:
        raise CalibrationError(
            f"{path}: inputs differ in their first dimension ({sizes}), so samples cannot lie "
            "along it; add an axis of samples in front, or use a folder with a file per batch"
        )
    if sizes:
        return max(1, next(iter(sizes.values())))
    return min(wanted or _BATCH, *counts.values())


def _folder(path: Path, specs: Sequence[InputSpec]) -> Samples:
    archives = _sorted(path.glob("*.npz"))
    own = _sorted(path.glob("*.pb"))
    nested = [d for d in _sorted(path.iterdir()) if d.is_dir() and any(d.glob("input_*.pb"))]
    remarks: list[str] = []
    if archives:
        for file in archives:
            with open_archive(file) as archive:
                _named(list(archive.headers), specs, str(file), remarks)
        readers = [_archive_reader(f, specs) for f in archives]
    elif nested:
        readers = [_proto_reader(_sorted(d.glob("input_*.pb")), specs, d) for d in nested]
    elif own and len(specs) == 1:
        readers = [_proto_reader([f], specs, f) for f in own if not f.name.startswith("output_")]
    elif own:
        readers = [_proto_reader(_sorted(path.glob("input_*.pb")), specs, path)]
    else:
        readers = []
    if not readers:
        raise CalibrationError(
            f"{path} holds no samples: no .npz files, and no .pb files here or in its folders"
        )

    def batches() -> Iterator[tuple[str, Feeds]]:
        for read in readers:
            yield read()

    return Samples(str(path), specs, batches, len(readers), count=None, remarks=remarks)


def _archive_reader(file: Path, specs: Sequence[InputSpec]) -> Callable[[], tuple[str, Feeds]]:
    def read() -> tuple[str, Feeds]:
        with open_archive(file) as archive:
            return str(file), {s.name: _shaped(archive, s) for s in specs if _has(archive, s)}

    return read


def _has(archive: Archive, spec: InputSpec) -> bool:
    return spec.name in archive.headers


def _shaped(archive: Archive, spec: InputSpec) -> Any:
    array = archive.array(spec.name)
    return list(array) if spec.type.startswith("seq(") else array


def _proto_reader(
    files: Sequence[Path], specs: Sequence[InputSpec], where: Path
) -> Callable[[], tuple[str, Feeds]]:
    needed = [s for s in specs if not s.type.startswith("optional(")]
    if not len(needed) <= len(files) <= len(specs):
        names = ", ".join(s.name for s in specs)
        raise CalibrationError(
            f"{where}: {len(files)} files input_*.pb for {len(specs)} inputs ({names})"
        )

    def read() -> tuple[str, Feeds]:
        pairs = zip(specs, files, strict=False)
        return str(where), {s.name: read_value(f, s.type) for s, f in pairs}

    return read


def _sorted(paths: Iterator[Path]) -> list[Path]:
    """Sort so that 10 follows 9."""
    return sorted(
        paths,
        key=lambda p: [
            (int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)
        ],
    )


def _named(
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


def _convertible(
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
    wanted = _convertible(array.dtype, spec, where, remarks)
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

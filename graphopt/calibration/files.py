"""Samples in files of arrays: ``.npz``, ``.npy`` and the ``.pb`` of ONNX test data."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from graphopt.calibration.arrays import Archive, open_npy, open_npz
from graphopt.calibration.protos import read_value
from graphopt.calibration.samples import Samples, check_convertible, check_named
from graphopt.errors import CalibrationError
from graphopt.runtime.probe import InputSpec
from graphopt.runtime.values import Feeds

__all__ = ["from_file", "from_folder", "naturally"]

Reader: TypeAlias = Callable[[], tuple[str, Feeds]]
Opener: TypeAlias = Callable[[], contextlib.AbstractContextManager[Archive]]

_BATCH = 8


def from_file(path: Path, specs: Sequence[InputSpec], batch_size: int | None) -> Samples:
    """Samples along axis 0 of the arrays of an ``.npz`` file, or of the array of an ``.npy`` file.

    Raises:
        CalibrationError: There are none, or they do not fit the inputs.
    """
    if path.suffix == ".npz":
        return _stacked(path, lambda: open_npz(path), specs, batch_size)
    if len(specs) > 1:
        names = ", ".join(s.name for s in specs)
        raise CalibrationError(
            f"{path} holds one array, but the model has the inputs {names}: give an .npz file"
        )
    return _stacked(path, lambda: open_npy(path, {specs[0].name: path}), specs, batch_size)


def _stacked(
    path: Path, opened: Opener, specs: Sequence[InputSpec], batch_size: int | None
) -> Samples:
    remarks: list[str] = []
    with opened() as archive:
        check_named(list(archive.headers), specs, str(path), remarks)
        headers = {s.name: archive.headers[s.name] for s in specs if s.name in archive.headers}
    for spec in specs:
        if spec.name in headers:
            check_convertible(headers[spec.name].dtype, spec, str(path), remarks)
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
        with opened() as archive:
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


def from_folder(path: Path, specs: Sequence[InputSpec], batch_size: int | None) -> Samples | None:
    """Samples in a folder of ``.npz``, ``.npy`` or ``.pb`` files; None where it holds none of them.

    Raises:
        CalibrationError: They do not fit the inputs.
    """
    files = _array_files(path, specs)
    if files is not None and not any(path.glob("*.npz")):
        return _stacked(path, lambda: open_npy(path, files), specs, batch_size)
    remarks: list[str] = []
    readers = _readers(path, specs, remarks)
    if not readers:
        return None

    def batches() -> Iterator[tuple[str, Feeds]]:
        for read in readers:
            yield read()

    return Samples(str(path), specs, batches, len(readers), count=None, remarks=remarks)


def _readers(path: Path, specs: Sequence[InputSpec], remarks: list[str]) -> list[Reader]:
    """What reads the batches of a folder, one each."""
    if archives := naturally(path.glob("*.npz")):
        for file in archives:
            with open_npz(file) as archive:
                check_named(list(archive.headers), specs, str(file), remarks)
        return [_array_reader(f, functools.partial(open_npz, f), specs) for f in archives]
    if own := naturally(path.glob("*.npy")):
        if len(specs) > 1:
            check_named([f.stem for f in own], specs, str(path), remarks)
        name = specs[0].name
        return [_array_reader(f, functools.partial(open_npy, f, {name: f}), specs) for f in own]
    folders = [d for d in naturally(path.iterdir()) if d.is_dir()]
    arrays = [(d, files) for d in folders if (files := _array_files(d, specs)) is not None]
    if arrays:
        return [_array_reader(d, functools.partial(open_npy, d, f), specs) for d, f in arrays]
    if nested := [d for d in folders if any(d.glob("input_*.pb"))]:
        return [_proto_reader(naturally(d.glob("input_*.pb")), specs, d) for d in nested]
    protos = naturally(path.glob("*.pb"))
    if protos and len(specs) == 1:
        return [_proto_reader([f], specs, f) for f in protos if not f.name.startswith("output_")]
    return [_proto_reader(naturally(path.glob("input_*.pb")), specs, path)] if protos else []


def _array_files(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Path] | None:
    """The ``.npy`` files that have the names of inputs, if there is one for each that needs one."""
    files = {f.stem: f for f in folder.glob("*.npy")}
    needed = {s.name for s in specs if not s.type.startswith("optional(")}
    return files if files and needed <= set(files) else None


def _array_reader(where: Path, opened: Opener, specs: Sequence[InputSpec]) -> Reader:
    def read() -> tuple[str, Feeds]:
        with opened() as archive:
            return str(where), {s.name: _shaped(archive, s) for s in specs if _has(archive, s)}

    return read


def _has(archive: Archive, spec: InputSpec) -> bool:
    return spec.name in archive.headers


def _shaped(archive: Archive, spec: InputSpec) -> Any:
    array = archive.array(spec.name)
    return list(array) if spec.type.startswith("seq(") else array


def _proto_reader(files: Sequence[Path], specs: Sequence[InputSpec], where: Path) -> Reader:
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


def naturally(paths: Iterable[Path]) -> list[Path]:
    """Sort files by name, so that 10 follows 9."""
    return sorted(
        paths,
        key=lambda p: [
            (int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)
        ],
    )

"""Writing models: atomically, with external data where it is needed."""

from __future__ import annotations

import contextlib
import glob
import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import google.protobuf.message
import onnx
from onnx_ir import DataType, Model, TensorProtocol, Value

from graphopt.errors import ExportError
from graphopt.ir.external import MappedTensor
from graphopt.ir.graph import all_graphs
from graphopt.ir.origin import opaque, origin, verbatim
from graphopt.ir.prepare import referring
from graphopt.ir.proto import PROTOBUF_LIMIT, nbytes, to_proto

__all__ = ["alive", "atomic_write", "save"]

_ALIGN = 4096  # page size: consumers map the tensors
_SMALL = 1024  # below this a reference is not worth its own bytes
_CHUNK = 1 << 22
_SUFFIX = ".graphopt-tmp"


def save(
    model: Model, path: str | os.PathLike[str], *, external_data: bool | None = None
) -> list[Path]:
    """Write a model; afterwards ``path`` holds either the new model or, after a crash, the old one.

    Args:
        model: Model to write.
        path: Destination. It may be the file the model was loaded from.
        external_data: Put weights into a file of their own beside ``path``; None does so where the
            source did, and above the 2 GB that a protobuf can hold. A data file that some other
            model may refer to is never overwritten: a free name is taken instead.

    Returns:
        The files written, the model first.

    Raises:
        ExportError: The destination cannot be written, or weights above 2 GB were to be inline.
    """
    size = nbytes(model)
    if external_data is None:
        external_data = size > PROTOBUF_LIMIT - (1 << 24) or bool(_mapped_files(model))
    if not external_data and size > PROTOBUF_LIMIT:
        raise ExportError(f"{size} bytes do not fit into one file: save with external data")
    try:
        # Through a symbolic link: replacing the link itself would leave the old model where it
        # points.
        target = Path(os.path.realpath(Path(path).absolute()))
        if target.exists() and not target.is_file():
            kind = "a directory" if target.is_dir() else "not a regular file"
            raise ExportError(f"{path} is {kind}")
        _remove_leftovers(target)
        if opaque(model) is not None:
            return _save_opaque(model, target)
        return _save_external(model, target) if external_data else _save_inline(model, target)
    except OSError as e:
        raise ExportError(f"{path} cannot be written: {e.strerror or e}") from e


def _save_inline(model: Model, target: Path) -> list[Path]:
    proto = verbatim(model)
    if proto is None or next(referring(proto), None) is not None:
        proto = to_proto(model, external=lambda _value, _proto: False)
    atomic_write(target, _serialize(proto))
    return [target]


def _save_external(model: Model, target: Path) -> list[Path]:
    chunks: list[TensorProtocol] = []
    end = 0
    data = _data_path(target)

    def place(value: Value, proto: onnx.TensorProto) -> bool:
        nonlocal end
        tensor = value.const_value
        if tensor is None or tensor.dtype == DataType.STRING or tensor.nbytes < _SMALL:
            return False
        start = _aligned(end)
        end = start + tensor.nbytes
        _refer(proto, data.name, start, tensor.nbytes)
        chunks.append(tensor)
        return True

    return _commit(target, data, to_proto(model, external=place), chunks, _mapped_files(model))


def _save_opaque(model: Model, target: Path) -> list[Path]:
    source = origin(model)
    assert source.proto is not None
    if not source.external:
        atomic_write(target, _serialize(source.proto))
        return [target]
    data = _data_path(target)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    end = 0
    for tensor, mapped in zip(referring(proto), source.external, strict=True):
        start = _aligned(end)
        end = start + mapped.nbytes
        _refer(tensor, data.name, start, mapped.nbytes)
    return _commit(target, data, proto, source.external, _mapped_files(model))


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        return proto.SerializeToString(deterministic=True)
    except (ValueError, google.protobuf.message.EncodeError) as e:  # which one, depends on protobuf
        raise ExportError(f"the model does not fit into one protobuf: {e}") from e


def _commit(
    target: Path,
    data: Path,
    proto: onnx.ModelProto,
    tensors: Sequence[TensorProtocol],
    sources: set[Path],
) -> list[Path]:
    """Data first, under a name nothing refers to; then the model, which is the switch."""
    if not tensors:
        atomic_write(target, _serialize(proto))
        return [target]
    written = _serialize(proto)
    ours = False
    try:
        with _replacing(target) as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
            with _replacing(data, fresh=True) as weights:
                _write_tensors(weights, tensors)
            ours = True
    except BaseException:
        if ours:
            data.unlink(missing_ok=True)
        raise
    _remove_unreferenced(target, sources | {data})
    return [target, data]


def _write_tensors(file: BinaryIO, tensors: Sequence[TensorProtocol]) -> None:
    for tensor in tensors:
        _pad(file)
        if isinstance(tensor, MappedTensor) and tensor.is_current():
            _copy(tensor.path, tensor.offset, tensor.length, file)
        else:
            file.write(tensor.tobytes())


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _pad(file: BinaryIO) -> None:
    gap = -file.tell() % _ALIGN
    if gap:
        file.write(b"\0" * gap)


def _copy(path: Path, offset: int, length: int, file: BinaryIO) -> None:
    # read() into a bounded buffer: pages of a memory map would count as this process's memory.
    with path.open("rb") as source:
        source.seek(offset)
        while length:
            chunk = source.read(min(length, _CHUNK))
            if not chunk:
                raise ExportError(f"{path} became shorter while it was read")
            file.write(chunk)
            length -= len(chunk)


def _refer(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del proto.external_data[:]
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))


def _data_path(target: Path) -> Path:
    plain = target.with_name(target.name + ".data")
    if not plain.exists():
        return plain
    while True:
        free = target.with_name(f"{target.name}.{secrets.token_hex(4)}.data")
        if not free.exists():
            return free


def _mapped_files(model: Model) -> set[Path]:
    """Data files that the model's weights are mapped from."""
    values = (v.const_value for g in all_graphs(model) for v in g.initializers.values())
    tensors = (*values, *origin(model).external)
    return {Path(os.path.realpath(t.path)) for t in tensors if isinstance(t, MappedTensor)}


def _remove_unreferenced(target: Path, keep: set[Path]) -> None:
    """Remove data files of earlier saves to ``target`` that no file beside them names.

    Only names that :func:`_data_path` made up count: ``NAME.data`` is every tool's choice, so it
    may be somebody's source. A copy of the old model, whatever it is called, keeps its data.
    """
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.data")
    for data in target.parent.iterdir():
        if pattern.fullmatch(data.name) and data not in keep and not _is_named(data):
            data.unlink(missing_ok=True)


def _is_named(data: Path) -> bool:
    name = data.name.encode()
    for file in data.parent.iterdir():
        # Unfinished models count: they are written before their data gets its name.
        if file.suffix == ".data" or not file.is_file():
            continue
        try:
            if not 0 < file.stat().st_size <= PROTOBUF_LIMIT:  # a model is no larger
                continue
            with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(name) >= 0:
                    return True
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return True  # what cannot be read may name it
    return False


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the contents of ``path`` in one step.

    Raises:
        OSError: The folder is missing or cannot be written, or the disk is full.
    """
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path, *, fresh: bool = False) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        if fresh:
            _move_to_free_name(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _move_to_free_name(file: Path, path: Path) -> None:
    # Another save to the same place may have taken the name meanwhile: it must not lose its data.
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        file.replace(path)
    else:
        file.unlink()


def _sync_directory(directory: Path) -> None:
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError:
        return  # not every system lets a directory be opened; the rename itself is done
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_leftovers(target: Path) -> None:
    """Temporary files of saves to this target whose process was killed."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}*{_SUFFIX}"):
        pid = leftover.name.removesuffix(_SUFFIX).rpartition(".")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not alive(int(pid)):
            leftover.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process runs; where that cannot be told it may."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

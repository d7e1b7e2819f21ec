"""Writing models: atomically, with external data where it is needed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import google.protobuf.message
import onnx
from onnx_ir import Model, StringTensor, TensorProtocol, Value

from graphopt.errors import ExportError
from graphopt.ir.external import MappedTensor, contained
from graphopt.ir.origin import opaque, origin, verbatim
from graphopt.ir.proto import PROTOBUF_LIMIT, nbytes, tensor_nbytes, to_proto

__all__ = ["atomic_write", "save"]

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
        external_data: Put weights into a file of their own beside ``path``; None does so only above
            the 2 GB that a protobuf can hold. A data file that some other model may refer to is
            never overwritten: a free name is taken instead.

    Returns:
        The files written, the model first.

    Raises:
        ExportError: The destination cannot be written, or weights above 2 GB were to be inline.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise ExportError(f"{path} is a directory")
    # Through a symbolic link: replacing the link itself would leave the old model where it points.
    target = Path(os.path.realpath(target))
    size = nbytes(model)
    if external_data is None:
        external_data = size > PROTOBUF_LIMIT - (1 << 24)
    if not external_data and size > PROTOBUF_LIMIT:
        raise ExportError(f"{size} bytes do not fit into one file: save with external data")
    try:
        _remove_leftovers(target)
        if opaque(model) is not None:
            return _save_opaque(model, target)
        return _save_external(model, target) if external_data else _save_inline(model, target)
    except OSError as e:
        raise ExportError(f"{path} cannot be written: {e.strerror or e}") from e


def _save_inline(model: Model, target: Path) -> list[Path]:
    proto = verbatim(model)
    if proto is None or _refers(proto):
        proto = to_proto(model, external=lambda _value, _proto: False)
    atomic_write(target, proto.SerializeToString(deterministic=True))
    return [target]


def _save_external(model: Model, target: Path) -> list[Path]:
    chunks: list[TensorProtocol] = []
    end = 0
    data = _data_path(target)

    def place(value: Value, proto: onnx.TensorProto) -> bool:
        nonlocal end
        tensor = value.const_value
        if tensor is None or isinstance(tensor, StringTensor) or tensor_nbytes(tensor) < _SMALL:
            return False
        start = -(-end // _ALIGN) * _ALIGN
        end = start + tensor.nbytes
        _refer(proto, data.name, start, tensor.nbytes)
        chunks.append(tensor)
        return True

    proto = to_proto(model, external=place)
    return _commit(target, data, proto, lambda file: _write_tensors(file, chunks))


def _save_opaque(model: Model, target: Path) -> list[Path]:
    source = origin(model)
    assert source.proto is not None
    if source.directory is None or not _refers(source.proto):
        atomic_write(target, source.proto.SerializeToString())
        return [target]
    directory, data = Path(source.directory), _data_path(target)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    spans: list[tuple[Path, int, int]] = []
    end = 0
    for tensor in _referring(proto):
        info = {e.key: e.value for e in tensor.external_data}
        origin_path = contained(directory, info.get("location", ""), tensor.name)
        offset = int(info.get("offset", 0))
        length = int(info.get("length", 0)) or origin_path.stat().st_size - offset
        start = -(-end // _ALIGN) * _ALIGN
        end = start + length
        spans.append((origin_path, offset, length))
        _refer(tensor, data.name, start, length)

    def write(file: BinaryIO) -> None:
        for origin_path, offset, length in spans:
            _pad(file)
            _copy(origin_path, offset, length, file)

    return _commit(target, data, proto, write)


def _commit(
    target: Path, data: Path, proto: onnx.ModelProto, write: Callable[[BinaryIO], None]
) -> list[Path]:
    """Data first, under a name nothing refers to; then the model, which is the switch."""
    previous = _own_data_of(target)
    with _replacing(data) as file:
        write(file)
    try:
        atomic_write(target, proto.SerializeToString(deterministic=True))
    except BaseException:
        data.unlink(missing_ok=True)
        raise
    if previous is not None and previous != data:
        previous.unlink(missing_ok=True)
    return [target, data]


def _write_tensors(file: BinaryIO, tensors: list[TensorProtocol]) -> None:
    for tensor in tensors:
        _pad(file)
        if isinstance(tensor, MappedTensor):
            _copy(tensor.path, tensor.offset, tensor.length, file)
        else:
            file.write(tensor.tobytes())


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


def _referring(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from (t for t in graph.initializer if t.external_data)
        for node in graph.node:
            for a in node.attribute:
                if a.t.external_data:
                    yield a.t
                yield from (t for t in a.tensors if t.external_data)
                if a.HasField("g"):
                    graphs.append(a.g)
                graphs.extend(a.graphs)


def _refers(proto: onnx.ModelProto) -> bool:
    return next(_referring(proto), None) is not None


def _data_path(target: Path) -> Path:
    plain = target.with_name(target.name + ".data")
    if not plain.exists():
        return plain
    while True:
        free = target.with_name(f"{target.name}.{secrets.token_hex(4)}.data")
        if not free.exists():
            return free


def _own_data_of(target: Path) -> Path | None:
    """The data file of the graphopt model about to be replaced, if nothing else can need it.

    That is a file with the name a save of this very target picked on a later run. The first one,
    ``NAME.data``, is every tool's choice, so it may be somebody's source and stays.
    """
    try:
        proto = onnx.ModelProto.FromString(target.read_bytes())
    except (OSError, google.protobuf.message.DecodeError):
        return None
    locations = {
        e.value for t in _referring(proto) for e in t.external_data if e.key == "location"
    }
    if len(locations) != 1:
        return None
    (name,) = locations
    stem, tail = target.name + ".", ".data"
    middle = name[len(stem) : -len(tail)]
    own = name.startswith(stem) and name.endswith(tail) and len(middle) == 8
    return target.with_name(name) if own and all(c in "0123456789abcdef" for c in middle) else None


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the contents of ``path`` in one step.

    Raises:
        OSError: The folder is missing or cannot be written, or the disk is full.
    """
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o7777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


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
    for leftover in target.parent.glob(f".{target.name}*{_SUFFIX}"):
        pid = leftover.name.removesuffix(_SUFFIX).rpartition(".")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not _alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

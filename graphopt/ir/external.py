"""External data: one read-only memory map per file, kept inside the model's directory."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as _ir
from onnx_ir import DataType, Model

from graphopt.errors import FrontendError
from graphopt.ir.graph import all_graphs

__all__ = ["MappedTensor", "map_external_data", "map_raw"]


class MappedTensor(_ir.Tensor):  # type: ignore[type-arg]
    """A tensor whose bytes are a slice of a memory-mapped file.

    Saving copies the slice from file to file, so that the weights never enter memory.
    """

    __slots__ = ("_file", "length", "offset", "path")

    def __init__(
        self,
        data: np.ndarray[Any, Any],
        *,
        dtype: DataType,
        shape: _ir.Shape,
        name: str | None,
        path: Path,
        offset: int,
        length: int,
    ) -> None:
        super().__init__(data, dtype=dtype, shape=shape, name=name)
        self.path, self.offset, self.length = path, offset, length
        self._file = _identity(path)

    def is_current(self) -> bool:
        """Whether ``path`` still is the mapped file: another may have replaced it, or none."""
        return self._file == _identity(self.path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def map_external_data(model: Model, directory: Path | None = None) -> None:
    """Replace every reference to external data in ``model`` by a view of a memory map.

    A touched onnx_ir ``ExternalTensor`` keeps a map and a file descriptor of its own, so that a
    model of a thousand tensors exhausts the descriptors of a process. Here each file is mapped
    once.

    Args:
        model: Model as deserialized; its external tensors are replaced in place.
        directory: Absolute directory that locations are relative to and must stay inside. None for
            a model that a program built: its tensors know their own, and are trusted.

    Raises:
        FrontendError: A file is missing, too short, or outside ``directory``.
    """
    maps: dict[str, np.ndarray[Any, Any]] = {}

    def mapped(tensor: _ir.ExternalTensor) -> _ir.TensorProtocol:
        return _map(tensor, directory, maps)

    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, _ir.ExternalTensor):
                value.const_value = mapped(value.const_value)
        for node, a in _tensor_attributes(graph):
            if a.type == _ir.AttributeType.TENSOR and isinstance(a.value, _ir.ExternalTensor):
                node.attributes[a.name] = _ir.AttrTensor(a.name, mapped(a.value))
            elif a.type == _ir.AttributeType.TENSORS and any(
                isinstance(t, _ir.ExternalTensor) for t in a.as_tensors()
            ):
                tensors = [
                    mapped(t) if isinstance(t, _ir.ExternalTensor) else t for t in a.as_tensors()
                ]
                node.attributes[a.name] = _ir.AttrTensors(a.name, tensors)


def _tensor_attributes(graph: _ir.Graph) -> Iterator[tuple[_ir.Node, _ir.Attr]]:
    kinds = (_ir.AttributeType.TENSOR, _ir.AttributeType.TENSORS)
    for node in graph:
        for a in tuple(node.attributes.values()):
            if not a.is_ref() and a.type in kinds:
                yield node, a


def _map(
    tensor: _ir.ExternalTensor, directory: Path | None, maps: dict[str, np.ndarray[Any, Any]]
) -> _ir.TensorProtocol:
    name, dtype = tensor.name or "", tensor.dtype
    if dtype == DataType.STRING:
        raise FrontendError(f"initializer {name!r}: strings cannot be external data")
    location = os.fspath(tensor.location)
    if directory is None:
        path = Path(os.fspath(tensor.base_dir), location).absolute()
    else:
        path = contained(directory, location, name)
    data = maps.get(str(path))
    if data is None:
        data = maps[str(path)] = _open(path, location, name)
    shape = tuple(tensor.shape.numpy())
    if any(d < 0 for d in shape):
        raise FrontendError(f"initializer {name!r} has a negative dimension: {list(shape)}")
    length = math.ceil(math.prod(shape) * dtype.bitwidth / 8)
    offset = tensor.offset or 0
    if tensor.length is not None and tensor.length < length:
        raise FrontendError(
            f"external data {location!r} of initializer {name!r}: {tensor.length} bytes are "
            f"declared, {length} needed for {dtype.name}{list(shape)}"
        )
    _check_span(location, name, offset, length, len(data))
    view = data[offset : offset + length]
    if dtype.bitwidth < 8:
        return _ir.PackedTensor(view, dtype=dtype, shape=_ir.Shape(shape), name=name)
    return MappedTensor(
        view.view(dtype.numpy()).reshape(shape), dtype=dtype, shape=_ir.Shape(shape), name=name,
        path=path, offset=offset, length=length,
    )  # fmt: skip


def map_raw(tensors: Iterable[onnx.TensorProto], directory: Path) -> list[MappedTensor]:
    """The data that ``tensors`` refer to as bytes, for models that nobody is going to understand.

    Raises:
        FrontendError: A file is missing, too short, or outside ``directory``.
    """
    found = []
    maps: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in tensors:
        info = {e.key: e.value for e in tensor.external_data}
        location = info.get("location", "")
        path = contained(directory, location, tensor.name)
        data = maps.get(location)
        if data is None:
            data = maps[location] = _open(path, location, tensor.name)
        try:
            offset = int(info.get("offset", 0))
            length = int(info.get("length", len(data) - offset))
        except ValueError as e:
            raise FrontendError(f"external data of initializer {tensor.name!r}: {e}") from e
        _check_span(location, tensor.name, offset, length, len(data))
        found.append(
            MappedTensor(
                data[offset : offset + length],
                dtype=DataType.UINT8,
                shape=_ir.Shape([length]),
                name=tensor.name,
                path=path,
                offset=offset,
                length=length,
            )
        )
    return found


def _check_span(location: str, name: str, offset: int, length: int, size: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise FrontendError(
            f"external data {location!r} is truncated: initializer {name!r} needs bytes "
            f"{offset} to {offset + length}, the file has {size}"
        )


def contained(directory: Path, location: str, name: str) -> Path:
    """Absolute path of external data, which must not leave the model's directory.

    Raises:
        FrontendError: The location is absolute or escapes by ``..`` or by a symbolic link.
    """
    if not location or "\0" in location:
        raise FrontendError(f"external data of initializer {name!r} has no valid location")
    path = directory / location
    root = os.path.realpath(directory)
    real = os.path.realpath(path)
    if os.path.isabs(location) or os.path.commonpath([root, real]) != root:
        raise FrontendError(
            f"external data {location!r} of initializer {name!r} lies outside the model's directory"
        )
    return path


def _open(path: Path, location: str, name: str) -> np.ndarray[Any, Any]:
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")  # a pipe would be waited for
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as e:
        gone = isinstance(e, FileNotFoundError)
        reason = "is missing" if gone else f"cannot be read: {e.strerror}"
        raise FrontendError(
            f"external data {location!r} of initializer {name!r} {reason} (looked in {path.parent})"
        ) from e
    return data.view(np.ndarray)

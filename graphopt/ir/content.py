"""The bytes of tensors, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as _ir
from onnx_ir import DataType, Model, StringTensor, TensorProtocol, Value

from graphopt.errors import GraphOptError
from graphopt.ir.external import MappedTensor
from graphopt.ir.graph import all_graphs

__all__ = ["Content", "adopt_weights", "same_content"]

_CHUNK = 1 << 20
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Content:
    """The bytes of a tensor of numbers.

    A memory-mapped tensor is read from its file: pages of the map would count as memory of this
    process. Other tensors are not copied where that is possible.

    Args:
        tensor: The tensor. Types of less than a byte are packed.

    Raises:
        ValueError: It is a tensor of strings.

    Attributes:
        nbytes: Number of bytes.
    """

    __slots__ = ("_data", "_mapped", "nbytes")

    def __init__(self, tensor: TensorProtocol) -> None:
        if tensor.dtype == DataType.STRING:
            raise ValueError("strings have no fixed size")
        self._mapped: MappedTensor | None = None
        self._data: _Bytes = np.empty(0, np.uint8)
        if isinstance(tensor, MappedTensor) and tensor.is_current():
            self._mapped, self.nbytes = tensor, tensor.length
        else:
            self._data = _raw(tensor)
            self.nbytes = len(self._data)

    def read(self, start: int, length: int) -> _Bytes:
        """Bytes from ``start`` on, at most ``length`` of them.

        Raises:
            GraphOptError: The file of a memory-mapped tensor is gone or has become shorter.
        """
        if self._mapped is None:
            return self._data[start : start + length]
        length = min(length, self.nbytes - start)
        path = self._mapped.path
        try:
            with path.open("rb") as file:
                file.seek(self._mapped.offset + start)
                data = np.frombuffer(file.read(length), np.uint8)
        except OSError as e:
            raise GraphOptError(f"{path} cannot be read any more: {e.strerror or e}") from e
        if len(data) != length:
            raise GraphOptError(f"{path} has become shorter")
        return data

    def chunks(self) -> Iterator[_Bytes]:
        """All bytes, in pieces of 1 MB."""
        for start in range(0, self.nbytes, _CHUNK):
            yield self.read(start, _CHUNK)


def _raw(tensor: TensorProtocol) -> _Bytes:
    packed = getattr(tensor, "numpy_packed", None)
    if packed is not None:
        return np.asarray(packed(), np.uint8).reshape(-1)
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def same_content(a: TensorProtocol, b: TensorProtocol) -> bool:
    """Whether two tensors have the same type, shape and bits; False for strings in doubt."""
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape.numpy()) != tuple(b.shape.numpy()):
        return False
    if a.dtype == DataType.STRING:
        # NumPy strips the zeros that a string ends with, so only this class can tell.
        texts = isinstance(a, StringTensor) and isinstance(b, StringTensor)
        return texts and list(a.string_data()) == list(b.string_data())  # type: ignore[attr-defined]
    one, two = Content(a), Content(b)
    return one.nbytes == two.nbytes and all(
        np.array_equal(x, y) for x, y in zip(one.chunks(), two.chunks(), strict=True)
    )


def adopt_weights(model: Model, source: Model) -> bool:
    """Let ``model`` hold the tensors of ``source`` where they have equal names and contents.

    Afterwards it refers to no file of its own: other memory-mapped weights are read.

    Returns:
        Whether all of its weights are weights of ``source``.
    """
    known: dict[str | None, Value] = {
        v.name: v for graph in all_graphs(source) for v in graph.initializers.values()
    }
    every = True
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            old = known.get(value.name)
            mine, theirs = value.const_value, None if old is None else old.const_value
            if mine is not None and theirs is not None and same_content(mine, theirs):
                value.const_value = theirs
                continue
            every = False
            if isinstance(mine, MappedTensor):
                value.const_value = _ir.Tensor(
                    mine.numpy().copy(), dtype=mine.dtype, shape=mine.shape, name=mine.name
                )
    return every

"""Reading the ``.pb`` files that ONNX test data come in: one TensorProto or SequenceProto each.

The IR reads tensors as part of a model, so the bytes of a tensor are framed as the only weight of
one; sequences and optionals, which are no part of models, are split into their tensors first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.errors import CalibrationError, FrontendError

__all__ = ["read_value"]

# Field numbers of onnx.proto.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _OPSET_VERSION = 1, 7, 8, 2
_GRAPH_NAME, _GRAPH_INITIALIZER, _TENSOR_NAME = 2, 5, 8
_SEQUENCE_TENSORS = 3
_OPTIONAL_TENSOR, _OPTIONAL_SEQUENCE = 3, 5


def read_value(path: Path, type_: str) -> Any:
    """Read the value of one input.

    Args:
        path: File holding a TensorProto, SequenceProto or OptionalProto, as the type demands.
        type_: Type of the input as ONNX Runtime spells it; "" for a tensor.

    Returns:
        An array, a list of arrays, or None for an optional without a value.

    Raises:
        CalibrationError: The file is missing, truncated or of another type.
    """
    try:
        return _value(path.read_bytes(), type_)
    except FileNotFoundError as e:
        raise CalibrationError(f"{path} does not exist") from e
    except (FrontendError, OSError, ValueError, IndexError) as e:
        what = "SequenceProto" if "seq(" in type_ else "TensorProto"
        raise CalibrationError(f"{path} is truncated or not a {what}") from e


def _value(data: bytes, type_: str) -> Any:
    if type_.startswith("optional("):
        inner = type_[9:-1]
        wanted = _OPTIONAL_SEQUENCE if inner.startswith("seq(") else _OPTIONAL_TENSOR
        found = [part for field, part in _messages(data) if field == wanted]
        return _value(found[0], inner) if found else None
    if type_.startswith("seq("):
        return [_tensor(part) for field, part in _messages(data) if field == _SEQUENCE_TENSORS]
    return _tensor(data)


def _tensor(data: bytes) -> Any:
    named = data + _message(_TENSOR_NAME, b"value")  # of a repeated field the last one counts
    graph = _message(_GRAPH_NAME, b"tensor") + _message(_GRAPH_INITIALIZER, named)
    opset = _number(_OPSET_VERSION, 17)
    model = ir.load(
        _number(_MODEL_IR_VERSION, 8)
        + _message(_MODEL_GRAPH, graph)
        + _message(_MODEL_OPSET, opset)
    )
    value = model.graph.initializers.get("value")
    if value is None or value.const_value is None or value.const_value.dtype.value == 0:
        raise ValueError("no tensor")
    array = value.const_value.numpy()
    if value.const_value.dtype != ir.DataType.STRING:
        return array
    words = [w.decode() if isinstance(w, bytes) else str(w) for w in array.reshape(-1).tolist()]
    return np.array(words, object).reshape(array.shape)


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of a message that are strings or messages themselves, with their numbers."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                varint()
            case 1:
                at += 8
            case 2:
                size = varint()
                if at + size > len(data):
                    raise ValueError("truncated")
                yield tag >> 3, data[at : at + size]
                at += size
            case 5:
                at += 4
            case _:
                raise ValueError("not a protobuf message")

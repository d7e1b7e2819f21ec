"""Conversion between NumPy values and the values of an ONNX Runtime session.

NumPy has no bfloat16, float8 or 4-bit types. ``ml_dtypes`` does, but ONNX Runtime's Python binding
knows neither: such tensors travel as raw bytes with an ONNX element type attached.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any, TypeAlias

import numpy as np

from graphopt import ir

__all__ = [
    "Array",
    "Feeds",
    "batch_size",
    "carrier",
    "decode",
    "element_type",
    "encode",
    "ort_tensor",
]

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = dict[str, Any]
"""Values by input name: an array; a list for a sequence, a dict for a map, None for no value."""


def batch_size(feeds: Feeds) -> int:
    """Samples in a batch: the length of the first input that has one."""
    sizes = (len(v) for v in feeds.values() if isinstance(v, np.ndarray) and v.ndim)
    return next(sizes, 1)


_TENSOR = re.compile(r"(?:optional\()?tensor\((\w+)\)\)?$")
_CARRIED = frozenset({
    "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0",
    "float4e2m1", "int4", "uint4", "int2", "uint2",
})  # fmt: skip


def element_type(ort_type: str) -> str | None:
    """Element type of a (possibly optional) tensor type as ONNX Runtime spells it, else None."""
    found = _TENSOR.match(ort_type)
    return found.group(1) if found else None


def carrier(ort_type: str) -> ir.DataType | None:
    """The ONNX type of a tensor that has to travel as raw bytes; None for all others."""
    name = element_type(ort_type)
    return ir.DataType[name.upper()] if name in _CARRIED else None


def ort_tensor(runtime: Any, array: Array, dtype: ir.DataType) -> Any:
    """An ``OrtValue`` over an array, without a copy where the bytes already are as they must be.

    Args:
        runtime: The onnxruntime module.
        array: Elements of ``dtype``'s NumPy type, or of an unsigned integer of the same width.
        dtype: ONNX element type.
    """
    # Kernels index elements, so that a view at an odd offset of a file has to be copied first.
    array = np.require(array, requirements=["C", "A"])
    if dtype.bitwidth < 8:
        # The binding takes one byte an element; the packed data fill the front of that. The rest
        # is never touched and so takes no memory.
        packed = _pack(array, dtype.bitwidth)
        room = np.empty(array.shape, np.uint8)
        room.reshape(-1)[: packed.size] = packed
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(room, int(dtype))
    if dtype.name.lower() in _CARRIED:
        bits = array.view(np.uint16 if dtype.bitwidth == 16 else np.uint8)
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(dtype))
    return runtime.OrtValue.ortvalue_from_numpy(array)


def encode(runtime: Any, value: Any, ort_type: str) -> Any:
    """Turn a value into what ``InferenceSession.run`` takes for an input of type ``ort_type``."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)) and element_type(ort_type) is None:
        return [
            encode(runtime, item, "tensor(string)" if "string" in ort_type else "")
            for item in value
        ]
    array = np.asarray(value)
    dtype = carrier(ort_type)
    if dtype is not None:
        if array.dtype != dtype.numpy() and array.dtype.kind != "u":
            array = array.astype(dtype.numpy())
        return ort_tensor(runtime, array, dtype)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8").astype(object)
    return array.astype(object) if array.dtype.kind in "UT" else array


def decode(value: Any, ort_type: str) -> Any:
    """Turn an ``OrtValue`` into an array, of an ``ml_dtypes`` type where NumPy has none."""
    dtype = carrier(ort_type)
    if dtype is None:
        return value.numpy() if value.has_value() else None
    if not value.has_value():
        return None
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64))
    count = -(-size * dtype.bitwidth // 8)
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), count), np.uint8)
    if dtype.bitwidth < 8:
        return _unpack(raw, dtype, size).reshape(shape)
    return raw.view(dtype.numpy()).reshape(shape)


def _pack(array: Array, bits: int) -> Array:
    per_byte = 8 // bits
    flat = array.reshape(-1).view(np.uint8) & np.uint8(2**bits - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: Array = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def _unpack(raw: Array, dtype: ir.DataType, size: int) -> Array:
    bits = dtype.bitwidth
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((raw[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:size]
    if dtype.name.startswith("INT"):  # sign-extend
        codes = np.where(codes >= 2 ** (bits - 1), codes | np.uint8(256 - 2**bits), codes)
        return codes.view(np.int8).astype(dtype.numpy())
    if dtype.name.startswith("UINT"):
        return codes.astype(dtype.numpy())
    return codes.view(dtype.numpy())

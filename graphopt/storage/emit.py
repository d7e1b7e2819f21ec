"""Codes as nodes that ONNX Runtime computes when it loads a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.storage.code import Book, Code
from graphopt.storage.packing import Packed

__all__ = ["MIN_OPSET", "OPERATORS", "Emitter"]

Array = np.ndarray[Any, Any]
MIN_OPSET = 11  # CumSum, ScatterND
# The operators that codes are made of.
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Expand", "Gather", "Mod", "Mul",
    "Reshape", "ScatterND", "Slice", "Sub", "Transpose",
})  # fmt: skip
_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
# Types of few bits, which take no arithmetic to read: bits, and the opset and the version of the
# format that have them.
_SMALL = ((2, ir.DataType.UINT2, 25, 13), (4, ir.DataType.UINT4, 21, 10))


class Emitter:
    """Writes codes into one model; the small constants of all of them are shared."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        opset, version = ir.opset(rw.model), rw.model.ir_version or 0
        self._small = {
            bits: dtype for bits, dtype, since, format in _SMALL
            if opset >= since and version >= format
        }  # fmt: skip

    def __call__(self, code: Code, name: str) -> ir.Value:
        """Nodes at the insertion point that compute an array from its code.

        Args:
            code: The code.
            name: Name that those of what is stored begin with.

        Returns:
            The array.
        """
        rw, book = self._rw, code.book
        if book is None:
            out = self._arranged(self._values(code, name), code)
        else:
            out = self._looked_up(code, book, name)
        if code.core != code.shape:
            out = rw.op("Expand", out, self._numbers(code.shape))
        out.type = ir.TensorType(ir.DataType.from_numpy(code.dtype))
        out.shape = ir.Shape(code.shape)
        return out

    def _looked_up(self, code: Code, book: Book, name: str) -> ir.Value:
        """The core of a code with a book."""
        rw = self._rw
        unit = 1 if code.vectors or code.mask is None else code.layout.unit
        listed = self._places(code, name, unit)
        places = self._placed(listed, code, unit, book.entries - 1, name)
        if code.vectors:
            table = self._table(book.table.reshape(-1, code.layout.unit), code, name)
            return self._arranged(rw.op("Gather", table, self._in_blocks(places, code, book)), code)
        table = self._table(book.table.reshape(-1), code, name)
        if book.blocks == 1:
            return rw.op("Gather", table, self._arranged(places, code))
        places = self._in_blocks(self._moved(places, code), code, book)
        return rw.op("Reshape", rw.op("Gather", table, places), self._numbers(code.core))

    def _values(self, code: Code, name: str) -> ir.Value:
        """All units of a code without a book."""
        assert isinstance(code.what, np.ndarray)
        listed, unit = code.what, code.layout.unit
        if code.mask is None:
            return self._cast(self._stored(listed.reshape(code.core), name, "values"), code)
        shape = (-1,) if unit == 1 else (-1, unit)
        if code.where == "gaps":
            zero = ir.tensor(np.zeros(1, code.dtype))
            values = self._cast(self._stored(listed.reshape(shape), name, "values"), code)
            return self._scattered(values, code, unit, zero, name)
        listed = np.concatenate([np.zeros((1, unit), listed.dtype), listed]).reshape(shape)
        rows = self._rows(code, name)
        values = self._cast(self._stored(listed, name, "values"), code)
        return self._rw.op("Gather", values, rows, axis=0)

    def _places(self, code: Code, name: str, unit: int) -> ir.Value:
        """Places in the book that are listed."""
        assert isinstance(code.what, Packed)
        places = self._unpacked(code.what, name, "places")
        return places if unit == 1 else self._rw.op("Reshape", places, self._numbers((-1, unit)))

    def _placed(self, listed: ir.Value, code: Code, unit: int, other: int, name: str) -> ir.Value:
        """Places of all units: those not listed get the other one."""
        if code.mask is None:
            return listed
        dtype = self._places_type(code)
        if code.where == "gaps":
            return self._scattered(listed, code, unit, ir.tensor(np.array([other], dtype)), name)
        row = self._share(np.full((1,) if unit == 1 else (1, unit), other, dtype))
        rows = self._rw.op("Concat", row, listed, axis=0)
        return self._rw.op("Gather", rows, self._rows(code, name), axis=0)

    def _rows(self, code: Code, name: str) -> ir.Value:
        """Per unit its number among the listed ones, from 1; 0 if it is not listed."""
        rw, count = self._rw, code.layout.count
        assert code.mask is not None
        mask = self._unpacked(code.mask, name, "mask")
        if code.patterns is not None:
            mask = rw.op("Gather", self._share(code.patterns.astype(np.int32)), mask)
            mask = rw.op("Reshape", mask, self._numbers((-1,)))
            mask = self._first(mask, count, code.mask.count * code.patterns.shape[1])
        place = rw.op("CumSum", mask, self._share(np.array(0, np.int32)))
        return rw.op("Mul", place, mask)

    def _scattered(
        self, listed: ir.Value, code: Code, unit: int, other: ir.TensorProtocol, name: str
    ) -> ir.Value:
        """What is listed at the ends of gaps, and another number elsewhere."""
        rw, count = self._rw, code.layout.count
        assert code.mask is not None
        steps = self._stored(code.mask.words[:, None], name, "gaps")
        ends = rw.op("CumSum", rw.op("Cast", steps, to=_INT64), self._share(np.array(0, np.int32)))
        at = rw.op("Sub", ends, self._numbers(1))
        shape = (count,) if unit == 1 else (count, unit)
        others = rw.op("ConstantOfShape", self._numbers(shape), value=other)
        return rw.op("ScatterND", others, at, listed)

    def _unpacked(self, packed: Packed, name: str, part: str) -> ir.Value:
        """The numbers, ``[count]``, as integers of 32 or 64 bits."""
        rw, how = self._rw, packed.packing
        to = _type(packed)
        small = self._small.get(int(how.bits)) if how.bits in (2, 4) else None
        if small is not None:
            numbers = packed.numbers().astype(np.uint8)
            stored = ir.tensor(numbers.astype(small.numpy()), dtype=small)
            return rw.op("Cast", rw.const(stored, f"{name}.{part}"), to=to)
        if how.digits == 1:
            return rw.op("Cast", self._stored(packed.words, name, part), to=to)
        words = rw.op("Cast", self._stored(packed.words[:, None], name, part), to=to)
        powers = [how.base**i for i in range(how.digits - 1, -1, -1)]
        digits = rw.op("Div", words, self._share(np.array(powers, to.numpy())))
        digits = rw.op("Mod", digits, self._share(np.array(how.base, to.numpy())))
        digits = rw.op("Reshape", digits, self._numbers((-1,)))
        return self._first(digits, packed.count, packed.words.size * how.digits)

    def _first(self, value: ir.Value, count: int, of: int) -> ir.Value:
        if count == of:
            return value
        return self._rw.op("Slice", value, self._numbers((0,)), self._numbers((count,)))

    def _in_blocks(self, places: ir.Value, code: Code, book: Book) -> ir.Value:
        """Places in the books of all blocks, one behind the other."""
        if book.blocks == 1:
            return places
        rw = self._rw
        split = rw.op("Reshape", places, self._numbers((-1, book.blocks, book.run)))
        starts = np.arange(book.blocks)[:, None] * book.entries
        return rw.op("Add", split, self._share(starts.astype(self._places_type(code))))

    def _places_type(self, code: Code) -> np.dtype[Any]:
        assert isinstance(code.what, Packed)
        return _type(code.what).numpy()

    def _moved(self, value: ir.Value, code: Code) -> ir.Value:
        """Units where they belong in the view of the core."""
        layout = code.layout
        if layout.perm == tuple(range(len(layout.view))):
            return value
        moved = tuple(layout.view[axis] for axis in layout.perm)
        value = self._rw.op("Reshape", value, self._numbers(moved))
        back = tuple(int(axis) for axis in np.argsort(layout.perm))
        return self._rw.op("Transpose", value, perm=back)

    def _arranged(self, value: ir.Value, code: Code) -> ir.Value:
        """The core from its units."""
        plain = code.mask is None and code.book is None
        moved = self._moved(value, code)
        if plain or (moved is not value and code.layout.view == code.core):
            return moved
        if moved is value and code.layout.unit == 1 and len(code.core) == 1:
            return value
        return self._rw.op("Reshape", moved, self._numbers(code.core))

    def _table(self, table: Array, code: Code, name: str) -> ir.Value:
        return self._cast(self._stored(table, name, "book"), code)

    def _cast(self, value: ir.Value, code: Code) -> ir.Value:
        wanted = ir.DataType.from_numpy(code.dtype)
        return value if value.dtype is wanted else self._rw.op("Cast", value, to=int(wanted))

    def _stored(self, array: Array, name: str, part: str) -> ir.Value:
        return self._rw.const(array, f"{name}.{part}")

    def _numbers(self, numbers: tuple[int, ...] | int) -> ir.Value:
        return self._share(np.array(numbers, np.int64))

    def _share(self, array: Array) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self._rw.const(array, "code")
        return self._shared[key]


def _type(packed: Packed) -> ir.DataType:
    """What numbers are after they were read from their words."""
    return _INT64 if packed.packing.word > 16 else _INT32

"""Codes as nodes that ONNX Runtime computes when it loads a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.storage.code import Book, Code
from graphopt.storage.packing import Packed, Packing

__all__ = ["MIN_OPSET", "OPERATORS", "Emitter"]

Array = np.ndarray[Any, Any]
MIN_OPSET = 11  # CumSum, ScatterND
# The operators that codes are made of.
OPERATORS = frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Expand", "Gather", "Mod", "Mul",
    "Range", "Reshape", "ScatterND", "Slice", "Sub", "Transpose",
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
        self._tables: dict[Packing, ir.Value] = {}
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
        if code.book is not None and (code.book.blocks > 1 or code.vectors):
            out = self._looked_up(code, code.book, name)
        else:
            listed = self._listed(code, name)
            out = listed if code.mask is None else self._arranged(
                self._placed(listed, code, np.zeros((), code.dtype), name), code
            )  # fmt: skip
        if code.core != code.shape:
            out = self._rw.op("Expand", out, self._numbers(code.shape))
        out.type = ir.TensorType(ir.DataType.from_numpy(code.dtype))
        out.shape = ir.Shape(code.shape)
        return out

    def _listed(self, code: Code, name: str) -> ir.Value:
        """The values that are listed: a core, a vector, or a row per unit, behind one of zeros."""
        unit = code.layout.unit
        shape = code.core if code.mask is None else (-1,) if unit == 1 else (-1, unit)
        if code.book is None:
            assert isinstance(code.what, np.ndarray)
            values = code.what.reshape(shape)
            if code.where in ("bits", "patterns"):  # what else is there comes first
                values = np.concatenate([np.zeros_like(values, shape=(1, *shape[1:])), values])
            return self._cast(self._stored(values, name, "values"), code)
        assert isinstance(code.what, Packed)
        table = self._cast(self._stored(code.book.table.reshape(-1), name, "book"), code)
        return self._unpacked(code.what, name, "places", shape, table)

    def _looked_up(self, code: Code, book: Book, name: str) -> ir.Value:
        """The core of a code with books of blocks, or of vectors."""
        assert isinstance(code.what, Packed)
        rw, masked = self._rw, code.mask is not None
        unit = 1 if code.vectors else code.layout.unit
        split = (-1, book.blocks, book.run) if book.blocks > 1 else (-1,)
        shape = split if not masked else (-1,) if unit == 1 else (-1, unit)
        places = self._unpacked(code.what, name, "places", shape)
        if masked:
            other = np.array(book.entries - 1, np.int32)
            places = self._placed(places, code, other, name)
        if not code.vectors:
            places = self._moved(places, code)
        if book.blocks > 1:
            places = places if not masked else rw.op("Reshape", places, self._numbers(split))
            starts = np.arange(book.blocks)[:, None] * book.entries
            starts = starts.astype(np.int32)
            places = rw.op("Add", places, self._share(starts))
        elements = (code.layout.unit,) if code.vectors else ()
        table = self._stored(book.table.reshape(-1, *elements), name, "book")
        out = rw.op("Gather", self._cast(table, code), places)
        if code.vectors:
            out = self._moved(out, code)
        return rw.op("Reshape", out, self._numbers(code.core))

    def _placed(self, listed: ir.Value, code: Code, other: Array, name: str) -> ir.Value:
        """What is listed at its units, and another number in all others."""
        rw, count, mask = self._rw, code.layout.count, code.mask
        assert mask is not None
        unit = () if code.vectors or code.layout.unit == 1 else (code.layout.unit,)
        if code.where == "gaps":
            steps = rw.op("Cast", self._stored(mask.words[:, None], name, "gaps"), to=_INT64)
            ends = rw.op("CumSum", steps, self._share(np.array(0, np.int32)))
            at = rw.op("Sub", ends, self._numbers(1))
            others = rw.op(
                "ConstantOfShape", self._numbers((count, *unit)), value=ir.tensor(other[None])
            )
            return rw.op("ScatterND", others, at, listed)
        if code.patterns is None:
            kept = self._unpacked(mask, name, "mask", (-1,))
        else:
            patterns = code.patterns.astype(np.int32)
            kept = self._unpacked(mask, name, "mask", (-1,), self._share(patterns), 4)
        # Its number among the listed ones, from 1, or 0.
        place = rw.op("CumSum", kept, self._share(np.array(0, np.int32)))
        row = rw.op("Mul", place, kept)
        if code.book is not None:
            first = self._share(np.full((1, *unit), other, other.dtype))
            listed = rw.op("Concat", first, listed, axis=0)
        return rw.op("Gather", listed, row, axis=0)

    def _unpacked(
        self, packed: Packed, name: str, part: str, shape: tuple[int, ...],
        table: ir.Value | None = None, wide: int = 1,
    ) -> ir.Value:  # fmt: skip
        """Numbers as integers of 32 bits, or the rows of a table that they stand for.

        Results with as many elements as there are numbers are what takes time, and are avoided.

        Args:
            packed: The numbers.
            name: Name of the constant.
            part: What they are of it.
            shape: Shape of the result.
            table: ``[entries]`` or ``[entries, wide]``.
            wide: Elements of a row.
        """
        rw, how = self._rw, packed.packing

        def rows(numbers: ir.Value) -> ir.Value:
            return numbers if table is None else rw.op("Gather", table, numbers)

        small = self._small.get(int(how.bits)) if how.bits in (2, 4) else None
        if small is not None or how.digits == 1:
            inner = shape if wide == 1 else (-1,)
            if small is None:
                stored = self._stored(packed.words.reshape(inner), name, part)
            else:
                numbers = packed.numbers().astype(small.numpy()).reshape(inner)
                stored = rw.const(ir.tensor(numbers, dtype=small), f"{name}.{part}")
            out = rows(rw.op("Cast", stored, to=_INT32))
            return out if wide == 1 else rw.op("Reshape", out, self._numbers(shape))
        if how.word == 8:  # what each byte stands for, then that of all bytes
            words = rw.op("Cast", self._stored(packed.words, name, part), to=_INT32)
            out = rw.op("Gather", rows(self._digits(how)), words)
        else:
            words = self._stored(packed.words[:, None], name, part)
            words = words if how.word == 32 else rw.op("Cast", words, to=_INT32)
            out = rows(self._divided(words, how))
        count = packed.count * wide
        if packed.words.size * how.digits * wide != count:
            out = rw.op("Reshape", out, self._numbers((-1,)))
            out = rw.op("Slice", out, self._numbers((0,)), self._numbers((count,)))
            if shape == (-1,):
                return out
        return rw.op("Reshape", out, self._numbers(shape))

    def _digits(self, how: Packing) -> ir.Value:
        """The numbers in each byte there is, ``[bytes, digits]``; the same for all codes."""
        if how not in self._tables:
            rw = self._rw
            with rw.at(next(iter(rw.model.graph))):
                ends = (self._share(np.array(i, np.int32)) for i in (0, how.base**how.digits, 1))
                words = rw.op("Reshape", rw.op("Range", *ends), self._numbers((-1, 1)))
                self._tables[how] = self._divided(words, how)
        return self._tables[how]

    def _divided(self, words: ir.Value, how: Packing) -> ir.Value:
        powers = [how.base**i for i in range(how.digits - 1, -1, -1)]
        digits = self._rw.op("Div", words, self._share(np.array(powers, np.int32)))
        return self._rw.op("Mod", digits, self._share(np.array(how.base, np.int32)))

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
        """The core from its units, which a mask tells."""
        moved = self._moved(value, code)
        if moved is value and code.layout.unit == 1 and len(code.core) == 1:
            return value
        if moved is not value and code.layout.view == code.core:
            return moved
        return self._rw.op("Reshape", moved, self._numbers(code.core))

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

"""Codes as nodes that ONNX Runtime computes when it loads a model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.rewrite import Rewriter
from graphopt.storage.sparse import Code

__all__ = ["MIN_OPSET", "OPERATORS", "Emitter"]

Array = np.ndarray[Any, Any]
MIN_OPSET = 11  # CumSum, ScatterND
# The operators that codes are made of.
OPERATORS = frozenset({
    "Cast", "ConstantOfShape", "CumSum", "Div", "Gather", "Mod", "Mul", "Reshape",
    "ScatterND", "Slice", "Sub", "Transpose",
})  # fmt: skip


class Emitter:
    """Writes codes into one model; the small constants of all of them are shared."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, code: Code, name: str) -> ir.Value:
        """Nodes at the insertion point that compute an array from its code.

        Args:
            code: The code.
            name: Name that those of what is stored begin with.

        Returns:
            The array.
        """
        rw, layout = self._rw, code.layout
        count, unit = math.prod(code.shape) // layout.unit, layout.unit
        moved = tuple(layout.view[axis] for axis in layout.perm)
        if code.coding == "dense":
            out = self._cast(rw.const(code.values.reshape(code.shape), f"{name}.values"), code)
            return self._known(out, code)
        if code.coding == "gaps":
            out = self._scatter(code, name, count)
        else:
            out = self._gather(code, name, count)
        if layout.perm != tuple(range(len(moved))):
            out = rw.op("Reshape", out, self._numbers(moved))
            back = tuple(int(axis) for axis in np.argsort(layout.perm))
            out, moved = rw.op("Transpose", out, perm=back), layout.view
        if moved != code.shape or unit != 1 or len(code.shape) != 1:
            out = rw.op("Reshape", out, self._numbers(code.shape))
        return self._known(out, code)

    def _gather(self, code: Code, name: str, count: int) -> ir.Value:
        """Row 0 of the values is zeros, the others follow each other where the mask is 1."""
        rw, digits, base = self._rw, code.digits, code.base
        numbers = rw.op("Cast", self._stored(code.mask[:, None], name, "mask"), to=_INT32)
        powers = np.array([base**i for i in range(digits - 1, -1, -1)], np.int32)
        numbers = rw.op("Div", numbers, self._share(powers))
        mask = rw.op("Mod", numbers, self._share(np.array(base, np.int32)))
        if code.patterns is not None:
            mask = rw.op("Gather", self._share(code.patterns.astype(np.int32)), mask)
        mask = rw.op("Reshape", mask, self._numbers((-1,)))
        if (
            code.mask.size * digits * (1 if code.patterns is None else code.patterns.shape[1])
            > count
        ):
            mask = rw.op("Slice", mask, self._numbers((0,)), self._numbers((count,)))
        place = rw.op("CumSum", mask, self._share(np.array(0, np.int32)))
        row = rw.op("Mul", place, mask)
        zeros = np.zeros((1, code.layout.unit), code.values.dtype)
        values = np.concatenate([zeros, code.values])
        if code.layout.unit == 1:
            values = values[:, 0]
        listed = self._cast(self._stored(values, name, "values"), code)
        return rw.op("Gather", listed, row, axis=0)

    def _scatter(self, code: Code, name: str, count: int) -> ir.Value:
        rw = self._rw
        steps = rw.op("Cast", self._stored(code.mask[:, None], name, "gaps"), to=_INT64)
        ends = rw.op("CumSum", steps, self._share(np.array(0, np.int32)))
        at = rw.op("Sub", ends, self._numbers(1))
        unit = code.layout.unit
        shape = (count,) if unit == 1 else (count, unit)
        values = code.values[:, 0] if unit == 1 else code.values
        zero = ir.tensor(np.zeros(1, code.dtype))
        zeros = rw.op("ConstantOfShape", self._numbers(shape), value=zero)
        return rw.op("ScatterND", zeros, at, self._cast(self._stored(values, name, "values"), code))

    def _cast(self, value: ir.Value, code: Code) -> ir.Value:
        if code.values.dtype == code.dtype:
            return value
        return self._rw.op("Cast", value, to=int(ir.DataType.from_numpy(code.dtype)))

    def _known(self, value: ir.Value, code: Code) -> ir.Value:
        value.type = ir.TensorType(ir.DataType.from_numpy(code.dtype))
        value.shape = ir.Shape(code.shape)
        return value

    def _stored(self, array: Array, name: str, part: str) -> ir.Value:
        return self._rw.const(array, f"{name}.{part}")

    def _numbers(self, numbers: tuple[int, ...] | int) -> ir.Value:
        return self._share(np.array(numbers, np.int64))

    def _share(self, array: Array) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self._rw.const(array, "code")
        return self._shared[key]


_INT32, _INT64 = int(ir.DataType.INT32), int(ir.DataType.INT64)

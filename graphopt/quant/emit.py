"""Writing a static quantization into a model: QuantizeLinear and DequantizeLinear around units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from graphopt import ir
from graphopt.quant.params import QParams
from graphopt.quant.units import Unit, Units, outputs
from graphopt.rewrite import Rewriter

__all__ = ["Quantized", "emit_static", "quantized_bias"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """A constant weight in integers.

    Attributes:
        integers: Its elements.
        params: What they stand for.
        bias: ``[channels]`` float, the bias that goes with it; None without one.
    """

    integers: Array
    params: QParams
    bias: Array | None = None


def emit_static(
    rw: Rewriter,
    units: Units,
    chosen: Collection[str],
    params: Mapping[str, QParams],
    weights: Mapping[str, Quantized],
) -> dict[str, str]:
    """Quantize the chosen units in place.

    Every value that a chosen unit reads or writes goes through QuantizeLinear and DequantizeLinear
    once; what is not chosen reads the original where that is still computed. A Relu or Clip that a
    chosen unit absorbed disappears.

    Args:
        rw: Rewriter of the model.
        units: Its units.
        chosen: Names of the units that are to compute on integers.
        params: Scale and zero point of every value that a chosen unit reads or writes, by its name.
        weights: Integer weights of the chosen units that have a constant weight, by unit.

    Returns:
        Names, in the quantized model, of the floating-point values that stand for what was
        quantized, by the names that these had.
    """
    picked = [unit for unit in units if unit.name in chosen]
    found = {unit.node: weights[unit.name] for unit in picked if unit.name in weights}
    by_value = {
        v: params[v.name] for unit in picked for v in (*unit.inputs, *outputs(unit)) if v.name
    }
    emitter = _Emitter(rw, units, by_value)
    emitter.activations(picked)
    for unit in picked:
        if unit.node in found:
            emitter.weight(unit, found[unit.node])
    return {name: value.name or "" for name, value in emitter.stand_ins.items()}


def quantized_bias(bias: Array, scale: Array) -> Array:
    """A bias as int32 in units of ``scale``, the product of the scales of input and weight."""
    limits = np.iinfo(np.int32)
    return np.clip(np.rint(bias.astype(np.float64) / scale), limits.min, limits.max).astype(
        np.int32
    )


class _Emitter:
    def __init__(self, rw: Rewriter, units: Units, params: Mapping[ir.Value, QParams]) -> None:
        self.rw, self.units, self.params = rw, units, params
        self.stand_ins: dict[str, ir.Value] = {}

    def activations(self, picked: list[Unit]) -> None:
        written = {v: unit for unit in picked for v in outputs(unit)}
        read: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for unit in picked:
            for i, value in enumerate(unit.node.inputs):
                if value in unit.inputs:
                    read.setdefault(value, []).append((unit.node, i))
        for value in dict.fromkeys((*written, *read)):
            if value in written:
                self._everywhere(value, written[value])
            elif ir.const(value) is not None:
                self._constant(value, read[value])
            else:
                self._some(value, read[value])
        for unit in picked:
            if self._on_integers(unit):
                self._move(unit)

    def _on_integers(self, unit: Unit) -> bool:
        return unit.moves and (unit.kernel.on_integers or self.units.scheme.moves == "integers")

    def _move(self, unit: Unit) -> None:
        """Let a unit that moves data read the integers that its input went through."""
        node = unit.node
        zero = None
        for i, value in enumerate(node.inputs):
            maker = None if value is None else value.producer()
            if i in self.data(unit) and maker is not None and maker.op_type == "DequantizeLinear":
                zero = maker.inputs[2]
                self.rw.set_input(node, i, maker.inputs[0])
        if node.op_type == "Pad":  # with 0, as its kernel has it
            self.rw.set_input(node, 2, zero)

    @staticmethod
    def data(unit: Unit) -> range | tuple[int, ...]:
        """Positions of the inputs that hold data."""
        given = unit.kernel.activations
        return range(len(unit.node.inputs)) if given is None else given

    def _everywhere(self, value: ir.Value, unit: Unit) -> None:
        """Let all that use what an integer unit writes use what the integers stand for."""
        name, params = value.name or "", self.params[value]
        if unit.activation is not None:
            self.rw.replace(value, unit.node.outputs[0])
            self.rw.erase(unit.activation)
        behind = unit.node.outputs[0] if unit.activation is not None else value
        integers = self._on_integers(unit)
        pair = self._pair(params, integers=integers)
        self.stand_ins[name] = self.rw.insert_after(behind, pair)

    def _some(self, value: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
        """Let the integer units that use a floating-point value read it through integers."""
        pair = self._pair(self.params[value])
        self.stand_ins[value.name or ""] = self.rw.insert_after(value, pair, uses)

    def _constant(self, value: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
        params = self.params[value]
        data = ir.array(value)
        assert data is not None
        for node, i in uses:
            with self.rw.at(node):
                integers = self.rw.const(params.quantize(data), f"{value.name}.quantized")
                scale, zero = self._scales(params, value.name or "")
                self.rw.set_input(node, i, self._float(integers, scale, zero))

    def weight(self, unit: Unit, found: Quantized) -> None:
        node, kernel = unit.node, unit.kernel
        assert kernel.weight is not None
        assert unit.weight is not None
        name = unit.weight.name or "weight"
        with self.rw.at(node):
            self.rw.set_input(node, kernel.weight, self._integers(name, found))
            if found.bias is None or kernel.bias is None:
                return
            if self.units.scheme.bias == "float":
                if unit.bias is None or not np.array_equal(ir.array(unit.bias), found.bias):  # type: ignore[arg-type]
                    self.rw.set_input(node, kernel.bias, self.rw.const(found.bias, f"{name}.bias"))
                return
            x = self.params[unit.inputs[0]]
            scale = (x.scale * found.params.scale).astype(np.float32)
            params = dataclasses.replace(
                found.params,
                scale=scale,
                zero_point=np.zeros(scale.shape, np.int32),
                axis=None if found.params.axis is None else 0,
            )
            bias = Quantized(quantized_bias(found.bias, scale), params)
            self.rw.set_input(node, kernel.bias, self._integers(f"{name}.bias", bias))

    def _integers(self, name: str, found: Quantized) -> ir.Value:
        integers = self.rw.const(found.integers, f"{name}.quantized")
        scale = self.rw.const(found.params.scale, f"{name}.scale")
        zero = self.rw.const(found.params.zero_point, f"{name}.zero_point")
        return self._float(integers, scale, zero, found.params.axis)

    def _pair(self, params: QParams, *, integers: bool = False) -> Callable[[ir.Value], ir.Value]:
        """Through integers and back; back only, where the value is to be integers itself."""

        def build(value: ir.Value) -> ir.Value:
            scale, zero = self._scales(params, value.name or "")
            if integers:
                between = value
                value.type = ir.TensorType(ir.DataType[params.format.dtype.upper()])
            else:
                between = self.rw.op("QuantizeLinear", value, scale, zero)
            out = self._float(between, scale, zero)
            if value.shape is not None:
                out.shape = value.shape.copy()
            return out

        return build

    def _scales(self, params: QParams, name: str) -> tuple[ir.Value, ir.Value]:
        return (
            self.rw.const(params.scale, f"{name}.scale"),
            self.rw.const(params.zero_point, f"{name}.zero_point"),
        )

    def _float(
        self, integers: ir.Value, scale: ir.Value, zero: ir.Value, axis: int | None = None
    ) -> ir.Value:
        """A DequantizeLinear; the name of a node, it leaves to that which it was made for."""
        value: ir.Value = self.rw.op("DequantizeLinear", integers, scale, zero, axis=axis)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        producer = value.producer()
        assert producer is not None
        producer.name = ""
        return value

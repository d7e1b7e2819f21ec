"""Rules that put quantizers where integer kernels look for them, past nodes that move elements."""

from __future__ import annotations

import numpy as np

from graphopt import Match, Op, Replacement, Rewriter, Rule, Var, ir, rule
from graphopt.passes.quantize._codes import MOVERS, moved
from graphopt.passes.quantize._grids import (
    Array,
    Grid,
    integers,
    is_dequantize,
    is_quantize,
    known,
    pair,
    read,
    same,
)
from graphopt.targets import Scheme

__all__ = ["move_rules"]

_MOVES = tuple(sorted(MOVERS - {"Split"}))  # a rule replaces one output
_codes = Var()
_dequantize = Op("DequantizeLinear", _codes, variadic=True, shared=True)
_requantize = Op("QuantizeLinear", _dequantize, variadic=True)
_mover = Op(_MOVES, variadic=True)
_behind_mover = Op("QuantizeLinear", _mover, variadic=True)
_pad = Op("Pad", _dequantize, variadic=True)
_behind_pad = Op("QuantizeLinear", _pad, variadic=True)


@rule(_requantize)
def drop_requantizing(m: Match, rw: Rewriter) -> Replacement:
    """Quantizing what was dequantized from the same grid gives the integers back.

    ``(k * s) / s`` is off by two roundings of float32 at most: less than half a step for integers
    of 16 bits.
    """
    first, second = read(m[_dequantize]), read(m.root)
    if isinstance(first, str) or isinstance(second, str):
        return m.fail(first if isinstance(first, str) else str(second))
    if not same(first, second):
        return None
    if not _invertible(first):
        return m.fail("its scale is too small or too large")
    return m.value(_codes)


def _quantized(value: ir.Value, mover: ir.Node, grid: Grid) -> bool:
    node = value.producer()
    if not is_dequantize(node) or node is None:
        return False
    found = read(node)
    return mover.op_type != "Pad" or isinstance(found, str) or same(found, grid)


def _invertible(grid: Grid) -> bool:
    """Whether dequantizing and quantizing again neither overflows nor meets subnormal numbers."""
    return bool(
        (grid.scale >= np.finfo(np.float32).tiny).all()
        and (grid.scale <= np.finfo(np.float32).max / 2**17).all()
        and integers(grid) != ir.DataType.INT32
    )


def move_rules(scheme: Scheme, on_integers: bool) -> tuple[Rule, ...]:
    """Rules towards what a scheme has kernels for.

    Args:
        scheme: The scheme.
        on_integers: The target pads integers.
    """

    def computes(node: ir.Node | None) -> bool:
        """Whether a node is computed on integers if its result is quantized."""
        return node is not None and (
            not isinstance(scheme.kernel(node), str)
            or bool(moved(node))
            or (node.op_type in ("Relu", "Clip") and not node.domain)
        )

    @rule(_behind_mover)
    def quantize_before_moving(m: Match, rw: Rewriter) -> Replacement:
        """Quantize before moving elements, as who computed them looks for the quantizer there."""
        mover = m[_mover]
        sources = [mover.inputs[i] for i in moved(mover)]
        grid = read(m.root)
        if isinstance(grid, str):
            return m.fail(grid)
        if grid.axis is not None or not _invertible(grid) or not sources:
            return None
        # Padding makes a tensor larger: what is on another grid is rounded to this one before.
        ready = [s is None or known(s) is not None or _quantized(s, mover, grid) for s in sources]
        for source, done in zip(sources, ready, strict=True):
            if done or source is None or is_dequantize(source.producer()):
                continue
            if not computes(source.producer()):
                return None
            if ir.use_count(source) != 1 or source.is_graph_output():
                return m.fail(f"what the {mover.op_type} moves is used unquantized, too")
        if all(ready):
            return None
        with rw.at(mover):
            for i, source, done in zip(moved(mover), sources, ready, strict=True):
                if not done and source is not None:
                    rw.set_input(mover, i, pair(rw, source, grid))
        return m.root.outputs[0]

    @rule(Op(_MOVES, variadic=True))
    def quantize_after_moving(m: Match, rw: Rewriter) -> Replacement:
        """Repeat a quantizer after moving elements: they still are on its grid."""
        out = m.root.outputs[0]
        readers = [m.root.inputs[i] for i in moved(m.root)]
        grids = [read(n) for v in readers if v and is_dequantize(n := v.producer()) and n]
        if m.root.op_type != "Gather" and all(known(v) is not None for v in readers):
            return None  # part of a weight
        if not readers or len(grids) != len(readers):
            return None
        grid = grids[0]
        if isinstance(grid, str) or grid.axis is not None or not _invertible(grid):
            return None
        if any(isinstance(g, str) or not same(g, grid) for g in grids):
            return None
        users = [use.node for use in out.uses()]
        if any(map(is_quantize, users)) or all(isinstance(scheme.kernel(u), str) for u in users):
            return None
        if not _pads_on_grid(m.root, grid):
            return m.fail("it pads with a number that is not on the grid")
        rw.insert_after(out, lambda v: pair(rw, v, grid))
        return m.root.outputs[0]

    @rule(_behind_pad)
    def pad_integers(m: Match, rw: Rewriter) -> Replacement:
        """Pad the integers, as ONNX Runtime does for the other operators that move elements."""
        pad = m[_pad]
        first, second = read(m[_dequantize]), read(m.root)
        if isinstance(first, str) or isinstance(second, str):
            return m.fail(first if isinstance(first, str) else str(second))
        if first.axis is not None or not same(first, second) or not _invertible(first):
            return None
        if ir.opset(pad) < 13 or integers(first) not in (ir.DataType.INT8, ir.DataType.UINT8):
            return m.fail("there is no Pad of its integers")
        inputs = [m.value(_codes), *pad.inputs[1:]]
        if ir.attr(pad, "mode") != "constant":
            inputs[2:3] = [None]  # a number that is not used, and not of the type of the integers
        else:
            number = _pad_number(pad)
            if number is None:
                return m.fail("what it pads with is not constant")
            code = first.quantize(number)
            inputs[2:3] = [rw.const(code.reshape(()), "pad")]
        return rw.op("Pad", *inputs, like=pad)

    both = (drop_requantizing, quantize_before_moving, quantize_after_moving)
    return (*both, pad_integers) if on_integers else both


def _pad_number(pad: ir.Node) -> Array | None:
    if ir.opset(pad) < 11:
        return np.array(ir.attr(pad, "value", 0.0), np.float32)
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = np.zeros((), np.float32) if given is None else known(given)
    return None if number is None or number.size != 1 else number


def _pads_on_grid(node: ir.Node, grid: Grid) -> bool:
    if node.op_type != "Pad" or ir.attr(node, "mode") != "constant":
        return True
    number = _pad_number(node)
    return number is not None and bool(
        np.array_equal(grid.dequantize(grid.quantize(number)), number)
    )

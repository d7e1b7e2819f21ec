"""Rules that give quantized activations the integer type of the target."""

from __future__ import annotations

from graphopt import Match, Op, Replacement, Rewriter, Rule, ir
from graphopt.passes.quantize._codes import Codes, shift, trace
from graphopt.passes.quantize._grids import integers, limits, read, shifted
from graphopt.targets import Scheme

__all__ = ["relabel_rules"]

_PAIRS = {
    ir.DataType.INT8: ir.DataType.UINT8,
    ir.DataType.UINT8: ir.DataType.INT8,
    ir.DataType.INT16: ir.DataType.UINT16,
    ir.DataType.UINT16: ir.DataType.INT16,
}
_quantize = Op("QuantizeLinear", variadic=True)
_constant = Op("DequantizeLinear", variadic=True)


def relabel_rules(scheme: Scheme) -> tuple[Rule, ...]:
    """Rules towards the activations of a scheme."""
    wanted = ir.DataType[scheme.activation.dtype.upper()]

    def relabel(m: Match, rw: Rewriter, codes: Codes | str) -> Replacement:
        if isinstance(codes, str):
            return m.fail(codes)
        present = {integers(grid) for grid in codes.ends.values()}
        if present != {_PAIRS.get(wanted)}:
            return None
        (old,) = present
        by = limits(wanted)[0] - limits(old)[0]
        if scheme.activation.symmetric:
            centre = (sum(limits(wanted)) + 1) // 2
            if any(
                (shifted(grid, wanted, by).zero_point != centre).any()
                for grid in codes.ends.values()
            ):
                return m.fail(f"{scheme.name} takes activations with zero point {centre} only")
        shift(rw, codes, wanted, by)
        return m.root.outputs[0]

    def relabel_activation(m: Match, rw: Rewriter) -> Replacement:
        """Shift integers and zero points by half of the range: the same numbers."""
        if ir.const(m.root.inputs[0]) is not None:
            return None  # a weight
        return relabel(m, rw, trace(m.root.outputs[0]))

    def relabel_constant(m: Match, rw: Rewriter) -> Replacement:
        """The same for a constant operand that meets activations, as of Add."""
        constant, users = m.root.inputs[0], tuple(m.root.outputs[0].uses())
        if constant is None or ir.const(constant) is None or not users:
            return None
        if any(is_parameter(scheme, use.node, use.idx) for use in users):
            return None
        grid = read(m.root)
        if isinstance(grid, str):
            return m.fail(grid)
        return relabel(m, rw, Codes(ends={m.root: grid}, constants={constant}))

    return (
        Rule("relabel-activation", _quantize, relabel_activation),
        Rule("relabel-constant", _constant, relabel_constant),
    )


def is_parameter(scheme: Scheme, node: ir.Node, position: int) -> bool:
    """Whether an input of a node is a weight or a bias, or the target does not compute the node."""
    kernel = scheme.kernel(node)
    return isinstance(kernel, str) or position in (kernel.weight, kernel.bias)

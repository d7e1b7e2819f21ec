"""Quantizers around what the target computes in floating point anyway."""

from __future__ import annotations

from graphopt import (
    Context,
    Exactness,
    Match,
    Op,
    Replacement,
    RewritePass,
    Rewriter,
    Rule,
    Var,
    ir,
    rule,
)
from graphopt.passes.quantize._grids import read, same
from graphopt.passes.quantize._scheme import static_scheme
from graphopt.targets import Scheme

__all__ = ["DropQdq"]

_x = Var()
_quantize = Op("QuantizeLinear", _x, variadic=True, shared=True)
_dequantize = Op("DequantizeLinear", _quantize, variadic=True)


def _rules(scheme: Scheme) -> tuple[Rule, ...]:
    def computes_on_integers(node: ir.Node | None) -> bool:
        return node is not None and not isinstance(scheme.kernel(node), str)

    @rule(_dequantize)
    def drop_pair(m: Match, rw: Rewriter) -> Replacement:
        """Leave out rounding that nothing is computed on integers for."""
        users = [use.node for use in m.root.outputs[0].uses()]
        if any(map(computes_on_integers, users)) or m.root.outputs[0].is_graph_output():
            return None
        x = m.value(_x)
        if computes_on_integers(x.producer()):
            return m.fail("an integer kernel computes what it rounds")
        first, second = read(m[_quantize]), read(m.root)
        if isinstance(first, str) or isinstance(second, str):
            return m.fail(first if isinstance(first, str) else str(second))
        return x if same(first, second) else m.fail("it has another scale than its quantizer")

    return (drop_pair,)


class DropQdq(RewritePass):
    """Remove QuantizeLinear and DequantizeLinear between operators without integer kernels.

    What it does: some tools quantize every value. Where neither who computes a value nor who reads
    it has an integer kernel, rounding it costs time and accuracy and gains nothing. Without it
    results are nearer to those of the model before it was quantized.

    Exactness: LOSSY

    Needs: nothing

    Options: none

    Example: Erf(DQ(Q(Div(x, y)))) -> Erf(Div(x, y))

    Declines when: an integer kernel computes the value, or reads it; it is an output of the model;
    the scales of the pair differ, or are computed.

    References: ONNX Runtime, onnxruntime/core/optimizer/qdq_transformer/selectors_actions/
    qdq_selector_action_transformer.cc, which lists the operators that it computes on integers.
    """

    name = "drop-qdq"
    exactness = Exactness.LOSSY
    min_opset = 10

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        """The rule, about the kernels of the target."""
        scheme = static_scheme(ctx)
        return _rules(scheme)

"""Anyone's quantized model in the form that the target's integer kernels take, bit for bit."""

from __future__ import annotations

from graphopt import Context, Exactness, Pass, RewriteStats, Rule, apply_rules, ir
from graphopt.passes.quantize._clips import clip_rules
from graphopt.passes.quantize._moves import move_rules
from graphopt.passes.quantize._relabel import relabel_rules
from graphopt.passes.quantize._scheme import static_scheme
from graphopt.passes.quantize._spelling import SPELLING
from graphopt.passes.quantize._weights import weight_rules

__all__ = ["RepairQdq"]


class RepairQdq(Pass):
    """Rewrite quantized models of any origin into the form that the target computes fast.

    What it does: tools quantize for one runtime and are slow on another, for reasons of form. All
    of these rewrites keep every bit of what the model computes:

    - QuantizeLinear and DequantizeLinear of ONNX Runtime's own domain become standard ones;
    - constants behind a QuantizeLinear, transposed weights, and weights of 4 or 16 bits or with
      another zero point become integer constants of the target's type, and biases floating point
      for a target that wants that;
    - signed activations become unsigned, or the other way round, with shifted zero points;
    - quantizing what was dequantized from the same grid disappears;
    - quantizers move before, and are repeated behind, operators that only move elements;
    - a Relu or Clip before a quantizer is left to its saturation or, if that is elsewhere, to a
      Clip of the integers, and so is padding (on CPUs).

    Exactness: BITWISE

    Needs: a target with kernels for static quantization

    Options: none

    Example: DQ(Q(Relu(x), s, 0), s, 0) of int8 -> DQ(Clip(Q(x, s, 128), 128), s, 128) of uint8

    Declines when: scales are computed, per block, or not float32; integers are outputs of the
    model, are computed with, or are used in a subgraph; the target takes one zero point only and
    this is another; a weight does not fit the type; something uses a value unquantized, too.

    References: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018); ONNX Runtime,
    onnxruntime/core/optimizer/qdq_transformer/qdq_s8_to_u8.cc, which relabels a quantizer with one
    reader only.
    """

    name = "repair-qdq"
    exactness = Exactness.BITWISE
    gated = False  # nodes that are fused when the model is loaded look like a cost
    min_opset = 10

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Apply the rules, kind by kind, until none of any kind applies."""
        phases = self._phases(ctx)
        changed = False
        while True:
            found = RewriteStats()
            for rules in phases:
                found.add(apply_rules(ctx.rewriter(), rules))
            if not found.changed:
                ctx.stats.add(found)
                return changed
            changed = True
            found.declined.clear()  # they are asked again
            ctx.stats.add(found)

    def _phases(self, ctx: Context) -> tuple[tuple[Rule, ...], ...]:
        """Later kinds of rules read what earlier ones wrote."""
        scheme = static_scheme(ctx)
        on_integers = ctx.target.providers[0] == "CPUExecutionProvider"
        return (
            SPELLING,
            weight_rules(scheme),
            relabel_rules(scheme),
            (
                *move_rules(scheme, on_integers),
                *(clip_rules(on_integers) if scheme.drops_relu else ()),
            ),
        )

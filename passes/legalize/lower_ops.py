"""Express what a target does not compute by what it does."""

from __future__ import annotations

import dataclasses

from graphopt import Context, Exactness, Match, Pass, Replacement, Rewriter, Rule, apply_rules, ir
from graphopt.passes.legalize import activations, compositions, products, quantized, spatial
from graphopt.passes.legalize.bodies import Takes, expand_functions
from graphopt.targets import Target, check

__all__ = ["LowerOps"]

_RULES = (
    *quantized.RULES,
    *activations.RULES,
    *products.RULES,
    *spatial.RULES,
    *compositions.RULES,
)
# What rules lead to, in one way or another, where that is not the operator itself in another form.
_LEADS_TO = {
    "Clip": ({"Min", "Max"}, {"Relu"}),
    "HardSigmoid": ({"Add", "Clip", "Mul"}, {"Add", "Mul", "Min", "Max"}),
    "HardSwish": ({"Add", "Clip", "Mul"},),
    "LayerNormalization": ({"Add", "Div", "Mul", "ReduceMean", "Sqrt", "Sub"},),
    "Reciprocal": ({"Div"},),
    "Softplus": ({"Abs", "Add", "Exp", "Log", "Neg", "Relu"},),
    "Sum": ({"Add"},),
}
_ROUNDS = 8
_INTEGER_FORM = {
    "GlobalAveragePool": "AveragePool",
    "ReduceMean": "AveragePool",
    "Flatten": "Reshape",
    "Squeeze": "Reshape",
    "Unsqueeze": "Reshape",
}
_ABOUT_TENSORS = frozenset({"static_shapes", "max_rank", "dtypes", "fp16"})


class LowerOps(Pass):
    """Express operators that the target does not compute by operators that it does.

    What it does: For every node that the target's rules reject, tries what is known to be the same
    function: HardSwish, HardSigmoid and Clip by Clip, Relu, Min and Max; Gemm without alpha, beta
    and transA, or as MatMul and Add; a stack of matrices as one; convolutions and pooling over one
    dimension as over two; means over images as GlobalAveragePool, and that as AveragePool; padding
    that counts apart from the pooling; MaxPool between quantized values on integers; Softmax of
    matrices; Flatten, Squeeze and Unsqueeze as Reshape; LayerNormalization by means; Sum by Add;
    ONNX Runtime's FusedConv and Gelu by standard operators; and else the definition that the ONNX
    standard gives, if all that it leads to is taken. What the target takes stays as it is.

    Exactness: Rounding: constants and the order of operations differ.

    Needs: Types and shapes of the values involved; a target with rules.

    Options: integer (lower also what the target computes in floating point only, where the form
    that it lowers to has an integer kernel: pooling and views).

    Example: ``y = HardSwish(x)`` -> ``y = Mul(x, Mul(Clip(Add(x, 3), 0, 6), 1/6))`` for NNAPI

    Declines when: No equivalent is known, it would need another operator that the target lacks, or
    a shape, type or constant that it depends on is not known.

    References: ONNX operator specification, "Function Body" of operators; Howard et al., "Searching
    for MobileNetV3" (2019), section 5.2.
    """

    name = "lower-ops"
    exactness = Exactness.ROUNDING
    min_opset = 7
    gated = False
    integer: bool = False

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Apply the rules to rejected nodes, in rounds: only between them all shapes are known."""
        rw, takes = ctx.rewriter(), _takes(ctx.target)
        for _ in range(_ROUNDS):
            rejected = _rejected(model, ctx.target)
            if self.integer:
                rejected |= _float_only(model, ctx.target)
            if not rejected:
                break
            body = expand_functions(
                {n.op_type for n in rejected if not n.domain} - {"CastLike"}, takes
            )
            rules = [*_RULES, *([] if body is None else [body])]
            stats = apply_rules(rw, [_only(r, rejected, takes) for r in rules])
            ctx.stats.applied += stats.applied
            ctx.stats.erased += stats.erased
            if not stats.applied:
                ctx.stats.declined += stats.declined
                break
            ctx.infer_shapes()
        return rw.changed


def _rejected(model: ir.Model, target: Target) -> set[ir.Node]:
    """Nodes that are not of the kind that the target computes, whatever their tensors are like."""
    return {
        v.node
        for v in check(model, target)
        if v.node is not None and not v.slow and v.rule not in _ABOUT_TENSORS
    }


def _float_only(model: ir.Model, target: Target) -> set[ir.Node]:
    """Nodes without an integer kernel for which there is a form that has one."""
    if target.scheme is None:
        return set()
    kernels = target.scheme.kernels
    wanted = {op for op, other in _INTEGER_FORM.items() if op not in kernels and other in kernels}
    return {n for n in ir.all_nodes(model) if not n.domain and n.op_type in wanted}


def _takes(target: Target) -> Takes:
    """Whether a target computes an operator, or what a rule makes of it."""

    def takes(op: str) -> bool:
        if target.operators is None or op in target.operators:
            return True
        return any(all(map(takes, ways)) for ways in _LEADS_TO.get(op, ()))

    return takes


def _only(each: Rule, nodes: set[ir.Node], takes: Takes) -> Rule:
    """A rule that applies to some nodes only, and where its result is of use."""

    def build(m: Match, rw: Rewriter) -> Replacement:
        if m.root not in nodes:
            return None
        ways = () if m.root.domain else _LEADS_TO.get(m.root.op_type, ())
        if ways and not any(all(map(takes, way)) for way in ways):
            return m.fail("the target lacks what it would be expressed by")
        return each.build(m, rw)

    return dataclasses.replace(each, build=build)

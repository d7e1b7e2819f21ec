"""Operators between dequantizers and quantizers into operators on integers."""

from __future__ import annotations

import numpy as np

from graphopt import (
    Context,
    Exactness,
    Match,
    Op,
    Replacement,
    RewritePass,
    Rewriter,
    Rule,
    ir,
    rule,
)
from graphopt.passes.quantize._clips import clip_rules
from graphopt.passes.quantize._codes import MOVERS, moved
from graphopt.passes.quantize._grids import dequantize, integers, known, read, same
from graphopt.passes.quantize._moves import drop_requantizing
from graphopt.passes.quantize._qlinear import (
    CONTRIB,
    Operand,
    Unfit,
    activation,
    bias_of,
    import_contrib,
    operand,
    parameters,
    per_tensor,
    result_grid,
    takes_contrib,
    weight_of,
)

__all__ = ["LowerQdq"]

# The inputs of an operator that are activations; None for all of them.
_ACTIVATIONS: dict[str, tuple[int, ...] | None] = {
    "Add": (0, 1),
    "AveragePool": (0,),
    "Concat": None,
    "GlobalAveragePool": (0,),
    "LeakyRelu": (0,),
    "Mul": (0, 1),
    "Sigmoid": (0,),
    "Softmax": (0,),
    "Where": (1, 2),
}
_moved = Op(tuple(sorted(MOVERS - {"Split"})), variadic=True)
_SINCE = {"MaxPool": 12, "Pad": 13}


@rule(Op("QuantizeLinear", _moved, variadic=True), benefit=2)
def move_integers(m: Match, rw: Rewriter) -> Replacement:
    """An operator that only moves numbers can move the integers instead."""
    node = m[_moved]
    positions = moved(node)
    if not positions:
        return m.fail("Resize interpolates")
    try:
        grid, sources = result_grid(m.root), [activation(node, i) for i in positions]
    except Unfit as e:
        return m.fail(str(e))
    if any(not same(s.grid, grid) for s in sources):
        return None if node.op_type == "Concat" else m.fail("the two sides have different grids")
    since = _SINCE.get(node.op_type, 10)
    if ir.opset(node) < since:
        return m.fail(f"{node.op_type} takes 8-bit integers from opset {since} on")
    inputs: list[ir.Value | None] = [s.codes for s in sources]
    inputs += node.inputs[len(positions) :]
    if node.op_type == "Pad" and ir.attr(node, "mode") != "constant":
        inputs[2:3] = [None]  # a number that is not used, and not of the type of the integers
    elif node.op_type == "Pad":
        given = node.inputs[2] if len(node.inputs) > 2 else None
        number = np.zeros((), np.float32) if given is None else known(given)
        if number is None:
            return m.fail("what it pads with is not constant")
        code = grid.quantize(np.asarray(number))
        inputs[2:3] = [rw.const(code.reshape(()), "pad")]
    return rw.op(node.op_type, *inputs, like=node)


@rule(Op("Split", variadic=True))
def split_integers(m: Match, rw: Rewriter) -> Replacement:
    """A Split whose parts are all quantized by the grid of the whole can split the integers."""
    source = operand(m.root.inputs[0])
    if source is None or not per_tensor(source.grid):
        return None
    users = [use.node for out in m.root.outputs for use in out.uses()]
    if any(u.op_type != "QuantizeLinear" for u in users) or not users:
        return m.fail("its parts are used unquantized, too")
    grids = [read(u) for u in users]
    if any(isinstance(g, str) or not same(g, source.grid) for g in grids):
        return m.fail("the two sides have different grids")
    parts = rw.op(
        "Split", source.codes, *m.root.inputs[1:], like=m.root, outputs=len(m.root.outputs)
    )
    return [dequantize(rw, part, source.grid) for part in parts]


def _lowering(scheme: ir.DataType | None) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Rules with standard operators, and rules with those of ONNX Runtime.

    Args:
        scheme: Type of the activations that there are fast kernels for, or None for any.
    """
    _computed = Op(("Conv", "MatMul"), variadic=True)
    _contributed = Op(tuple(_ACTIVATIONS), variadic=True)
    _gemm = Op("Gemm", variadic=True)

    def activations(node: ir.Node, *positions: int) -> list[Operand]:
        found = [activation(node, i) for i in positions]
        kind = integers(found[0].grid)
        if any(integers(s.grid) != kind for s in found):
            raise Unfit("its integers are of different types")
        if scheme is not None and kind != scheme:
            raise Unfit(f"activations are {kind.name.lower()}, for which kernels are slow")
        return found

    @rule(Op("QuantizeLinear", _computed, variadic=True))
    def lower_linear(m: Match, rw: Rewriter) -> Replacement:
        """Conv and MatMul have standard operators on integers."""
        node = m[_computed]
        try:
            (x,) = activations(node, 0)
            grid = result_grid(m.root, x)
            weight = weight_of(node, x, 0 if node.op_type == "Conv" else -1)
            bias = bias_of(node, x, weight, rw) if node.op_type == "Conv" else None
        except Unfit as e:
            return m.fail(str(e))
        ins = (*x.inputs(rw), *weight.inputs(rw), *parameters(rw, m.root, grid))
        return rw.op(f"QLinear{node.op_type}", *ins, bias, like=node)

    @rule(Op("QuantizeLinear", _contributed, variadic=True))
    def lower_contributed(m: Match, rw: Rewriter) -> Replacement:
        """What ONNX Runtime has operators on integers of its own for."""
        node = m[_contributed]
        positions = _ACTIVATIONS[node.op_type]
        try:
            sources = activations(node, *(positions or range(len(node.inputs))))
            grid = result_grid(m.root, *sources)
            attrs = _attributes(node)
        except Unfit as e:
            return m.fail(str(e))
        to = parameters(rw, m.root, grid)
        ins: list[ir.Value | None] = [v for s in sources for v in s.inputs(rw)]
        ins = [*to, *ins] if node.op_type == "Concat" else [*ins, *to]
        if node.op_type == "Where":
            ins.insert(0, node.inputs[0])
        return rw.op(f"QLinear{node.op_type}", *ins, like=node, outputs=1, domain=CONTRIB, **attrs)

    def gemm(node: ir.Node, quantizer: ir.Node | None, rw: Rewriter) -> ir.Value:
        if ir.attr(node, "alpha") != 1 or ir.attr(node, "beta") != 1:
            raise Unfit("it has factors (alpha, beta)")
        (x,) = activations(node, 0)
        weight = weight_of(node, x, 0 if ir.attr(node, "transB") else 1)
        bias = bias_of(node, x, weight, rw)
        to = () if quantizer is None else parameters(rw, quantizer, result_grid(quantizer, x))
        ins = (*x.inputs(rw), *weight.inputs(rw), bias, *to)
        return rw.op("QGemm", *ins, like=node, domain=CONTRIB, beta=None)

    @rule(Op("QuantizeLinear", _gemm, variadic=True))
    def lower_gemm(m: Match, rw: Rewriter) -> Replacement:
        """Gemm has an operator on integers of ONNX Runtime's."""
        try:
            return gemm(m[_gemm], m.root, rw)
        except Unfit as e:
            return m.fail(str(e))

    @rule(Op("Gemm", variadic=True))
    def lower_last_gemm(m: Match, rw: Rewriter) -> Replacement:
        """A Gemm of integers can compute floats."""
        users = {use.node.op_type for use in m.root.outputs[0].uses()}
        if operand(m.root.inputs[0]) is None or users & {"QuantizeLinear", "Relu", "Clip"}:
            return None
        try:
            return gemm(m.root, None, rw)
        except Unfit as e:
            return m.fail(str(e))

    return (lower_linear,), (lower_contributed, lower_gemm, lower_last_gemm)


def _attributes(node: ir.Node) -> dict[str, int | None]:
    match node.op_type:
        case "AveragePool":
            if any(d != 1 for d in ir.attr(node, "dilations", ())):
                raise Unfit("it has dilations")
            return {"dilations": None}
        case "Softmax":
            return {"opset": ir.opset(node), "axis": int(ir.attr(node, "axis"))}
        case "GlobalAveragePool":
            return {"channels_last": 0}
    return {}


_MOVES: tuple[Rule, ...] = (drop_requantizing, move_integers, split_integers, *clip_rules(True))


class LowerQdq(RewritePass):
    """Compute on integers what stands between DequantizeLinear and QuantizeLinear.

    What it does: spells quantized operators out, where QuantizeLinear and DequantizeLinear around
    an operator only say what a runtime may do. Conv and MatMul become QLinearConv and
    QLinearMatMul. Where the target has ONNX Runtime's own operators, Add, Mul, Concat, Where,
    AveragePool, GlobalAveragePool, LeakyRelu, Sigmoid and Softmax become QLinearAdd and so on, and
    Gemm becomes QGemm. Operators that only move numbers (Pad, Slice, Reshape, MaxPool, nearest
    Resize, ...) move the integers. A Relu or Clip that quantizing does anyway disappears, another
    one clips integers. Biases become int32.

    Exactness: LOSSY; every result is within one step of its grid, since operators on integers
    multiply by a quotient of scales, rounded to float32, instead of dividing: results half-way
    between two integers come out on either side. On a CPU these are the same bits that ONNX Runtime
    computes from the model before, as its optimizer lowers it the same way. Moving, clipping and
    cancelling are exact.

    Needs: nothing

    Options: none

    Example: QuantizeLinear(Conv(DequantizeLinear(q, s, z), DequantizeLinear(w, t, 0)), u, v) ->
    QLinearConv(q, s, z, w, t, 0, u, v)

    Declines when: something else uses the unquantized result; scales or zero points are computed,
    activations have one per channel or not 8 bits, their types differ, or the target has fast
    kernels only for another (repair-qdq changes it); the scales of a weight are not those of output
    channels or its zero points differ; a bias is computed; Gemm has factors, AveragePool dilations;
    the two sides of an operator that moves numbers have different grids; the opset has no such
    operator on integers.

    References: ONNX operators QLinearConv and QLinearMatMul
    (https://onnx.ai/onnx/operators/onnx__QLinearConv.html); ONNX Runtime, ContribOperators.md.
    """

    name = "lower-qdq"
    exactness = Exactness.LOSSY
    min_opset = 10

    def rules_for(self, ctx: Context) -> tuple[Rule, ...]:
        """The rules; those for ONNX Runtime's operators only where the target has them."""
        scheme = ctx.target.scheme
        kind = None if scheme is None else ir.DataType[scheme.activation.dtype.upper()]
        standard, contributed = _lowering(kind)
        return (*_MOVES, *standard, *(contributed if takes_contrib(ctx.target) else ()))

    def run(self, model: ir.Model, ctx: Context) -> bool:
        """Apply the rules to a fixed point; return whether any of them changed the model."""
        changed = super().run(model, ctx)
        import_contrib(model)
        return changed

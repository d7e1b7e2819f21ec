"""Matrix products, additions and transpositions into Gemm."""

from __future__ import annotations

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.linear import is_float

__all__ = ["FuseGemm"]

_a, _b, _c = Var(), Var(), Var()
_matmul = Op("MatMul", _a, _b)
_gemm = Op("Gemm", _a, _b)
_transpose = Op("Transpose", _a)


@rule(Op("Add", _matmul, _c))
def fuse_matmul_add(m: Match, rw: Rewriter) -> Replacement:
    """MatMul and Add of matrices."""
    reason = _not_matrices(m[_matmul]) or _not_a_bias(m[_c], m[_matmul].outputs[0])
    if reason:
        return m.fail(reason)
    return rw.op("Gemm", m[_a], m[_b], m[_c])


@rule(Op("Add", _gemm, _c))
def fuse_gemm_add(m: Match, rw: Rewriter) -> Replacement:
    """An Add behind a Gemm without bias."""
    reason = _not_a_bias(m[_c], m[_gemm].outputs[0])
    if reason:
        return m.fail(reason)
    return rw.op("Gemm", m[_a], m[_b], m[_c], like=m[_gemm], beta=None)


@rule(Op(("Gemm", "MatMul"), _transpose, variadic=True))
def fuse_transpose_left(m: Match, rw: Rewriter) -> Replacement:
    """A transposed first factor."""
    return _absorb(m, rw, 0, "transA")


@rule(Op(("Gemm", "MatMul"), _b, _transpose, variadic=True))
def fuse_transpose_right(m: Match, rw: Rewriter) -> Replacement:
    """A transposed second factor."""
    return _absorb(m, rw, 1, "transB")


def _absorb(m: Match, rw: Rewriter, index: int, name: str) -> Replacement:
    node = m.root
    swaps = ir.attr(m[_transpose], "perm", (1, 0)) == (1, 0)
    if node.op_type == "Gemm" and swaps:
        rw.set_attr(node, **{name: None if ir.attr(node, name, 0) else 1})
        rw.set_input(node, index, m[_a])
        return node.outputs[0]
    reason = _not_matrices(node)
    if reason is None and not swaps:
        reason = "the Transpose does not swap rows and columns"
    if reason is None and ir.opset(node) < 11:
        reason = "before opset 11 a Gemm needs a bias"
    if reason is not None:
        return m.fail(reason)
    inputs = [*node.inputs]
    inputs[index] = m[_a]
    left = index == 0
    return rw.op("Gemm", *inputs, transA=1 if left else None, transB=None if left else 1)


def _not_matrices(node: ir.Node) -> str | None:
    if any(ir.rank(v) != 2 for v in node.inputs):
        return "the factors are not known to be matrices"
    if not all(is_float(v) for v in node.inputs):
        return "Gemm is for floating-point numbers"
    return None


def _not_a_bias(c: ir.Value, product: ir.Value) -> str | None:
    """Why adding ``c`` to a matrix ``product`` is not what Gemm adds; None if it is."""
    if c is product:
        return "it adds the product to itself"
    have, want = ir.dims(c), ir.dims(product)
    if have is None or want is None:
        return "the shape of the summand is not known"
    if len(have) > 2:
        return "the summand has a higher rank than the product"
    for d, size in zip(have[::-1], want[::-1], strict=False):
        if d != 1 and (d is None or d != size):
            return "the summand may broadcast the product"
    if len(have) == 2 and 1 not in have and ir.const(c) is None:
        # ONNX Runtime fuses it anyway; what looks for branches wants to see that they meet.
        return "the summand is another branch of the network"
    return None


class FuseGemm(RewritePass):
    """Compute MatMul and Add of matrices, and transposed factors, by one Gemm.

    What it does: MatMul followed by Add becomes Gemm, and so does Gemm without bias followed by
    Add. Transpose of a matrix before Gemm or MatMul becomes transA or transB.

    Measured with ONNX Runtime 1.31 on one x86-64 core, 9 shapes from 1x64x10 to 128x384x1536,
    interleaved: Gemm takes 0.57 to 1.02 times as long as MatMul and Add with its optimizer off
    (median 0.96; the smaller the product, the better), also in float64 and float16 and for every
    shape of bias, and the same time with its optimizer on, which then makes the same fusion.
    transB takes 0.62 to 0.93 times as long as a Transpose at run time. transA takes 0.9 to 1.09
    times as long with the optimizer off and the same time with it on. Products of higher rank stay
    MatMul: Gemm would need a Reshape before and one after.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Add(MatMul(a, b), c) -> Gemm(a, b, c)

    Declines when: the factors are not known to be matrices of floats; the summand is of unknown
    shape, is the product itself, is a computed matrix (as that beside a residual branch), or
    broadcasts the product to more rows, columns or dimensions; something else uses the product or
    the transposed factor.

    References: ONNX operator Gemm (https://onnx.ai/onnx/operators/onnx__Gemm.html).
    """

    name = "fuse-gemm"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (fuse_matmul_add, fuse_gemm_add, fuse_transpose_left, fuse_transpose_right)

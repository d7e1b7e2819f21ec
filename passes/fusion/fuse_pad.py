"""Padding with zeros into the convolution or pooling behind it."""

from __future__ import annotations

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, ir, rule
from graphopt.passes.fusion.linear import Unfit, constant

__all__ = ["FusePad"]

_x = Var()
_pad = Op("Pad", _x, variadic=True)


@rule(Op("Conv", _pad, variadic=True))
def fuse_pad_conv(m: Match, rw: Rewriter) -> Replacement:
    """Pad the convolution itself."""
    try:
        total = _add_pads(m.root, _spatial_pads(m[_pad], m[_x]))
    except Unfit as e:
        return m.fail(str(e))
    rw.set_attr(m.root, pads=total, auto_pad=None)
    rw.set_input(m.root, 0, m[_x])
    return m.root.outputs[0]


@rule(Op("AveragePool", _pad))
def fuse_pad_average_pool(m: Match, rw: Rewriter) -> Replacement:
    """Pad the pooling itself, which then has to count what it pads, as it did."""
    node = m.root
    try:
        pads = _spatial_pads(m[_pad], m[_x])
        total = _add_pads(node, pads)
    except Unfit as e:
        return m.fail(str(e))
    if not ir.attr(node, "count_include_pad", 0) and any(ir.attr(node, "pads", ())):
        return m.fail("the pooling averages without its own padding, but with that of the Pad")
    if ir.attr(node, "ceil_mode", 0):
        return m.fail("with ceil_mode windows may reach beyond the padding")
    kernel = ir.attr(node, "kernel_shape", ())
    if any(p >= k for p, k in zip(total, (*kernel, *kernel), strict=True)):
        return m.fail("ONNX Runtime does not pool where the padding exceeds the kernel")
    rw.set_attr(node, pads=total, auto_pad=None, count_include_pad=1)
    rw.set_input(node, 0, m[_x])
    return node.outputs[0]


def _add_pads(node: ir.Node, extra: tuple[int, ...]) -> tuple[int, ...]:
    """The pads of a convolution or pooling with more of them; begins first, then ends."""
    auto = ir.attr(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise Unfit("the operator pads as much as the size of its input asks for (auto_pad)")
    own = ir.attr(node, "pads", ()) if auto == "NOTSET" else ()
    own = own or (0,) * len(extra)
    if len(own) != len(extra):
        raise Unfit("the Pad and the operator differ in rank")
    return tuple(int(a) + b for a, b in zip(own, extra, strict=True))


def _spatial_pads(pad: ir.Node, x: ir.Value) -> tuple[int, ...]:
    """What a Pad adds to the spatial dimensions: begins first, then ends.

    Raises:
        Unfit: It does something else, too, or what it does is not known.
    """
    if ir.attr(pad, "mode", "constant") != "constant":
        raise Unfit("it does not pad with a constant")
    inputs = (*pad.inputs, None, None, None)
    axes = None
    if ir.opset(pad) < 11:
        if ir.attr(pad, "value", 0.0) != 0:
            raise Unfit("it does not pad with zeros")
        pads = [int(p) for p in ir.attr(pad, "pads", ())]
    else:
        if inputs[2] is not None and constant(inputs[2], "the value it pads with").any():
            raise Unfit("it does not pad with zeros")
        pads = [int(p) for p in constant(inputs[1], "the width of the padding")]
        if inputs[3] is not None:
            axes = [int(a) for a in constant(inputs[3], "the choice of axes")]
    rank = len(pads) // 2
    if axes is not None:
        known = ir.rank(x)
        if known is None:
            raise Unfit("the rank of the input is not known")
        spread = [0] * (2 * known)
        for i, axis in enumerate(axes):
            at = axis + known if axis < 0 else axis
            spread[at], spread[at + known] = pads[i], pads[i + rank]
        pads, rank = spread, known
    begins, ends = pads[:rank], pads[rank:]
    if any((*begins[:2], *ends[:2])):
        raise Unfit("it pads samples or channels")
    if any(p < 0 for p in pads):
        raise Unfit("it crops")
    return (*begins[2:], *ends[2:])


class FusePad(RewritePass):
    """Fold padding with zeros into the convolution or average pooling behind it.

    What it does: Conv pads with zeros by itself, so its pads take over what a Pad did. An
    AveragePool takes it over where it counts padding (count_include_pad=1), or has none of its own
    and counts it from now on.

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Conv(Pad(x, [0,0,1,1,0,0,1,1]), w) -> Conv(x, w) {pads=[1,1,1,1]}

    Declines when: the Pad reflects, repeats or wraps, has a value other than zero, crops, pads
    samples or channels, or by a width that is not constant; auto_pad is SAME_UPPER or SAME_LOWER;
    an AveragePool has padding that it does not count, or ceil_mode=1, or a kernel no larger than
    the padding; something else uses the padded tensor. MaxPool never qualifies: what it pads with
    is minus infinity.

    References: ONNX operators Conv, AveragePool, Pad (https://onnx.ai/onnx/operators/);
    microsoft/onnxruntime#22177.
    """

    name = "fuse-pad"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (fuse_pad_conv, fuse_pad_average_pool)

"""Convolutions whose weights say that they take less work than they seem to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from graphopt import Exactness, Match, Op, Replacement, RewritePass, Rewriter, Var, rule
from graphopt.passes.factorize._convolution import BLOCK, Convolution, convolution
from graphopt.passes.factorize._separate import separate
from graphopt.passes.factorize._unread import drop_parts
from graphopt.passes.fusion.linear import Array, Unfit

__all__ = ["SimplifyConvolutions"]

_concat = Op("Concat", variadic=True)
_conv = Op("Conv", variadic=True)


@rule(Op("Conv", _concat, Var(), variadic=True))
def drop_channels(m: Match, rw: Rewriter) -> Replacement:
    """Read no channels whose weights are zero, or that are constant."""
    try:
        return drop_parts(convolution(m.root), m[_concat], rw)
    except Unfit as e:
        return m.fail(str(e))


@rule(_conv)
def cut_kernel(m: Match, rw: Rewriter) -> Replacement:
    """Cut off the borders of a kernel that are zero, and skip zeros between its elements."""
    try:
        conv = convolution(m.root)
        return _cut(conv, m, rw)
    except Unfit as e:
        return m.fail(str(e))


@rule(_conv)
def split_groups(m: Match, rw: Rewriter) -> Replacement:
    """Compute the blocks of a block-diagonal weight as groups."""
    try:
        conv = convolution(m.root)
        parts = max(_blocks(conv), default=1)
        if parts == 1:
            return None
        if not _pays(conv, parts):
            return m.fail("so few groups of so few channels are slower")
        conv.check_change()
    except Unfit as e:
        return m.fail(str(e))
    rw.set_input(m.root, 1, rw.const(_diagonal(conv, parts), conv.weight.name or "weight"))
    rw.set_attr(m.root, group=conv.groups * parts)
    return m.root.outputs[0]


@rule(_conv)
def separate_kernel(m: Match, rw: Rewriter) -> Replacement:
    """Compute a kernel that is a product in two steps."""
    try:
        return separate(convolution(m.root), rw)
    except Unfit as e:
        return m.fail(str(e))


def _cut(conv: Convolution, m: Match, rw: Rewriter) -> Replacement:
    if math.prod(conv.kernel) == 1:
        return None
    used = (conv.data != 0).any(axis=(0, 1))
    if used.all():
        return None
    if not used.any():
        raise Unfit("all weights are zero: what it computes is constant")
    n = len(conv.kernel)
    places = [np.flatnonzero(used.any(axis=tuple(b for b in range(n) if b != a))) for a in range(n)]
    if all(len(place) == k for place, k in zip(places, conv.kernel, strict=True)):
        return None
    pads, dilations = list(conv.pads()), list(conv.dilations)
    taps: list[slice] = []
    for a, (k, place) in enumerate(zip(conv.kernel, places, strict=True)):
        # What is cut off at the beginning, or the end, has to lie in the padding there.
        begin = min(int(place[0]), max(pads[a], 0) // dilations[a])
        end = min(k - 1 - int(place[-1]), max(pads[n + a], 0) // dilations[a])
        pads[a] -= begin * dilations[a]
        pads[n + a] -= end * dilations[a]
        last = k - 1 - begin - end
        step = math.gcd(last, *(int(p) - begin for p in place)) or 1
        dilations[a] *= step
        taps.append(slice(begin, k - end, step))
    weight = np.ascontiguousarray(conv.data[(slice(None), slice(None), *taps)])
    if weight.shape == conv.data.shape:
        return m.fail("the input is not padded as far as the kernel is zero")
    conv.check_change()
    rw.set_input(m.root, 1, rw.const(weight, conv.weight.name or "weight"))
    rw.set_attr(
        m.root,
        auto_pad=None,
        pads=pads if any(pads) else None,
        dilations=dilations if any(d != 1 for d in dilations) else None,
        kernel_shape=list(weight.shape[2:]) if "kernel_shape" in m.root.attributes else None,
    )
    return m.root.outputs[0]


def _blocks(conv: Convolution) -> Iterator[int]:
    """Numbers of blocks on the diagonal of every group, outside of which weights are zero."""
    outputs, inputs = conv.data.shape[0] // conv.groups, conv.data.shape[1]
    most = math.gcd(outputs, inputs)
    if most == 1 or conv.data[0, -1].any():
        return  # the corner is in no block but that of all
    used = (conv.data != 0).any(axis=tuple(range(2, conv.data.ndim)))
    if not used.any():
        return
    for parts in range(2, most + 1):
        if most % parts == 0:
            cells = used.reshape(conv.groups, parts, outputs // parts, parts, inputs // parts)
            filled = cells.any(axis=(0, 2, 4))
            if not filled[~np.eye(parts, dtype=bool)].any():
                yield parts


def _pays(conv: Convolution, parts: int) -> bool:
    outputs, inputs = conv.data.shape[0] // conv.groups // parts, conv.data.shape[1] // parts
    if parts >= 4 or math.prod(conv.kernel) == 1 or outputs == inputs == 1:
        return True
    return not (outputs % BLOCK or inputs % BLOCK)


def _diagonal(conv: Convolution, parts: int) -> Array:
    outputs, inputs = conv.data.shape[0] // conv.groups, conv.data.shape[1]
    cells = conv.data.reshape(
        conv.groups, parts, outputs // parts, parts, inputs // parts, *conv.kernel
    )
    each = np.arange(parts)
    # Indices apart from each other come first: [parts, groups, outputs, inputs, ...].
    blocks = cells[:, each, :, each].swapaxes(0, 1)
    shape = (conv.data.shape[0], inputs // parts, *conv.kernel)
    return np.ascontiguousarray(blocks.reshape(shape))


class SimplifyConvolutions(RewritePass):
    """Compute convolutions with less work where their weights allow it without loss.

    What it does: looks for weights with which a Conv computes the same with fewer multiplications,
    as distillation, pruning, merging of branches and image filters leave them. Borders of a kernel
    that are zero are cut off, down to 1x1, and the padding with them; zeros between its elements
    become dilation. A weight that is block-diagonal becomes groups, of single channels if it can.
    Parts of a Concat whose weights are zero are not read, and those that are constant become part
    of the bias. A kernel that is a product up to rounding is computed in two steps, where that is
    estimated to take less time: along one axis and then along the others (blur, Sobel), or one
    channel at a time, before or after a pointwise convolution (a merged depthwise-separable pair).

    Exactness: ROUNDING

    Needs: nothing

    Options: none

    Example: Conv(x, w[8,8,3,3]) {pads=[1, 1, 1, 1]} -> Conv(x, w[8,8,1,1])

    Declines when: the weight is not constant, not finite, or used elsewhere too; the input is not
    padded where the kernel is zero, or the padding follows from sizes that are not known
    (auto_pad); there are two or three groups, of channels that are no multiples of 16; a constant
    part of the input meets padding, 16-bit floats, groups or a bias that is not constant, or the
    numbers of channels of the parts are not known; more than half of the channels stay, and no
    multiple of 16 any more; two steps are not estimated to take less time,
    or the sizes of the image are not known; a kernel of 16-bit floats is a product, since what is
    between the steps would be rounded; all weights are zero.

    References: Guo et al. (2018), "Network Decoupling: From Regular to Depthwise Separable
    Convolutions"; Rigamonti et al. (2013), "Learning Separable Filters".
    """

    name = "simplify-convolutions"
    exactness = Exactness.ROUNDING
    min_opset = 7
    rules = (drop_channels, cut_kernel, split_groups, separate_kernel)

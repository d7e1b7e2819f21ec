"""Random small networks of convolutions and of what moves channels between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from pruning.building import Net, Network


class Tensor(NamedTuple):
    """Name, channels, and size of the sides of [n, channels, side, side]."""

    name: str
    width: int
    side: int


class Writer:
    """A network that is being drawn; its values stay small, so that sums are exact."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.net = Net(exact=True)
        self.net.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.bounds = self.net.const(np.float32(0)), self.net.const(np.float32(3))
        stem = self.net.conv(self.net.input("x", "n", 3, 8, 8), 3, 8, name="stem")
        self.live = [Tensor(self.net.add("Relu", stem), 8, 8)]

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def clip(self, x: str) -> str:
        return self.net.add("Clip", x, *self.bounds)

    def step(self, each: Callable[[Writer, Tensor], Tensor | None]) -> None:
        """Go on from one of the last tensors, unless the step does not fit it."""
        made = each(self, self.draw(st.sampled_from(self.live[-3:])))
        if made is not None and 1 < made.width <= 48:
            self.live.append(made)

    def other(self, x: Tensor, width: int | None = None) -> Tensor:
        same = [o for o in self.live if o.side == x.side and width in (None, o.width)]
        return self.draw(st.sampled_from(same))


def conv(w: Writer, x: Tensor) -> Tensor:
    wide, k = w.number(2, 12), w.draw(st.sampled_from([1, 3]))
    return Tensor(w.clip(w.net.conv(x.name, x.width, wide, k)), wide, x.side)


def grouped(w: Writer, x: Tensor) -> Tensor:
    groups = w.draw(st.sampled_from([g for g in (2, 3, 4) if x.width % g == 0] or [1]))
    wide = groups * w.number(1, 4)
    return Tensor(w.clip(w.net.conv(x.name, x.width, wide, 1, group=groups)), wide, x.side)


def depthwise(w: Writer, x: Tensor) -> Tensor:
    y = w.net.conv(x.name, x.width, x.width, group=x.width)
    return x._replace(name=w.clip(y))


def transposed(w: Writer, x: Tensor) -> Tensor | None:
    if x.side > 8:
        return None
    groups = w.draw(st.sampled_from([g for g in (1, 2, x.width) if x.width % g == 0]))
    per = w.number(1, 4)
    weight = w.net.weight(x.width, per, 2, 2, fan=x.width // groups)
    bias = w.net.const(w.net.vector(groups * per))
    y = w.net.add("ConvTranspose", x.name, weight, bias, group=groups, strides=[2, 2])
    return Tensor(w.clip(y), groups * per, x.side * 2)


def activation(w: Writer, x: Tensor) -> Tensor:
    shift = w.net.const(w.net.vector(x.width).reshape(-1, 1, 1))
    return x._replace(name=w.net.add("Relu", w.net.add("Sub", x.name, shift)))


def negative(w: Writer, x: Tensor) -> Tensor:
    """Zeros become twos: what is removed is not zero everywhere."""
    y = w.net.add("Sub", w.net.const(np.float32(2)), x.name)
    return x._replace(name=w.clip(y))


def normalized(w: Writer, x: Tensor) -> Tensor:
    return x._replace(name=w.clip(w.net.batch_norm(x.name, x.width)))


def added(w: Writer, x: Tensor) -> Tensor:
    return x._replace(name=w.clip(w.net.add("Add", x.name, w.other(x, x.width).name)))


def scaled(w: Writer, x: Tensor) -> Tensor:
    """Squeeze and excite."""
    pooled = w.net.conv(w.net.add("GlobalMaxPool", x.name), x.width, x.width, 1)
    return x._replace(name=w.clip(w.net.add("Mul", x.name, pooled)))


def joined(w: Writer, x: Tensor) -> Tensor:
    other = w.other(x)
    y = w.net.add("Concat", x.name, other.name, axis=1)
    return Tensor(y, x.width + other.width, x.side)


def split(w: Writer, x: Tensor) -> Tensor:
    wide = w.number(1, x.width - 1)
    sizes = w.net.ints(wide, x.width - wide)
    names = [w.net.fresh("part"), w.net.fresh("rest")]
    one, rest = w.net.multiple("Split", x.name, sizes, names=names, axis=1)
    if wide < x.width - 1:
        w.live.append(Tensor(rest, x.width - wide, x.side))
    return Tensor(one, wide, x.side)


def sliced(w: Writer, x: Tensor) -> Tensor:
    start, stride = w.number(0, x.width - 2), w.number(1, 2)
    bounds = [w.net.ints(n) for n in (start, x.width, 1, stride)]
    return Tensor(w.net.add("Slice", x.name, *bounds), len(range(start, x.width, stride)), x.side)


def picked(w: Writer, x: Tensor) -> Tensor:
    """Channels in any order, some of them twice, some not at all."""
    picks = w.draw(st.lists(st.integers(0, x.width - 1), min_size=2, max_size=12))
    return Tensor(w.net.add("Gather", x.name, w.net.ints(*picks), axis=1), len(picks), x.side)


def padded(w: Writer, x: Tensor) -> Tensor:
    before, after = w.number(0, 3), w.number(0, 3)
    y = w.net.add("Pad", x.name, w.net.ints(0, before, 0, 0, 0, after, 0, 0))
    return Tensor(y, before + x.width + after, x.side)


def tiled(w: Writer, x: Tensor) -> Tensor:
    return Tensor(w.net.add("Tile", x.name, w.net.ints(1, 2, 1, 1)), x.width * 2, x.side)


def pooled(w: Writer, x: Tensor) -> Tensor | None:
    if x.side < 4:
        return None
    op = w.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    y = w.net.add(op, x.name, kernel_shape=[2, 2], strides=[2, 2])
    return Tensor(y, x.width, x.side // 2)


def deeper(w: Writer, x: Tensor) -> Tensor | None:
    if x.side < 4:
        return None
    return Tensor(w.net.add("SpaceToDepth", x.name, blocksize=2), x.width * 4, x.side // 2)


def wider(w: Writer, x: Tensor) -> Tensor | None:
    if x.width % 4 or x.side > 8:
        return None
    mode = w.draw(st.sampled_from(["DCR", "CRD"]))
    y = w.net.add("DepthToSpace", x.name, blocksize=2, mode=mode)
    return Tensor(y, x.width // 4, x.side * 2)


def shuffled(w: Writer, x: Tensor) -> Tensor | None:
    groups = w.draw(st.sampled_from([2, 3]))
    if x.width % groups:
        return None
    y = w.net.reshape(x.name, -1, groups, x.width // groups, x.side, x.side)
    y = w.net.transpose(y, 0, 2, 1, 3, 4)
    return x._replace(name=w.net.reshape(y, -1, x.width, x.side, x.side))


def channels_last(w: Writer, x: Tensor) -> Tensor:
    """A product over the last axis, as in transformers."""
    wide = w.number(2, 12)
    y = w.net.linear(w.net.transpose(x.name, 0, 2, 3, 1), x.width, wide)
    return Tensor(w.clip(w.net.transpose(y, 0, 3, 1, 2)), wide, x.side)


STEPS = (
    conv, grouped, depthwise, transposed, activation, negative, normalized, added, scaled, joined,
    split, sliced, picked, padded, tiled, pooled, deeper, wider, shuffled, channels_last,
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Up to a dozen steps, a convolution, and a classifier of all positions of some tensor."""
    w = Writer(draw)
    for each in draw(st.lists(st.sampled_from(STEPS), min_size=3, max_size=12)):
        w.step(each)
    net, x = w.net, w.live[-1]
    net.conv(x.name, x.width, 3, 1, name="map")
    other = draw(st.sampled_from(w.live))
    flat = net.add("Flatten", other.name, axis=1)
    net.gemm(flat, other.width * other.side**2, 4, name="logits")
    return net.network(map=("n", 3, x.side, x.side), logits=("n", 4))

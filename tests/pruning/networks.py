"""Small versions of the architectures that channel pruning meets, written as exporters write them.

`NETWORKS` has a builder per name. Networks of convolutions compute on small integers, so that two
models that ought to be equal are equal in every bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pruning import transformers
from pruning.building import Net, Network

# --- residual networks ---------------------------------------------------------------------------


def resnet_option_a() -> Network:
    """CIFAR ResNet: shortcuts without weights, which Slice and pad channels at both ends."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv_bn(net.input("x", "n", 3, 16, 16), 3, 8, name="stem"))
    width = 8
    for i, (wide, stride) in enumerate([(8, 1), (8, 1), (16, 2), (16, 1), (24, 2), (24, 1)]):
        y = net.add("Relu", net.conv_bn(x, width, wide, stride=stride, name=f"inner{i}"))
        y = net.conv_bn(y, wide, wide, name=f"outer{i}")
        if wide != width:
            for axis in (2, 3):
                ends = net.ints(np.iinfo(np.int64).max)
                x = net.add("Slice", x, net.ints(0), ends, net.ints(axis), net.ints(2))
            half = (wide - width) // 2
            pads = net.ints(0, half, 0, 0, 0, half, 0, 0)
            x = net.add("Pad", x, pads, net.const(np.float32(0)), mode="constant")
        x = net.add("Relu", net.add("Add", y, x))
        width = wide
    net.head(x, width)
    return net.network(logits=("n", 4))


def resnet_projection() -> Network:
    """Bottlenecks whose shortcuts are convolutions where the width or the resolution changes."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv_bn(net.input("x", "n", 3, 16, 16), 3, 8, name="stem"))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 8
    for i, (wide, stride) in enumerate([(16, 1), (16, 1), (24, 2), (24, 1)]):
        y = net.add("Relu", net.conv_bn(x, width, 8, 1, name=f"reduce{i}"))
        y = net.add("Relu", net.conv_bn(y, 8, 8, stride=stride, name=f"middle{i}"))
        y = net.conv_bn(y, 8, wide, 1, name=f"outer{i}")
        if wide != width:
            x = net.conv_bn(x, width, wide, 1, stride=stride)
        x = net.add("Relu", net.add("Add", y, x))
        width = wide
    net.head(x, width)
    return net.network(logits=("n", 4))


def resnext() -> Network:
    """Grouped convolutions: many small groups, and few large ones."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv_bn(net.input("x", "n", 3, 8, 8), 3, 12, name="stem"))
    for i, groups in enumerate((4, 2)):
        y = net.add("Relu", net.conv_bn(x, 12, 16, 1, name=f"reduce{i}"))
        y = net.add("Relu", net.conv_bn(y, 16, 16, group=groups, name=f"grouped{i}"))
        x = net.add("Relu", net.add("Add", net.conv_bn(y, 16, 12, 1), x))
    net.head(x, 12)
    return net.network(logits=("n", 4))


# --- mobile networks -----------------------------------------------------------------------------


def mobilenet_v2() -> Network:
    """Inverted residuals with Relu6, a Clip."""
    net = Net(exact=True)
    low, high = net.const(np.float32(0)), net.const(np.float32(6))

    def relu6(x: str) -> str:
        return net.add("Clip", x, low, high)

    x = relu6(net.conv_bn(net.input("x", "n", 3, 16, 16), 3, 8, stride=2, name="stem"))
    width = 8
    for i, (wide, stride, expand) in enumerate([(8, 1, 1), (12, 2, 3), (12, 1, 2)]):
        inner = width * expand
        y = relu6(net.conv_bn(x, width, inner, 1, name=f"expand{i}")) if expand > 1 else x
        y = relu6(net.conv_bn(y, inner, inner, group=inner, stride=stride))
        y = net.conv_bn(y, inner, wide, 1, name=f"project{i}")
        x = net.add("Add", x, y) if (wide, stride) == (width, 1) else y
        width = wide
    x = relu6(net.conv_bn(x, width, 32, 1, name="last"))
    net.head(x, 32)
    return net.network(logits=("n", 4))


def mobilenet_v3() -> Network:
    """Squeeze-and-excitation, HardSwish, depthwise 5x5."""
    net = Net(exact=False)
    x = net.add("HardSwish", net.conv(net.input("x", "n", 3, 16, 16), 3, 8, stride=2, name="stem"))
    width = 8
    for i, (wide, stride, inner) in enumerate([(8, 1, 16), (12, 2, 24), (12, 1, 24)]):
        y = net.add("HardSwish", net.conv(x, width, inner, 1, name=f"expand{i}"))
        y = net.add("HardSwish", net.conv(y, inner, inner, 5, group=inner, stride=stride))
        s = net.add("GlobalAveragePool", y)
        s = net.add("Relu", net.conv(s, inner, 8, 1, name=f"squeeze{i}"))
        s = net.add("HardSigmoid", net.conv(s, 8, inner, 1), alpha=1 / 6)
        y = net.conv(net.add("Mul", s, y), inner, wide, 1, name=f"project{i}")
        x = net.add("Add", x, y) if (wide, stride) == (width, 1) else y
        width = wide
    x = net.add("HardSwish", net.conv(x, width, 24, 1, name="last"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    x = net.add("HardSwish", net.gemm(x, 24, 20, name="hidden"))
    net.gemm(x, 20, 4, name="logits")
    return net.network(logits=("n", 4))


def shuffle(net: Net, x: str, groups: int, channels: int, side: int) -> str:
    """Interleave the channels of the groups."""
    x = net.reshape(x, -1, groups, channels // groups, side, side)
    return net.reshape(net.transpose(x, 0, 2, 1, 3, 4), -1, channels, side, side)


def shufflenet_v1() -> Network:
    """Grouped 1x1 convolutions with a shuffle between; the second unit halves the resolution."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv_bn(net.input("x", "n", 3, 8, 8), 3, 16, name="stem"))
    y = net.add("Relu", net.conv_bn(x, 16, 16, 1, group=2, name="reduce0"))
    y = shuffle(net, y, 2, 16, 8)
    y = net.conv_bn(net.conv_bn(y, 16, 16, group=16), 16, 16, 1, group=2)
    x = net.add("Relu", net.add("Add", x, y))
    y = net.add("Relu", net.conv_bn(x, 16, 16, 1, group=2, name="reduce1"))
    y = shuffle(net, y, 2, 16, 8)
    y = net.conv_bn(y, 16, 16, group=16, stride=2)
    y = net.conv_bn(y, 16, 16, 1, group=2, name="outer1")
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", net.add("Concat", x, y, axis=1))
    x = net.add("Relu", net.conv(x, 32, 20, 1, name="last"))
    net.head(x, 20)
    return net.network(logits=("n", 4))


def shufflenet_v2() -> Network:
    """Half of the channels goes by, half through convolutions, then they are shuffled."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv_bn(net.input("x", "n", 3, 16, 16), 3, 8, name="stem"))
    a = net.conv_bn(x, 8, 8, group=8, stride=2)
    a = net.add("Relu", net.conv_bn(a, 8, 8, 1, name="left"))
    b = net.add("Relu", net.conv_bn(x, 8, 8, 1, name="right_in"))
    b = net.conv_bn(b, 8, 8, group=8, stride=2)
    b = net.add("Relu", net.conv_bn(b, 8, 8, 1, name="right"))
    x = shuffle(net, net.add("Concat", a, b, axis=1), 2, 16, 8)
    for i in range(2):
        by, y = net.multiple("Split", x, net.ints(8, 8), names=[f"by{i}", f"through{i}"], axis=1)
        y = net.add("Relu", net.conv_bn(y, 8, 8, 1, name=f"in{i}"))
        y = net.conv_bn(y, 8, 8, group=8)
        y = net.add("Relu", net.conv_bn(y, 8, 8, 1, name=f"out{i}"))
        x = shuffle(net, net.add("Concat", by, y, axis=1), 2, 16, 8)
    x = net.add("Relu", net.conv_bn(x, 16, 24, 1, name="last"))
    x = net.add("ReduceMean", x, axes=[2, 3], keepdims=0)
    net.gemm(x, 24, 4, name="logits")
    return net.network(logits=("n", 4))


# --- concatenations ------------------------------------------------------------------------------


def densenet() -> Network:
    """Every layer reads all before it; BatchNormalization comes first and cannot be folded."""
    net = Net(exact=True)
    x = net.conv(net.input("x", "n", 3, 8, 8), 3, 8, name="stem")
    width = 8
    for block, layers in enumerate((3, 2)):
        for i in range(layers):
            y = net.add("Relu", net.batch_norm(x, width))
            y = net.add("Relu", net.conv_bn(y, width, 8, 1, name=f"bottleneck{block}{i}"))
            y = net.conv(y, 8, 4, bias=False, name=f"growth{block}{i}")
            x = net.add("Concat", x, y, axis=1)
            width += 4
        x = net.add("Relu", net.batch_norm(x, width))
        if block == 0:
            x = net.conv(x, width, 10, 1, bias=False, name="transition")
            x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            width = 10
    net.head(x, width)
    return net.network(logits=("n", 4))


def _unet(up: Callable[[Net, str, int, int, str], str]) -> Network:
    net = Net(exact=True)
    x = net.input("x", "n", 3, 16, 16)
    skips = []
    width = 3
    for i, wide in enumerate((8, 12)):
        x = net.add("Relu", net.conv(x, width, wide, name=f"down{i}a"))
        x = net.add("Relu", net.conv(x, wide, wide, name=f"down{i}b"))
        skips.append((x, wide))
        x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        width = wide
    x = net.add("Relu", net.conv(x, width, 16, name="bottom"))
    width = 16
    for i, (skip, wide) in enumerate(reversed(skips)):
        x = up(net, x, width, wide, f"up{i}")
        x = net.add("Concat", skip, x, axis=1)
        x = net.add("Relu", net.conv(x, 2 * wide, wide, name=f"merge{i}"))
        width = wide
    net.conv(x, width, 2, 1, name="map")
    return net.network(map=("n", 2, 16, 16))


def unet_transpose() -> Network:
    """U-Net that grows by transposed convolutions."""

    def up(net: Net, x: str, inside: int, outside: int, name: str) -> str:
        w = net.weight(inside, outside, 2, 2, fan=inside)
        bias = net.const(net.vector(outside))
        return net.add("ConvTranspose", x, w, bias, name=name, strides=[2, 2])

    return _unet(up)


def unet_resize() -> Network:
    """U-Net that grows by repeating pixels before a convolution."""

    def up(net: Net, x: str, inside: int, outside: int, name: str) -> str:
        scales = net.const(np.array([1, 1, 2, 2], np.float32))
        mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        x = net.add("Resize", x, "", scales, nearest_mode="floor", **mode)
        return net.add("Relu", net.conv(x, inside, outside, name=name))

    return _unet(up)


# --- super-resolution ----------------------------------------------------------------------------


def superres() -> Network:
    """EDSR: residual blocks, PRelu, PixelShuffle, and a last convolution."""
    net = Net(exact=True)
    x = first = net.conv(net.input("x", "n", 1, 8, 8), 1, 8, name="stem")
    slope = net.const(net.vector(8).reshape(8, 1, 1))
    y = net.conv(x, 8, 12, name="inner")
    y = net.add("PRelu", y, net.const(net.vector(12).reshape(12, 1, 1)))
    x = net.add("Add", net.conv(y, 12, 8), x)
    x = net.add("PRelu", net.add("Add", x, first), slope)
    x = net.add("DepthToSpace", net.conv(x, 8, 24, name="wide"), blocksize=2, mode="CRD")
    net.conv(net.add("Relu", x), 6, 1, name="image")
    return net.network(image=("n", 1, 16, 16))


def superres_folded() -> Network:
    """Pixels go to channels and back: SpaceToDepth, DepthToSpace, and a shuffle of Reshapes."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv(net.input("x", "n", 1, 8, 8), 1, 6, name="stem"))
    x = net.add("SpaceToDepth", x, blocksize=2)
    x = net.add("Relu", net.conv(x, 24, 20, name="deep"))
    x = net.add("DepthToSpace", x, blocksize=2, mode="DCR")
    x = net.add("Relu", net.conv(x, 5, 28, name="wide"))
    x = net.reshape(x, -1, 7, 2, 2, 8, 8)
    x = net.reshape(net.transpose(x, 0, 1, 4, 2, 5, 3), -1, 7, 16, 16)
    net.conv(x, 7, 1, name="image")
    return net.network(image=("n", 1, 16, 16))


# --- other ranks, quantized, control flow --------------------------------------------------------


def conv1d() -> Network:
    """Sound: long kernels, dilations, a gate."""
    net = Net(exact=True)
    x = net.add(
        "Relu", net.conv_bn(net.input("x", "n", 1, 64), 1, 8, 9, stride=2, rank=1, name="a")
    )
    x = net.add("MaxPool", x, kernel_shape=[2], strides=[2])
    x = net.add("Relu", net.conv_bn(x, 8, 12, 3, dilation=2, rank=1, name="b"))
    gate = net.add("Relu", net.conv(x, 12, 10, 1, rank=1, name="gate"))
    x = net.add("Mul", net.conv(x, 12, 10, 3, rank=1), gate)
    net.head(x, 10)
    return net.network(logits=("n", 4))


def conv3d() -> Network:
    """Video: the classifier reads every position of every channel."""
    net = Net(exact=True)
    x = net.add("Relu", net.conv(net.input("x", "n", 1, 4, 8, 8), 1, 8, rank=3, name="a"))
    x = net.add("MaxPool", x, kernel_shape=[1, 2, 2], strides=[1, 2, 2])
    x = net.add("Relu", net.conv(x, 8, 12, rank=3, stride=2, name="b"))
    x = net.add("AveragePool", x, kernel_shape=[2, 1, 1])
    x = net.add("Relu", net.gemm(net.add("Flatten", x, axis=1), 48, 16, name="hidden"))
    net.gemm(x, 16, 4, name="logits")
    return net.network(logits=("n", 4))


def qdq_cnn() -> Network:
    """A residual block quantized to int8 with weights per channel; all scales are powers of two."""
    net = Net(exact=True)

    def requantized(x: str, scale: float, name: str = "") -> str:
        # Each pair has parameters of its own, as quantizers write them.
        params = [net.const(np.float32(scale)), net.const(np.array(0, np.int8))]
        q = net.add("QuantizeLinear", x, *params)
        return net.add("DequantizeLinear", q, *params, name=name)

    def stored(data: np.ndarray, scale: np.ndarray, axis: int = 0) -> str:
        zero = np.zeros(scale.shape, data.dtype)
        return net.add(
            "DequantizeLinear", net.const(data), net.const(scale), net.const(zero), axis=axis
        )

    def layer(op: str, x: str, shape: tuple[int, ...], scale: float, name: str = "", **attrs):
        scales = net.rng.choice([0.25, 0.5, 1.0], shape[0])
        data = net.draw(*shape, fan=int(np.prod(shape[1:]))) * net.rng.integers(1, 4, shape)
        w = stored(data.astype(np.int8), scales)
        b = stored(net.rng.integers(-9, 9, shape[0]).astype(np.int32), scales * scale)
        return net.add(op, x, w, b, name=name, **attrs)

    pads = {"pads": [1, 1, 1, 1]}
    x = requantized(net.input("x", "n", 3, 8, 8), 0.5)
    x = net.add("Relu", layer("Conv", x, (8, 3, 3, 3), 0.5, "stem", **pads))
    x = requantized(x, 0.5)
    y = net.add("Relu", layer("Conv", x, (12, 8, 3, 3), 0.5, "inner", **pads))
    y = layer("Conv", requantized(y, 1.0), (8, 12, 3, 3), 1.0, **pads)
    x = net.add("Relu", net.add("Add", requantized(y, 1.0), x))
    x = net.add("GlobalAveragePool", requantized(x, 1.0))
    x = net.add("Flatten", requantized(x, 0.125), axis=1)
    x = layer("Gemm", x, (4, 8), 0.125, transB=1)
    requantized(x, 1.0, name="logits")
    return net.network(logits=("n", 4))


def if_capture() -> Network:
    """A branch convolves what the graph around it made; the other takes it through one weight."""
    net = Net(exact=True)
    flag = net.input("flag", kind="bool")
    x = net.add("Relu", net.conv(net.input("x", "n", 3, 8, 8), 3, 12, name="stem"))
    x = net.add("Relu", net.conv(x, 12, 8, name="captured"))
    outer = net.lines
    graphs = {}
    for branch, width in (("then", 6), ("else", 0)):
        net.lines = []
        y = net.add("Relu", net.conv(x, 8, width, name="inside")) if width else x
        y = net.conv(y, width or 8, 4, 1, name=f"{branch}_out")
        body = " ".join(net.lines)
        graphs[f"{branch}_branch"] = f"{branch} () => (float[n,4,8,8] {y}) {{ {body} }}"
    net.lines = outer
    y = net.add("If", flag, name="chosen", **graphs)
    z = net.conv(x, 8, 4, name="beside")
    x = net.add("Relu", net.add("Add", y, z))
    net.head(x, 4)
    return net.network(logits=("n", 4))


# --- recurrent networks --------------------------------------------------------------------------


def _recurrent(
    net: Net, op: str, x: str, inside: int, hidden: int, *, both: bool = False, name: str,
    states: list[str] | None = None, take: int = 0,
) -> str:  # fmt: skip
    gates, dirs = {"LSTM": 4, "GRU": 3}[op], 1 + both
    w = net.weight(dirs, gates * hidden, inside, fan=inside)
    r = net.weight(dirs, gates * hidden, hidden, fan=hidden)
    b = net.weight(dirs, 2 * gates * hidden, fan=hidden)
    names = ["", ""]
    names[take] = name
    extra = {"linear_before_reset": 1} if op == "GRU" and not both else {}
    direction = "bidirectional" if both else "forward"
    given = (x, w, r, b, "", *(states or []))
    options = {"direction": direction, "hidden_size": hidden, **extra}
    return net.multiple(op, *given, names=names[: take + 1], **options)[take]


def lstm() -> Network:
    """Two layers, the second with a learned initial state; the last step is classified."""
    net = Net(exact=False)
    x = net.input("x", 6, "n", 5)
    x = net.add("Squeeze", _recurrent(net, "LSTM", x, 5, 10, name="first"), net.ints(1))
    shape = net.join(net.ints(1), net.dim(x, 1), net.ints(8))
    states = [net.add("Expand", net.weight(1, 1, 8, fan=1), shape) for _ in range(2)]
    x = _recurrent(net, "LSTM", x, 10, 8, name="second", states=states)
    x = net.add("Squeeze", x, net.ints(1))
    x = net.add("Gather", x, net.const(np.array(-1, np.int64)), axis=0)
    net.gemm(x, 8, 4, name="logits")
    return net.network(logits=("n", 4))


def bilstm() -> Network:
    """Two bidirectional layers, batch first; every step is classified."""
    net = Net(exact=False)
    x = net.transpose(net.input("x", "n", 6, 5), 1, 0, 2)
    for i, (inside, hidden) in enumerate([(5, 10), (20, 8)]):
        x = _recurrent(net, "LSTM", x, inside, hidden, both=True, name=f"layer{i}")
        x = net.reshape(net.transpose(x, 0, 2, 1, 3), 0, 0, -1)
    net.linear(net.transpose(x, 1, 0, 2), 16, 4, out="tags")
    return net.network(tags=("n", 6, 4))


def gru() -> Network:
    """Two layers in PyTorch's form (linear before reset)."""
    net = Net(exact=False)
    x = net.input("x", 6, "n", 5)
    for i, (inside, hidden) in enumerate([(5, 10), (10, 8)]):
        x = _recurrent(net, "GRU", x, inside, hidden, name=f"layer{i}")
        x = net.add("Squeeze", x, net.ints(1))
    net.linear(x, 8, 4, out="tags")
    return net.network(tags=(6, "n", 4))


def bigru() -> Network:
    """A bidirectional layer, and one of which only the last states count."""
    net = Net(exact=False)
    x = _recurrent(net, "GRU", net.input("x", 6, "n", 5), 5, 10, both=True, name="first")
    x = net.reshape(net.transpose(x, 0, 2, 1, 3), 0, 0, 20)
    x = _recurrent(net, "GRU", x, 20, 8, both=True, name="states", take=1)
    x = net.reshape(net.transpose(x, 1, 0, 2), -1, 16)
    net.gemm(x, 16, 4, name="logits")
    return net.network(logits=("n", 4))


NETWORKS: dict[str, Callable[[], Network]] = {
    each.__name__: each
    for each in (
        resnet_option_a, resnet_projection, resnext, mobilenet_v2, mobilenet_v3, shufflenet_v1,
        shufflenet_v2, densenet, unet_transpose, unet_resize, superres, superres_folded, conv1d,
        conv3d, qdq_cnn, if_capture, lstm, bilstm, gru, bigru, transformers.vit, transformers.bert,
        transformers.gpt_expand, transformers.gpt_tile,
    )
}  # fmt: skip

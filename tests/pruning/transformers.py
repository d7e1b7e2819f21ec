"""Small transformers as exporters write them: heads are pruned whole, and neurons of their FFNs."""

from __future__ import annotations

import numpy as np
from pruning.building import Net, Network


def layer_norm(net: Net, x: str, width: int) -> str:
    scale, bias = (net.const(net.vector(width)) for _ in range(2))
    return net.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)


def gelu(net: Net, x: str) -> str:
    erf = net.add("Erf", net.add("Div", x, net.const(np.float32(2**0.5))))
    y = net.add("Mul", x, net.add("Add", erf, net.const(np.float32(1))))
    return net.add("Mul", y, net.const(np.float32(0.5)))


def attend(net: Net, q: str, k: str, v: str, size: int, mask: str = "") -> str:
    """Attention of [n, heads, s, size] queries to keys that are transposed already."""
    scores = net.add("Div", net.add("MatMul", q, k), net.const(np.float32(size**0.5)))
    if mask:
        scores = net.add("Add", scores, mask)
    return net.add("MatMul", net.add("Softmax", scores, axis=-1), v)


def vit() -> Network:
    """Patches, a class token, q, k and v from one product that is reshaped to [n, s, 3, h, d]."""
    net = Net(exact=False)
    w = net.weight(16, 3, 4, 4, fan=48)
    bias = net.const(net.vector(16))
    image = net.input("x", "n", 3, 16, 16)
    x = net.add("Conv", image, w, bias, name="patches", kernel_shape=[4, 4], strides=[4, 4])
    x = net.transpose(net.reshape(x, 0, 16, -1), 0, 2, 1)
    token = net.weight(1, 1, 16, fan=1)
    token = net.add("Expand", token, net.join(net.dim(image, 0), net.ints(1, 16)))
    x = net.add("Concat", token, x, axis=1)
    x = net.add("Add", x, net.weight(1, 17, 16, fan=1), name="embedded")
    for i in range(2):
        qkv = net.linear(layer_norm(net, x, 16), 16, 60, name=f"qkv{i}")
        qkv = net.transpose(net.reshape(qkv, -1, 17, 3, 5, 4), 2, 0, 3, 1, 4)
        q, k, v = (
            net.add("Gather", qkv, net.const(np.array(j, np.int64)), axis=0) for j in range(3)
        )
        y = attend(net, q, net.transpose(k, 0, 1, 3, 2), v, 4)
        y = net.reshape(net.transpose(y, 0, 2, 1, 3), -1, 17, 20)
        x = net.add("Add", x, net.linear(y, 20, 16))
        y = gelu(net, net.linear(layer_norm(net, x, 16), 16, 24, name=f"fc{i}"))
        x = net.add("Add", x, net.linear(y, 24, 16))
    x = net.add("Gather", layer_norm(net, x, 16), net.const(np.array(0, np.int64)), axis=1)
    net.gemm(x, 16, 4, name="logits")
    return net.network(logits=("n", 4))


def bert() -> Network:
    """An encoder: separate q, k and v, a padding mask, free length, and a pooler."""
    net = Net(exact=False)
    ids = net.input("ids", "n", "s", kind="int64", high=20)
    mask = net.add("Unsqueeze", net.input("mask", "n", "s", kind="int64", high=2), net.ints(1, 2))
    mask = net.add("Sub", net.const(np.float32(1)), net.add("Cast", mask, to=1))
    mask = net.add("Mul", mask, net.const(np.float32(-10000)))
    positions = net.add(
        "Slice", net.ints(*range(8)), net.ints(0), net.dim(ids, 1), net.ints(0), net.ints(1)
    )
    positions = net.add("Gather", net.weight(8, 16, fan=1), positions)
    x = net.add("Gather", net.weight(20, 16, fan=1), ids)
    x = layer_norm(net, net.add("Add", x, positions, name="embedded"), 16)
    for i in range(2):
        q, k, v = (
            net.reshape(net.linear(x, 16, 20, name=f"{part}{i}"), 0, 0, 5, 4) for part in "qkv"
        )
        q, v = (net.transpose(each, 0, 2, 1, 3) for each in (q, v))
        y = attend(net, q, net.transpose(k, 0, 2, 3, 1), v, 4, mask)
        y = net.linear(net.reshape(net.transpose(y, 0, 2, 1, 3), 0, 0, 20), 20, 16)
        x = layer_norm(net, net.add("Add", y, x), 16)
        y = net.linear(gelu(net, net.linear(x, 16, 24, name=f"fc{i}")), 24, 16)
        x = layer_norm(net, net.add("Add", y, x), 16)
    x = net.add("Gather", x, net.const(np.array(0, np.int64)), axis=1)
    x = net.add("Tanh", net.gemm(x, 16, 16, name="pooled"))
    net.gemm(x, 16, 3, name="logits")
    return net.network(logits=("n", 3))


WIDTH, HEADS, SHARED, SIZE = 16, 8, 4, 4  # two queries share a key and a value


def _gpt(*, tile: bool) -> Network:
    net = Net(exact=False, opset=18)
    ids = net.input("ids", "n", "s", kind="int64", high=20)
    length = net.dim(ids, 1)

    def first(data: np.ndarray) -> str:
        """The rows of a table for the positions there are."""
        return net.add("Slice", net.const(data), net.ints(0), length, net.ints(0))

    angles = np.arange(8)[:, None] / 10.0 ** np.arange(SIZE // 2)
    cos, sin = (first(np.tile(f(angles), 2)) for f in (np.cos, np.sin))
    mask = first(np.triu(np.full((8, 8), -1e9), 1))
    mask = net.add("Slice", mask, net.ints(0), length, net.ints(1), name="causal")

    def rms_norm(x: str) -> str:
        square = net.add("Pow", x, net.const(np.float32(2)))
        mean = net.add("ReduceMean", square, net.ints(-1), keepdims=1)
        root = net.add("Sqrt", net.add("Add", mean, net.const(np.float32(1e-6))))
        y = net.add("Mul", x, net.add("Reciprocal", root))
        return net.add("Mul", net.const(net.vector(WIDTH)), y)

    def rotated(x: str) -> str:
        a = net.add("Slice", x, net.ints(0), net.ints(SIZE // 2), net.ints(3))
        b = net.add("Slice", x, net.ints(SIZE // 2), net.ints(2**62), net.ints(3))
        turned = net.add("Concat", net.add("Neg", b), a, axis=-1)
        return net.add("Add", net.add("Mul", x, cos), net.add("Mul", turned, sin))

    def repeated(x: str) -> str:
        """Each of the shared heads twice: [n, 4, s, d] to [n, 8, s, d]."""
        if tile:
            x = net.add("Tile", net.add("Unsqueeze", x, net.ints(2)), net.ints(1, 1, 2, 1, 1))
            return net.reshape(x, 0, HEADS, -1, SIZE)
        n, s = net.dim(x, 0), net.dim(x, 2)
        wide = net.join(n, net.ints(SHARED), net.ints(HEADS // SHARED), s, net.ints(SIZE))
        x = net.add("Expand", net.add("Unsqueeze", x, net.ints(2)), wide)
        return net.add("Reshape", x, net.join(n, net.ints(HEADS), s, net.ints(SIZE)))

    x = net.add("Gather", net.weight(20, WIDTH, fan=1), ids, name="embedded")
    for i in range(2):
        y = rms_norm(x)
        q, k, v = (
            net.linear(y, WIDTH, heads * SIZE, name=f"{part}{i}", bias=False)
            for part, heads in (("q", HEADS), ("k", SHARED), ("v", SHARED))
        )
        q, k, v = (
            net.transpose(net.reshape(each, 0, 0, heads, SIZE), 0, 2, 1, 3)
            for each, heads in ((q, HEADS), (k, SHARED), (v, SHARED))
        )
        q, k, v = rotated(q), repeated(rotated(k)), repeated(v)
        y = attend(net, q, net.transpose(k, 0, 1, 3, 2), v, SIZE, mask)
        y = net.reshape(net.transpose(y, 0, 2, 1, 3), 0, 0, HEADS * SIZE)
        x = net.add("Add", x, net.linear(y, HEADS * SIZE, WIDTH, bias=False))
        y = rms_norm(x)
        gate, up = (net.linear(y, WIDTH, 24, name=f"{p}{i}", bias=False) for p in ("gate", "up"))
        y = net.add("Mul", net.add("Mul", gate, net.add("Sigmoid", gate)), up)
        x = net.add("Add", x, net.linear(y, 24, WIDTH, bias=False))
    net.linear(rms_norm(x), WIDTH, 20, out="logits", bias=False)
    return net.network(logits=("n", "s", 20))


def gpt_expand() -> Network:
    """A decoder with rotary positions and SwiGLU; keys and values are repeated by Expand."""
    return _gpt(tile=False)


def gpt_tile() -> Network:
    """The same, repeated by Tile."""
    return _gpt(tile=True)

"""Ten small networks in plain ``torch.nn``, written as their originals are, with random weights.

Sizes are chosen for quick exports, not for use: what matters is the graph an exporter makes of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- convolutional -------------------------------------------------------------------------------


def conv_bn(
    cin: int, cout: int, k: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Module:
    """Convolution, BatchNorm and optionally an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if act is not None:
        layers.append(act)
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """ResNet's basic block."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(cin, cout, 3, stride, act=nn.ReLU())
        self.conv2 = conv_bn(cout, cout)
        plain = stride == 1 and cin == cout
        self.shortcut: nn.Module = nn.Identity() if plain else conv_bn(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18's shape at quarter width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1))
        widths = [16, 16, 32, 64, 128]
        blocks: list[nn.Module] = []
        for i in range(4):
            blocks.append(BasicBlock(widths[i], widths[i + 1], 1 if i == 0 else 2))
            blocks.append(BasicBlock(widths[i + 1], widths[i + 1], 1))
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class SqueezeExcite(nn.Module):
    """Channel attention as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(scale))))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection."""

    def __init__(self, cin: int, cout: int, stride: int, squeeze: bool, hard: bool) -> None:
        super().__init__()
        hidden = cin * 4
        act: Callable[[], nn.Module] = nn.Hardswish if hard else nn.ReLU6
        self.add = stride == 1 and cin == cout
        self.body = nn.Sequential(
            conv_bn(cin, hidden, 1, act=act()),
            conv_bn(hidden, hidden, 3, stride, hidden, act=act()),
            SqueezeExcite(hidden) if squeeze else nn.Identity(),
            conv_bn(hidden, cout, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.add else y


class MobileNet(nn.Module):
    """A small MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2, act=nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedResidual(8, 16, 2, False, False),
            InvertedResidual(16, 16, 1, False, False),
            InvertedResidual(16, 24, 2, True, True),
            InvertedResidual(24, 24, 1, True, True),
            InvertedResidual(24, 40, 2, True, True),
        )
        self.last = conv_bn(40, 160, 1, act=nn.Hardswish())
        self.head = nn.Sequential(
            nn.Linear(160, 64), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(64, 100)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean([2, 3]))


class UNet(nn.Module):
    """Encoder and decoder with skips; pads the upsampled map to the skip's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._double(3, 8), self._double(8, 16), self._double(16, 32)])
        self.middle = self._double(32, 64)
        self.up = nn.ModuleList([nn.ConvTranspose2d(c * 2, c, 2, 2) for c in (32, 16, 8)])
        self.join = nn.ModuleList([self._double(c * 2, c) for c in (32, 16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _double(cin: int, cout: int) -> nn.Module:
        return nn.Sequential(conv_bn(cin, cout, act=nn.ReLU()), conv_bn(cout, cout, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = up(x)
            rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, x], 1))
        return self.head(x)


class Yolo(nn.Module):
    """CSP-like backbone, upsampling neck, and heads decoded on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2, act=nn.SiLU())
        self.c2 = conv_bn(8, 16, 3, 2, act=nn.SiLU())
        self.c3 = conv_bn(16, 32, 3, 2, act=nn.SiLU())
        self.c4 = conv_bn(32, 64, 3, 2, act=nn.SiLU())
        self.split = nn.ModuleList([conv_bn(16, 16, act=nn.SiLU()) for _ in range(2)])
        self.merge = conv_bn(64, 32, 1, act=nn.SiLU())
        self.spp = conv_bn(64 * 4, 64, 1, act=nn.SiLU())
        self.neck = conv_bn(96, 32, 1, act=nn.SiLU())
        self.heads = nn.ModuleList([nn.Conv2d(32, 3 * 9, 1), nn.Conv2d(64, 3 * 9, 1)])
        self.register_buffer("anchors", torch.rand(2, 1, 3, 1, 1, 2) * 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c3(self.c2(self.stem(x)))
        a, b = x.chunk(2, 1)
        c = self.split[0](b)
        p3 = self.merge(torch.cat([a, b, c, self.split[1](c)], 1))
        p4 = self.c4(p3)
        pools = [p4]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        p4 = self.spp(torch.cat(pools, 1))
        p3 = self.neck(torch.cat([p3, F.interpolate(p4, scale_factor=2.0, mode="nearest")], 1))
        outputs = []
        for i, (head, level) in enumerate(zip(self.heads, (p3, p4), strict=True)):
            y = head(level)
            n, _, h, w = y.shape
            y = y.view(n, 3, 9, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            grid = torch.stack((xs, ys), 2).view(1, 1, h, w, 2).float()
            xy = (y[..., 0:2] * 2 - 0.5 + grid) * (8 * 2**i)
            wh = (y[..., 2:4] * 2) ** 2 * self.anchors[i]
            outputs.append(torch.cat((xy, wh, y[..., 4:]), -1).view(n, -1, 9))
        return torch.cat(outputs, 1)


# --- transformers --------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention, written out or by ``scaled_dot_product_attention``."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
            if mask is not None:
                scores = scores + mask
            y = torch.softmax(scores, -1) @ v
        y = y.transpose(1, 2).contiguous()
        return self.out(y.view(y.size(0), y.size(1), -1))


class Encoder(nn.Module):
    """A transformer layer, norm after (BERT) or before (ViT)."""

    def __init__(self, width: int, heads: int, fused: bool, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(width, heads, fused)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width * 4), nn.GELU(), nn.Linear(width * 4, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    """BERT with token types, positions, an attention mask and a pooler."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        width = 64
        self.words, self.positions = nn.Embedding(500, width), nn.Embedding(64, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList([Encoder(width, 4, fused, False) for _ in range(4)])
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(ids.size(1), device=ids.device).unsqueeze(0)
        x = self.norm(self.words(ids) + self.positions(index) + self.types(types))
        additive = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, additive)
        return x, torch.tanh(self.pooler(x[:, 0]))


class Gpt(nn.Module):
    """GPT-2: one matrix for query, key and value, causal mask buffer, tanh GELU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads, depth = 64, 4, 4
        self.words, self.positions = nn.Embedding(500, 64), nn.Embedding(64, 64)
        self.qkv = nn.ModuleList([nn.Linear(64, 192) for _ in range(depth)])
        self.out = nn.ModuleList([nn.Linear(64, 64) for _ in range(depth)])
        self.up = nn.ModuleList([nn.Linear(64, 256) for _ in range(depth)])
        self.down = nn.ModuleList([nn.Linear(256, 64) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(64) for _ in range(2 * depth + 1)])
        self.register_buffer("causal", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, ids: Tensor) -> Tensor:
        n, length = ids.size()
        x = self.words(ids) + self.positions(torch.arange(length, device=ids.device))
        for i in range(len(self.qkv)):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).split(self.width, dim=2)
            q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            scores = scores.masked_fill(self.causal[:, :, :length, :length] == 0, float("-inf"))
            y = (torch.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(n, length, -1)
            x = x + self.out[i](y)
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x)), approximate="tanh"))
        return self.norms[-1](x) @ self.words.weight.t()


class RmsNorm(nn.Module):
    """Root-mean-square norm as Llama's code writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x.float() * scale).to(x.dtype)


class Llama(nn.Module):
    """RMSNorm, rotary positions, grouped queries, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups, self.size, depth = 4, 2, 16, 4
        width = self.heads * self.size
        kv = self.groups * self.size
        self.words = nn.Embedding(500, width)
        shapes = {"q": (width, width), "k": (width, kv), "v": (width, kv), "o": (width, width),
                  "gate": (width, 172), "up": (width, 172), "down": (172, width)}  # fmt: skip
        self.layers = nn.ModuleList(
            [
                nn.ModuleDict({k: nn.Linear(*s, bias=False) for k, s in shapes.items()})
                for _ in range(depth)
            ]
        )
        self.norms = nn.ModuleList([RmsNorm(width) for _ in range(2 * depth + 1)])
        self.register_buffer(
            "frequency", 1.0 / (10000 ** (torch.arange(0, self.size, 2) / self.size))
        )
        self.head = nn.Linear(width, 500, bias=False)

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def _repeat(self, x: Tensor) -> Tensor:
        n, groups, length, size = x.shape
        times = self.heads // self.groups
        x = x[:, :, None, :, :].expand(n, groups, times, length, size)
        return x.reshape(n, groups * times, length, size)

    def forward(self, ids: Tensor) -> Tensor:
        n, length = ids.shape
        x = self.words(ids)
        position = torch.arange(length, device=ids.device)
        angle = position[:, None].float() * self.frequency[None, :]
        angle = torch.cat((angle, angle), -1)
        cos, sin = angle.cos()[None, None], angle.sin()[None, None]
        mask = torch.full((length, length), -1e4, device=ids.device).triu(1)
        for i, layer in enumerate(self.layers):
            y = self.norms[2 * i](x)
            q = layer["q"](y).view(n, length, self.heads, self.size).transpose(1, 2)
            k = layer["k"](y).view(n, length, self.groups, self.size).transpose(1, 2)
            v = layer["v"](y).view(n, length, self.groups, self.size).transpose(1, 2)
            q, k = self._rotate(q, cos, sin), self._repeat(self._rotate(k, cos, sin))
            scores = q @ k.transpose(2, 3) / math.sqrt(self.size) + mask
            y = torch.softmax(scores.float(), -1).to(q.dtype) @ self._repeat(v)
            x = x + layer["o"](y.transpose(1, 2).contiguous().view(n, length, -1))
            y = self.norms[2 * i + 1](x)
            x = x + layer["down"](F.silu(layer["gate"](y)) * layer["up"](y))
        return self.head(self.norms[-1](x))


class Vit(nn.Module):
    """Vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 65, width))
        self.layers = nn.ModuleList([Encoder(width, 4, True, True) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Lstm(nn.Module):
    """Embedding, two bidirectional LSTM layers and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.lstm = nn.LSTM(32, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.lstm(self.words(ids))
        return F.log_softmax(self.head(y[:, -1]), -1)


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """A network and how to export it.

    Attributes:
        make: Builds it.
        inputs: Example inputs: name, shape, and whether they are token numbers.
        dynamic: Symbolic dims of every input: axis to name.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[tuple[str, tuple[int, ...], bool], ...]
    dynamic: dict[int, str] = field(default_factory=lambda: {0: "batch"})

    def example(self) -> tuple[Tensor, ...]:
        """Example inputs."""
        return tuple(
            torch.randint(0, 2, shape) if tokens else torch.randn(shape)
            for _, shape, tokens in self.inputs
        )


_IMAGE = (("image", (2, 3, 64, 64), False),)
_IDS = (("ids", (2, 16), True),)
_BERT = tuple((name, (2, 16), True) for name in ("ids", "mask", "types"))
_TEXT = {0: "batch", 1: "length"}
_FREE = {0: "batch", 2: "height", 3: "width"}
NETS: dict[str, Net] = {
    "resnet": Net(ResNet, _IMAGE),
    "mobilenet": Net(MobileNet, _IMAGE),
    "unet": Net(UNet, _IMAGE, _FREE),
    "yolo": Net(Yolo, _IMAGE, _FREE),
    "bert": Net(lambda: Bert(fused=False), _BERT, _TEXT),
    "bert_sdpa": Net(lambda: Bert(fused=True), _BERT, _TEXT),
    "gpt": Net(Gpt, _IDS, _TEXT),
    "llama": Net(Llama, _IDS, _TEXT),
    "vit": Net(Vit, _IMAGE),
    "lstm": Net(Lstm, _IDS, _TEXT),
}

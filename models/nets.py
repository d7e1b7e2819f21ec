"""Builders of the reference models, one per family of architectures an optimizer meets.

Every net maps images, float32 [batch, 1, 32, 32] in [0, 1], to logits, float32 [batch, 10]. They
are written the way such nets usually are (shapes read at run time, `view` with a computed size),
so that their exports carry the scaffolding that real exports carry.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BUILDERS", "Lstm", "MobileNet", "ResNet", "Transformer", "Vgg"]

CLASSES = 10
SIDE = 32


class Vgg(nn.Module):
    """Plain stack of 3x3 convolutions with BatchNorm and max pooling (VGG).

    Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", https://arxiv.org/abs/1409.1556
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        """Two convolutions per width; the resolution halves after each pair."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = SIDE >> len(widths)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, 64),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(64, CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 32, 32]."""
        features = self.features(image)
        logits: Tensor = self.classifier(features.view(features.size(0), -1))
        return logits


class PadShortcut(nn.Module):
    """Shortcut without weights ("option A"): every second pixel, new channels are zero."""

    def __init__(self, extra: int) -> None:
        """`extra` channels are added, half of them before and half after the others."""
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c, h, w] to [batch, c + extra, h / 2, w / 2]."""
        half = self.extra // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which a shortcut leads."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module) -> None:
        """`shortcut` maps [batch, channels, h, w] to the shape of the block's output."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to [batch, width, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Residual net whose two changes of width use the two usual kinds of shortcut.

    Reference: He et al., "Deep Residual Learning for Image Recognition",
    https://arxiv.org/abs/1512.03385
    """

    def __init__(self) -> None:
        """Five blocks: two of 16, two of 32 (option A) and one of 64 channels (projection)."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        projection = nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
        self.layer1 = nn.Sequential(
            ResidualBlock(16, 16, 1, nn.Sequential()),
            ResidualBlock(16, 16, 1, nn.Sequential()),
        )
        self.layer2 = nn.Sequential(
            ResidualBlock(16, 32, 2, PadShortcut(16)),
            ResidualBlock(32, 32, 1, nn.Sequential()),
        )
        self.layer3 = ResidualBlock(32, 64, 2, projection)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 32, 32]."""
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # The kernel is read from the shape, as CIFAR ResNets do, not taken from a global pooling.
        x = functional.avg_pool2d(x, x.shape[3])
        logits: Tensor = self.fc(x.view(x.size(0), -1))
        return logits


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels.

    Reference: Hu et al., "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507
    """

    def __init__(self, channels: int) -> None:
        """The hidden layer has a quarter of the channels."""
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same shape."""
        gate = functional.adaptive_avg_pool2d(x, 1)
        gate = self.expand(functional.relu(self.reduce(gate)))
        return x * functional.hardsigmoid(gate)


class InvertedResidual(nn.Module):
    """Expand with 1x1, convolve each channel alone, project with 1x1."""

    def __init__(
        self, channels: int, hidden: int, width: int, kernel: int, stride: int, *, late: bool
    ) -> None:
        """Late blocks use hard-swish and squeeze-excite, early ones ReLU6 alone."""
        super().__init__()
        activation: type[nn.Module] = nn.Hardswish if late else nn.ReLU6
        padding = kernel // 2
        layers: list[nn.Module] = [
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
        ]
        if late:
            layers.append(SqueezeExcite(hidden))
        layers += [nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to [batch, width, h / stride, w / stride]."""
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Depthwise separable net with linear bottlenecks.

    Reference: Howard et al., "Searching for MobileNetV3", https://arxiv.org/abs/1905.02244
    """

    def __init__(self) -> None:
        """Five blocks between a strided stem and a 1x1 convolution with 160 channels."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            InvertedResidual(16, 32, 16, 3, 1, late=False),
            InvertedResidual(16, 64, 24, 3, 2, late=False),
            InvertedResidual(24, 72, 24, 3, 1, late=False),
            InvertedResidual(24, 96, 40, 5, 2, late=True),
            InvertedResidual(40, 160, 40, 5, 1, late=True),
            nn.Conv2d(40, 160, 1, bias=False),
            nn.BatchNorm2d(160),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(160, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 32, 32]."""
        features = self.features(image)
        logits: Tensor = self.classifier(features.view(features.shape[0], -1))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        """`heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        head = width // self.heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = (query @ key.transpose(-2, -1)) * head**-0.5
        mixed = scores.softmax(dim=-1) @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class EncoderLayer(nn.Module):
    """Attention and a GELU perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        """The perceptron's hidden layer is twice as wide."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Transformer(nn.Module):
    """Transformer encoder that reads an image row by row, one token each.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words",
    https://arxiv.org/abs/2010.11929
    """

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        """A learned class token is put before the 32 rows."""
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, SIDE + 1, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 32, 32]."""
        batch = image.shape[0]
        rows = self.embed(image.reshape(batch, SIDE, SIDE))
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), rows), dim=1) + self.position
        logits: Tensor = self.head(self.norm(self.layers(tokens))[:, 0])
        return logits


def _to_unit_range(image: Tensor) -> Tensor:
    """Bring images in [0, 255] to [0, 1] and leave the others alone."""
    if bool(image.max() > 1.0):
        image = image / 255.0
    return image


def _leaky_average(states: Tensor, gates: Tensor) -> Tensor:
    """Average over axis 0 in which `gates` say how much each state replaces what was before.

    Both arguments are [steps, batch, width], the result is [batch, width].
    """
    average = torch.zeros_like(states[0])
    for step in range(states.size(0)):
        average = average + gates[step] * (states[step] - average)
    return average


# Scripted, hence exported as the control flow they are: an If and a Loop. Tracing would keep one
# branch and unroll all steps.
to_unit_range: Callable[[Tensor], Tensor] = torch.jit.script(_to_unit_range)
leaky_average: Callable[[Tensor, Tensor], Tensor] = torch.jit.script(_leaky_average)


class Lstm(nn.Module):
    """Bidirectional LSTM over the rows of an image, its states averaged by a learned gate.

    Reference: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997
    """

    def __init__(self, width: int = 48) -> None:
        """Two layers of `width` units per direction."""
        super().__init__()
        self.lstm = nn.LSTM(SIDE, width, num_layers=2, batch_first=True, bidirectional=True)
        self.gate = nn.Linear(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 32, 32], here also in [0, 255]."""
        rows = to_unit_range(image).squeeze(1)
        states, _ = self.lstm(rows)
        states = states.transpose(0, 1)
        logits: Tensor = self.head(leaky_average(states, torch.sigmoid(self.gate(states))))
        return logits


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "digits_vgg": Vgg,
    "digits_resnet": ResNet,
    "digits_mobilenet": MobileNet,
    "digits_transformer": Transformer,
    "digits_lstm": Lstm,
}
"""Name of each reference model and what builds it, untrained."""

"""MobileNetV3, small and large: inverted residuals with squeeze-and-excite and hard-swish.

Howard et al. 2019, "Searching for MobileNetV3", arXiv:1905.02244, tables 1 to 3: large has 5.4 million
parameters and 219 million multiply-adds, small 2.5 million (2.9 with the paper's other head) and 56 million.
The parameter counts are torchvision's, 5,483,032 and 2,542,856.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from sepwise.models.layers import BRANCH, LINEAR, ConvUnit, SqueezeExcite, aim, before, divisible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["MobileNetV3", "mobilenet_v3_large", "mobilenet_v3_small"]

_EPSILON = 1e-3


class _Row(NamedTuple):
    """One row of the paper's tables: a bottleneck."""

    kernel: int
    inner: int
    out_channels: int
    squeeze: bool
    activation: str
    stride: int


_LARGE = (
    _Row(3, 16, 16, False, "relu", 1),
    _Row(3, 64, 24, False, "relu", 2),
    _Row(3, 72, 24, False, "relu", 1),
    _Row(5, 72, 40, True, "relu", 2),
    _Row(5, 120, 40, True, "relu", 1),
    _Row(5, 120, 40, True, "relu", 1),
    _Row(3, 240, 80, False, "hard_swish", 2),
    _Row(3, 200, 80, False, "hard_swish", 1),
    _Row(3, 184, 80, False, "hard_swish", 1),
    _Row(3, 184, 80, False, "hard_swish", 1),
    _Row(3, 480, 112, True, "hard_swish", 1),
    _Row(3, 672, 112, True, "hard_swish", 1),
    _Row(5, 672, 160, True, "hard_swish", 2),
    _Row(5, 960, 160, True, "hard_swish", 1),
    _Row(5, 960, 160, True, "hard_swish", 1),
)
_SMALL = (
    _Row(3, 16, 16, True, "relu", 2),
    _Row(3, 72, 24, False, "relu", 2),
    _Row(3, 88, 24, False, "relu", 1),
    _Row(5, 96, 40, True, "hard_swish", 2),
    _Row(5, 240, 40, True, "hard_swish", 1),
    _Row(5, 240, 40, True, "hard_swish", 1),
    _Row(5, 120, 48, True, "hard_swish", 1),
    _Row(5, 144, 48, True, "hard_swish", 1),
    _Row(5, 288, 96, True, "hard_swish", 2),
    _Row(5, 576, 96, True, "hard_swish", 1),
    _Row(5, 576, 96, True, "hard_swish", 1),
)


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excite where the row says so, linear projection."""

    def __init__(self, in_channels: int, row: _Row, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            row: The paper's row.
            width: Width multiplier.
        """
        super().__init__()
        inner = divisible(row.inner * width)
        out_channels = divisible(row.out_channels * width)
        self.residual = row.stride == 1 and in_channels == out_channels
        self.expand: nn.Module = nn.Identity()
        if inner != in_channels:
            self.expand = ConvUnit(in_channels, inner, activation=row.activation, epsilon=_EPSILON)
        self.depthwise = ConvUnit(
            inner, inner, row.kernel, stride=row.stride, groups=inner, activation=row.activation, epsilon=_EPSILON
        )
        self.squeeze_excite: nn.Module = nn.Identity()
        if row.squeeze:
            self.squeeze_excite = SqueezeExcite(inner, divisible(inner // 4), gate=nn.Hardsigmoid())
        self.project = ConvUnit(inner, out_channels, target=BRANCH if self.residual else LINEAR, epsilon=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h / stride, w / stride)`.
        """
        branch: Tensor = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return x + branch if self.residual else branch


class MobileNetV3(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, rows: Sequence[_Row], classifier: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            rows: The bottlenecks.
            classifier: Channels of the hidden layer of the classifier.
            width: Width multiplier.
        """
        super().__init__()
        channels = divisible(16 * width)
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation="hard_swish", epsilon=_EPSILON)
        blocks = []
        for row in rows:
            blocks.append(_Bottleneck(channels, row, width))
            channels = divisible(row.out_channels * width)
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvUnit(channels, 6 * channels, activation="hard_swish", epsilon=_EPSILON)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        hidden = divisible(classifier * width)
        self.hidden = aim(nn.Linear(6 * channels, hidden), before("hard_swish"))
        self.activation = nn.Hardswish()
        self.classifier = nn.Linear(hidden, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            Logits, `(n, 1000)`.
        """
        x = self.flatten(self.pool(self.head(self.blocks(self.stem(x)))))
        logits: Tensor = self.classifier(self.activation(self.hidden(x)))
        return logits


def mobilenet_v3_small(in_channels: int, width: float) -> nn.Module:
    """Makes MobileNetV3-Small.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return MobileNetV3(in_channels, _SMALL, 1024, width)


def mobilenet_v3_large(in_channels: int, width: float) -> nn.Module:
    """Makes MobileNetV3-Large.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return MobileNetV3(in_channels, _LARGE, 1280, width)

"""MobileNetV3, small and large: inverted residuals with squeeze-and-excite and hard-swish.

Howard et al. 2019, "Searching for MobileNetV3", arXiv:1905.02244, tables 1 and 2. The width multiplier is that of its
authors' code: a bottleneck's expansion stays what it is at width 1, and the hidden layer of the classifier is never
narrowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from sepwise.models.layers import ConvUnit, aim, before, divisible
from sepwise.models.mobilenet_v2 import InvertedResidual

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


class MobileNetV3(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, rows: Sequence[_Row], classifier: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            rows: The bottlenecks.
            classifier: Channels of the hidden layer of the classifier.
            width: Width multiplier of what goes in and out of a bottleneck, whose expansion stays; the hidden layer
                is only ever widened by it.
        """
        super().__init__()
        base = 16
        channels = divisible(base * width)
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation="hard_swish", epsilon=_EPSILON)
        blocks = []
        for row in rows:
            out_channels = divisible(row.out_channels * width)
            blocks.append(
                InvertedResidual(
                    channels,
                    divisible(row.inner / base * channels),
                    out_channels,
                    kernel=row.kernel,
                    stride=row.stride,
                    activation=row.activation,
                    epsilon=_EPSILON,
                    squeeze=row.squeeze,
                )
            )
            base, channels = row.out_channels, out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvUnit(channels, 6 * channels, activation="hard_swish", epsilon=_EPSILON)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        hidden = divisible(classifier * max(1.0, width))
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

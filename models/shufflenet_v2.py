"""ShuffleNet V2 1.0x: channels are split in two, one half is convolved, and both are shuffled.

Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", arXiv:1807.11164,
table 5: 2.3 million parameters, 146 million multiply-adds. The parameter count is torchvision's, 2,278,604.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import nn

from sepwise.models.layers import ConvUnit, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ShuffleNetV2", "shufflenet_v2"]

# Output channels and number of units of each stage.
_STAGES = ((116, 4), (232, 8), (464, 4))


def _convolved(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Makes the convolved branch: pointwise, depthwise without activation, pointwise."""
    return nn.Sequential(
        OrderedDict(
            expand=ConvUnit(in_channels, channels, activation="relu"),
            depthwise=ConvUnit(channels, channels, 3, stride=stride, groups=channels),
            project=ConvUnit(channels, channels, activation="relu"),
        )
    )


def _shuffle(x: Tensor) -> Tensor:
    """Interleaves the two halves of the channels."""
    batch, channels, height, width = x.shape
    halves = x.reshape(batch, 2, channels // 2, height, width)
    return halves.transpose(1, 2).reshape(batch, channels, height, width)


class _Unit(nn.Module):
    """A unit of stride 1: one half of the channels passes as it is."""

    def __init__(self, channels: int) -> None:
        """Makes the layers.

        Args:
            channels: Channels in and out.
        """
        super().__init__()
        self.kept_channels = channels // 2
        self.branch = _convolved(self.kept_channels, self.kept_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the unit.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            The same shape.
        """
        kept, convolved = torch.split(x, self.kept_channels, dim=1)
        return _shuffle(torch.cat([kept, self.branch(convolved)], dim=1))


class _Downsample(nn.Module):
    """A unit of stride 2: both branches see all channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
        """
        super().__init__()
        half = out_channels // 2
        self.shortcut = nn.Sequential(
            OrderedDict(
                depthwise=ConvUnit(in_channels, in_channels, 3, stride=2, groups=in_channels),
                project=ConvUnit(in_channels, half, activation="relu"),
            )
        )
        self.branch = _convolved(in_channels, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the unit.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h / 2, w / 2)`.
        """
        return _shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


class ShuffleNetV2(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier; the last convolution is only ever widened by it.
        """
        super().__init__()
        channels = divisible(24 * width)
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation="relu")
        self.stem_pool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for base, repeats in _STAGES:
            out_channels = divisible(base * width, 4)
            units = [_Unit(out_channels) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(_Downsample(channels, out_channels), *units))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        last = divisible(1024 * max(1.0, width))
        self.head = ConvUnit(channels, last, activation="relu")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            Logits, `(n, 1000)`.
        """
        x = self.head(self.stages(self.stem_pool(self.stem(x))))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def shufflenet_v2(in_channels: int, width: float) -> nn.Module:
    """Makes ShuffleNet V2.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier; 1 is the paper's 1.0x.

    Returns:
        The network.
    """
    return ShuffleNetV2(in_channels, width)

"""MobileNet: 13 depthwise separable convolutions behind one dense one.

Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv:1704.04861, table 1: 4.2 million parameters, 569 million multiply-adds. Activations are ReLU6, as in
the authors' implementation.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import ConvUnit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MobileNetV1", "mobilenet_v1"]

# Output channels and stride of each separable convolution.
_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier.
        """
        super().__init__()
        channels = max(8, int(32 * width))
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation="relu6")
        blocks = []
        for base, stride in _LAYERS:
            out_channels = max(8, int(base * width))
            depthwise = ConvUnit(channels, channels, 3, stride=stride, groups=channels, activation="relu6")
            pointwise = ConvUnit(channels, out_channels, activation="relu6")
            blocks.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            Logits, `(n, 1000)`.
        """
        x = self.blocks(self.stem(x))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def mobilenet_v1(in_channels: int, width: float) -> nn.Module:
    """Makes MobileNet.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return MobileNetV1(in_channels, width)

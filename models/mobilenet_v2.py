"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2:
3.4 million parameters, 300 million multiply-adds. The parameter count is torchvision's, 3,504,872.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import BRANCH, LINEAR, ConvUnit, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# Expansion, output channels, repeats, stride of the first.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection; added to its input where shapes agree."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel: int = 3,
        stride: int = 1,
        activation: str = "relu6",
        epsilon: float = 1e-5,
    ) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
            expansion: Inner channels over channels in; 1 has no expansion layer.
            kernel: Kernel size of the depthwise convolution.
            stride: Its stride.
            activation: After expansion and depthwise convolution.
            epsilon: Batch norm's epsilon.
        """
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = ConvUnit(in_channels, inner, activation=activation, epsilon=epsilon)
        self.depthwise = ConvUnit(
            inner, inner, kernel, stride=stride, groups=inner, activation=activation, epsilon=epsilon
        )
        target = BRANCH if self.residual else LINEAR
        self.project = ConvUnit(inner, out_channels, target=target, epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h / stride, w / stride)`.
        """
        branch: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + branch if self.residual else branch


class MobileNetV2(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier; the last convolution is only ever widened by it.
        """
        super().__init__()
        channels = divisible(32 * width)
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation="relu6")
        blocks = []
        for expansion, base, repeats, first_stride in _STAGES:
            out_channels = divisible(base * width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, expansion=expansion, stride=stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        last = divisible(1280 * max(1.0, width))
        self.head = ConvUnit(channels, last, activation="relu6")
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
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def mobilenet_v2(in_channels: int, width: float) -> nn.Module:
    """Makes MobileNetV2.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return MobileNetV2(in_channels, width)

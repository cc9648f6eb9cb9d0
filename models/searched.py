"""Networks that a search found and that are inverted residuals of varied kernels: MnasNet and EfficientNet-Lite.

- Tan et al. 2019, "MnasNet: Platform-Aware Neural Architecture Search for Mobile", arXiv:1807.11626. `mnasnet` is
  MnasNet-B1 (no squeeze-and-excite): 4.4 million parameters, 315 million
  multiply-adds. The parameter count is that of torchvision's mnasnet1_0, 4,383,312.
- Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946, in
  its authors' Lite form (no squeeze-and-excite, ReLU6 for swish): 4,652,008 parameters. Its convolutions and
  classifier have 385 million multiply-adds, EfficientNet-B0's 0.39 thousand million without the squeeze-and-excite; the
  407 million in its authors' table of the Lite form must count more than these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from sepwise.models.layers import ConvUnit, divisible
from sepwise.models.mobilenet_v2 import InvertedResidual

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Searched", "efficientnet_lite0", "mnasnet"]


class _Stage(NamedTuple):
    """Inverted residuals of one shape; the stride is the first one's."""

    expansion: int
    kernel: int
    out_channels: int
    repeats: int
    stride: int


_MNASNET = (
    _Stage(1, 3, 16, 1, 1),
    _Stage(3, 3, 24, 3, 2),
    _Stage(3, 5, 40, 3, 2),
    _Stage(6, 5, 80, 3, 2),
    _Stage(6, 3, 96, 2, 1),
    _Stage(6, 5, 192, 4, 2),
    _Stage(6, 3, 320, 1, 1),
)
_EFFICIENTNET_LITE0 = (
    _Stage(1, 3, 16, 1, 1),
    _Stage(6, 3, 24, 2, 2),
    _Stage(6, 5, 40, 2, 2),
    _Stage(6, 3, 80, 3, 2),
    _Stage(6, 5, 112, 3, 1),
    _Stage(6, 5, 192, 4, 2),
    _Stage(6, 3, 320, 1, 1),
)


class Searched(nn.Module):
    """A whole network of inverted residuals, from an image to 1000 logits."""

    def __init__(
        self, in_channels: int, width: float, stages: Sequence[_Stage], activation: str, epsilon: float
    ) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier; the last convolution is only ever widened by it.
            stages: The inverted residuals.
            activation: The activation everywhere.
            epsilon: Batch norm's epsilon.
        """
        super().__init__()
        channels = divisible(32 * width)
        self.stem = ConvUnit(in_channels, channels, 3, stride=2, activation=activation, epsilon=epsilon)
        blocks = []
        for stage in stages:
            out_channels = divisible(stage.out_channels * width)
            for index in range(stage.repeats):
                blocks.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        expansion=stage.expansion,
                        kernel=stage.kernel,
                        stride=stage.stride if index == 0 else 1,
                        activation=activation,
                        epsilon=epsilon,
                    )
                )
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        last = divisible(1280 * max(1.0, width))
        self.head = ConvUnit(channels, last, activation=activation, epsilon=epsilon)
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


def mnasnet(in_channels: int, width: float) -> nn.Module:
    """Makes MnasNet-B1.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return Searched(in_channels, width, _MNASNET, "relu", 1e-5)


def efficientnet_lite0(in_channels: int, width: float) -> nn.Module:
    """Makes EfficientNet-Lite0.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return Searched(in_channels, width, _EFFICIENTNET_LITE0, "relu6", 1e-3)

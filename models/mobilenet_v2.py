"""MobileNetV2: inverted residuals with linear bottlenecks, and the frame of all networks that consist of them.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from sepwise.models.layers import BRANCH, LINEAR, ConvUnit, SqueezeExcite, divisible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["InvertedResidual", "InvertedResidualNetwork", "Stage", "mobilenet_v2"]


class Stage(NamedTuple):
    """Inverted residuals of one shape; the stride is the first one's."""

    expansion: int
    kernel: int
    out_channels: int
    repeats: int
    stride: int


_MOBILENET_V2 = (
    Stage(1, 3, 16, 1, 1),
    Stage(6, 3, 24, 2, 2),
    Stage(6, 3, 32, 3, 2),
    Stage(6, 3, 64, 4, 2),
    Stage(6, 3, 96, 3, 1),
    Stage(6, 3, 160, 3, 2),
    Stage(6, 3, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection; added to its input where shapes agree."""

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        activation: str,
        epsilon: float,
        squeeze: bool = False,
    ) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            inner: Channels of the depthwise convolution; as many as come in have no expansion layer.
            out_channels: Channels out.
            kernel: Kernel size of the depthwise convolution.
            stride: Its stride.
            activation: After expansion and depthwise convolution.
            epsilon: Batch norm's epsilon.
            squeeze: Whether squeeze-and-excite, to a quarter of the channels, stands before the projection.
        """
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.expand: nn.Module = nn.Identity()
        if inner != in_channels:
            self.expand = ConvUnit(in_channels, inner, activation=activation, epsilon=epsilon)
        self.depthwise = ConvUnit(
            inner, inner, kernel, stride=stride, groups=inner, activation=activation, epsilon=epsilon
        )
        self.squeeze_excite: nn.Module = nn.Identity()
        if squeeze:
            self.squeeze_excite = SqueezeExcite(inner, divisible(inner // 4), gate=nn.Hardsigmoid())
        target = BRANCH if self.residual else LINEAR
        self.project = ConvUnit(inner, out_channels, target=target, epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h / stride, w / stride)`.
        """
        branch: Tensor = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return x + branch if self.residual else branch


class InvertedResidualNetwork(nn.Module):
    """A whole network of inverted residuals, from an image to 1000 logits."""

    def __init__(
        self,
        in_channels: int,
        width: float,
        stages: Sequence[Stage],
        *,
        head: int,
        activation: str,
        epsilon: float,
    ) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier of the stem and the stages.
            stages: The inverted residuals.
            head: Channels of the last convolution.
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
                        channels * stage.expansion,
                        out_channels,
                        kernel=stage.kernel,
                        stride=stage.stride if index == 0 else 1,
                        activation=activation,
                        epsilon=epsilon,
                    )
                )
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvUnit(channels, head, activation=activation, epsilon=epsilon)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(head, 1000)

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
        width: Width multiplier; the last convolution is only ever widened by it.

    Returns:
        The network.
    """
    head = divisible(1280 * max(1.0, width))
    return InvertedResidualNetwork(
        in_channels, width, _MOBILENET_V2, head=head, activation="relu6", epsilon=1e-5
    )

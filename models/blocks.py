"""Single blocks, each there for one thing that rewrites and kernels get wrong."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import BRANCH, ConvUnit, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GroupedBlock", "SeparableBlock", "depth_multiplier", "grouped", "separable_block"]


class SeparableBlock(nn.Module):
    """Depthwise 3x3 with bias, pointwise with bias and padding 1, batch norm, ReLU.

    The pointwise convolution pads what the depthwise one made, so each border pixel of its output is its
    bias alone. A fusion that moves the padding before the depthwise convolution is right inside and wrong on
    the border. Separable convolutions: Sifre and Mallat 2014, arXiv:1403.1687.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
        """
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=True)
        self.pointwise = ConvUnit(in_channels, out_channels, padding=1, bias=True, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h + 2, w + 2)`.
        """
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


def separable_block(in_channels: int, width: float) -> nn.Module:
    """Makes the padded separable block.

    Args:
        in_channels: Channels in.
        width: Width multiplier of the channels out.

    Returns:
        The block.
    """
    return SeparableBlock(in_channels, divisible(64 * width))


class GroupedBlock(nn.Module):
    """Grouped convolutions that are neither dense nor depthwise: 2 groups, then 8 in a residual block.

    Two groups are AlexNet's (Krizhevsky et al. 2012), the residual block is ResNeXt's (Xie et al. 2017,
    arXiv:1611.05431).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            channels: Channels everywhere else, a multiple of 8.
        """
        super().__init__()
        self.reduce = ConvUnit(in_channels, channels, activation="relu")
        self.groups2 = ConvUnit(channels, channels, 3, stride=2, groups=2, activation="relu")
        self.expand = ConvUnit(channels, channels, activation="relu")
        self.groups8 = ConvUnit(channels, channels, 3, groups=8, activation="relu")
        self.project = ConvUnit(channels, channels, target=BRANCH)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, channels, h / 2, w / 2)`.
        """
        x = self.groups2(self.reduce(x))
        y: Tensor = self.activation(x + self.project(self.groups8(self.expand(x))))
        return y


def depth_multiplier(in_channels: int, width: float) -> nn.Module:
    """Makes two separable convolutions whose depthwise parts have 2 and 4 channels out for each one in.

    The multiplier is Sifre's and Chollet's (2017, arXiv:1610.02357).

    Args:
        in_channels: Channels in.
        width: Width multiplier of the pointwise parts' channels out.

    Returns:
        The layers.
    """
    c32, c64 = divisible(32 * width), divisible(64 * width)
    return nn.Sequential(
        OrderedDict(
            depthwise2=ConvUnit(in_channels, 2 * in_channels, 3, groups=in_channels, activation="relu6"),
            pointwise2=ConvUnit(2 * in_channels, c32, activation="relu6"),
            depthwise4=ConvUnit(c32, 4 * c32, 3, stride=2, groups=c32, activation="relu6"),
            pointwise4=ConvUnit(4 * c32, c64, activation="relu6"),
        )
    )


def grouped(in_channels: int, width: float) -> nn.Module:
    """Makes the grouped block.

    Args:
        in_channels: Channels in.
        width: Width multiplier.

    Returns:
        The block.
    """
    return GroupedBlock(in_channels, divisible(64 * width))

"""Single blocks, each there for one thing that rewrites and kernels get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import ConvUnit, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SeparableBlock", "separable_block"]


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

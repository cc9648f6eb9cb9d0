"""Two blocks of X3D: inverted residuals whose depthwise convolution is three-dimensional.

Feichtenhofer 2020, "X3D: Expanding Architectures for Efficient Video Recognition", arXiv:2004.04730, table 1: the
first two blocks of stage res2 of X3D-XS (4 frames of 160 pixels, so 24 channels of 80 x 80), of 54 channels inside. The
first halves the image and has squeeze-and-excite, the second has neither.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import BRANCH, ConvUnit, SqueezeExcite, Target, before, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["X3DBlock", "x3d_block"]

_SHORTCUT = Target(0.8, 1.2)


class X3DBlock(nn.Module):
    """Expansion, depthwise 3x3x3, squeeze-and-excite where asked, projection, sum, ReLU."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, *, stride: int, squeeze: bool) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            inner: Channels of the depthwise convolution.
            out_channels: Channels out.
            stride: Stride on height and width.
            squeeze: Whether it has squeeze-and-excite.
        """
        super().__init__()
        self.expand = ConvUnit(in_channels, inner, dims=3, activation="relu")
        self.depthwise = ConvUnit(
            inner, inner, 3, dims=3, stride=(1, stride, stride), groups=inner, target=before("silu")
        )
        self.squeeze_excite: nn.Module = nn.Identity()
        if squeeze:
            self.squeeze_excite = SqueezeExcite(inner, divisible(inner / 16), gate=nn.Sigmoid(), dims=3)
        self.activation = nn.SiLU()
        self.project = ConvUnit(inner, out_channels, dims=3, target=BRANCH)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = ConvUnit(
                in_channels, out_channels, dims=3, stride=(1, stride, stride), target=_SHORTCUT
            )
        self.activation_out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, frames, h, w)`.

        Returns:
            `(n, out_channels, frames, h / stride, w / stride)`.
        """
        branch = self.project(self.activation(self.squeeze_excite(self.depthwise(self.expand(x)))))
        y: Tensor = self.activation_out(self.shortcut(x) + branch)
        return y


def x3d_block(in_channels: int, width: float) -> nn.Module:
    """Makes the two blocks.

    Args:
        in_channels: Channels in.
        width: Width multiplier.

    Returns:
        The blocks.
    """
    channels, inner = divisible(24 * width), divisible(54 * width, 2)
    return nn.Sequential(
        OrderedDict(
            block1=X3DBlock(in_channels, inner, channels, stride=2, squeeze=True),
            block2=X3DBlock(channels, inner, channels, stride=1, squeeze=False),
        )
    )

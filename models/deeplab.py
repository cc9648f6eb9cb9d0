"""DeepLabV3+'s atrous spatial pyramid pooling with separable convolutions of rates 6, 12 and 18.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
arXiv:1802.02611, section 3.1, behind the last pointwise convolution of a MobileNetV2 backbone. The default input is
what that convolution reads at output stride 16 of a 513 x 513 image: 960 channels of 33 x 33.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import interpolate

from sepwise.models.layers import ConvUnit, Target, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SeparablePyramidPooling", "deeplab_aspp"]

_RATES = (6, 12, 18)
_FEATURES = Target(0.0, 1.3)  # wide enough that the image-level means differ too


class SeparablePyramidPooling(nn.Module):
    """Features, then a pointwise branch, three atrous separable ones and an image-level one, joined by a pointwise one."""

    def __init__(self, in_channels: int, features: int, out_channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            features: Channels of the features.
            out_channels: Channels of each branch and of the output.
        """
        super().__init__()
        self.features = ConvUnit(in_channels, features, target=_FEATURES)
        self.pointwise = ConvUnit(features, out_channels, activation="relu")
        self.atrous = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    depthwise=ConvUnit(
                        features, features, 3, dilation=rate, groups=features, activation="relu"
                    ),
                    pointwise=ConvUnit(features, out_channels, activation="relu"),
                )
            )
            for rate in _RATES
        )
        self.image_pool = nn.AdaptiveAvgPool2d(1)
        self.image = ConvUnit(features, out_channels, activation="relu")
        self.project = ConvUnit((2 + len(_RATES)) * out_channels, out_channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h, w)`.
        """
        x = self.features(x)
        image = self.image(self.image_pool(x))
        image = interpolate(image, size=x.shape[2:], mode="bilinear", align_corners=False)
        branches = [self.pointwise(x), *(branch(x) for branch in self.atrous), image]
        y: Tensor = self.project(torch.cat(branches, dim=1))
        return y


def deeplab_aspp(in_channels: int, width: float) -> nn.Module:
    """Makes the pyramid pooling.

    Args:
        in_channels: Channels in.
        width: Width multiplier of the 320 features and the 256 channels out.

    Returns:
        The block.
    """
    return SeparablePyramidPooling(in_channels, divisible(320 * width), divisible(256 * width))

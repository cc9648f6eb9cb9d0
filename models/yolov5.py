"""YOLOv5-nano's backbone and neck with depthwise convolutions for its own.

Jocher et al. 2022, YOLOv5 v6 (yolov5n), doi:10.5281/zenodo.3908559. Every convolution of the network's table and
every 3x3 inside its blocks is a DWConv, of `gcd(c1, c2)` groups: so the strided ones have a channel multiplier
of 2, the lateral 1x1 ones are grouped with two channels in and one out a group, and the stem is dense. The
1x1 convolutions inside the C3 and SPPF blocks stay dense, as nothing else mixes channels. With plain
convolutions it is yolov5n without its detection head, of 1,872,157 - 115,005 parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from sepwise.models.layers import ConvUnit, Target, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["YoloV5", "yolov5n_dw"]

_EPSILON = 1e-3
_BRANCH = Target(0.4, 1.0)  # before SiLU and the sum


def _pointwise(in_channels: int, out_channels: int) -> ConvUnit:
    """Makes a dense 1x1 convolution with SiLU."""
    return ConvUnit(in_channels, out_channels, activation="silu", epsilon=_EPSILON)


class _Bottleneck(nn.Module):
    """Pointwise, then 3x3, both activated; added to the input where asked."""

    def __init__(self, channels: int, *, residual: bool, depthwise: bool) -> None:
        """Makes the layers.

        Args:
            channels: Channels in and out.
            residual: Whether the input is added.
            depthwise: Whether the 3x3 convolution is depthwise.
        """
        super().__init__()
        self.residual = residual
        self.cv1 = _pointwise(channels, channels)
        self.cv2 = ConvUnit(
            channels,
            channels,
            3,
            groups=channels if depthwise else 1,
            activation="silu",
            target=_BRANCH if residual else None,
            epsilon=_EPSILON,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            The same shape.
        """
        branch: Tensor = self.cv2(self.cv1(x))
        return x + branch if self.residual else branch


class _C3(nn.Module):
    """Two pointwise halves, one of them through bottlenecks, joined by a third."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, *, residual: bool, depthwise: bool) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
            repeats: Bottlenecks.
            residual: Whether they add their input.
            depthwise: Whether their 3x3 convolutions are depthwise.
        """
        super().__init__()
        half = out_channels // 2
        self.cv1 = _pointwise(in_channels, half)
        self.cv2 = _pointwise(in_channels, half)
        self.m = nn.Sequential(*[_Bottleneck(half, residual=residual, depthwise=depthwise) for _ in range(repeats)])
        self.cv3 = _pointwise(2 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, in_channels, h, w)`.

        Returns:
            `(n, out_channels, h, w)`.
        """
        y: Tensor = self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))
        return y


class _SPPF(nn.Module):
    """Spatial pyramid pooling: three 5x5 max pools in a row, all joined."""

    def __init__(self, channels: int) -> None:
        """Makes the layers.

        Args:
            channels: Channels in and out.
        """
        super().__init__()
        half = channels // 2
        self.cv1 = _pointwise(channels, half)
        self.pool1 = nn.MaxPool2d(5, 1, 2)
        self.pool2 = nn.MaxPool2d(5, 1, 2)
        self.pool3 = nn.MaxPool2d(5, 1, 2)
        self.cv2 = _pointwise(4 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            The same shape.
        """
        x = self.cv1(x)
        once = self.pool1(x)
        twice = self.pool2(once)
        y: Tensor = self.cv2(torch.cat([x, once, twice, self.pool3(twice)], dim=1))
        return y


class YoloV5(nn.Module):
    """Backbone and neck; the outputs are the three maps that a detection head reads."""

    def __init__(self, in_channels: int, width: float, *, depthwise: bool = True) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier; 1 is the nano size.
            depthwise: Whether convolutions have `gcd(c1, c2)` groups; False makes the plain yolov5n.
        """
        super().__init__()

        def conv(c1: int, c2: int, kernel: int, stride: int = 1, padding: int | None = None) -> ConvUnit:
            return ConvUnit(
                c1,
                c2,
                kernel,
                stride=stride,
                padding=padding,
                groups=math.gcd(c1, c2) if depthwise else 1,
                activation="silu",
                epsilon=_EPSILON,
            )

        def c3(c1: int, c2: int, repeats: int, *, residual: bool) -> _C3:
            return _C3(c1, c2, repeats, residual=residual, depthwise=depthwise)

        c16, c32, c64, c128, c256 = (divisible(channels * width) for channels in (16, 32, 64, 128, 256))
        self.stem = conv(in_channels, c16, 6, 2, 2)
        self.down2 = conv(c16, c32, 3, 2)
        self.stage2 = c3(c32, c32, 1, residual=True)
        self.down3 = conv(c32, c64, 3, 2)
        self.stage3 = c3(c64, c64, 2, residual=True)
        self.down4 = conv(c64, c128, 3, 2)
        self.stage4 = c3(c128, c128, 3, residual=True)
        self.down5 = conv(c128, c256, 3, 2)
        self.stage5 = c3(c256, c256, 1, residual=True)
        self.sppf = _SPPF(c256)
        self.lateral5 = conv(c256, c128, 1)
        self.upsample5 = nn.Upsample(scale_factor=2, mode="nearest")
        self.top_down4 = c3(2 * c128, c128, 1, residual=False)
        self.lateral4 = conv(c128, c64, 1)
        self.upsample4 = nn.Upsample(scale_factor=2, mode="nearest")
        self.top_down3 = c3(2 * c64, c64, 1, residual=False)
        self.bottom_up3 = conv(c64, c64, 3, 2)
        self.out4 = c3(2 * c64, c128, 1, residual=False)
        self.bottom_up4 = conv(c128, c128, 3, 2)
        self.out5 = c3(2 * c128, c256, 1, residual=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the feature maps.

        Args:
            x: `(n, c, h, w)`; h and w are multiples of 32.

        Returns:
            The maps at 1/8, 1/16 and 1/32 of the size, of 64, 128 and 256 channels at width 1.
        """
        p3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(x)))))
        p4 = self.stage4(self.down4(p3))
        p5 = self.sppf(self.stage5(self.down5(p4)))
        lateral5 = self.lateral5(p5)
        top4 = self.top_down4(torch.cat([self.upsample5(lateral5), p4], dim=1))
        lateral4 = self.lateral4(top4)
        out3 = self.top_down3(torch.cat([self.upsample4(lateral4), p3], dim=1))
        out4 = self.out4(torch.cat([self.bottom_up3(out3), lateral4], dim=1))
        out5 = self.out5(torch.cat([self.bottom_up4(out4), lateral5], dim=1))
        return out3, out4, out5


def yolov5n_dw(in_channels: int, width: float) -> nn.Module:
    """Makes the depthwise YOLOv5-nano.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return YoloV5(in_channels, width)

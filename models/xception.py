"""Xception: separable convolutions with residuals, ReLU first and nothing between depthwise and pointwise.

Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357, figure 5 and
table 3: 22,855,952 parameters. The paper gives no multiply-adds; 8.4 thousand million at 299 pixels is what is
commonly reported for it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import ConvUnit, Target, aim, divisible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Xception", "xception"]

# A ReLU of normal numbers keeps the most spread where few are negative, so sums get a positive mean.
_INNER = Target(0.9, 1.4)
_BEFORE_POOL = Target(0.0, 1.0)
_SHORTCUT = Target(0.6, 0.75)
_BRANCH = Target(0.0, 0.55)


class _Separable(nn.Sequential):
    """Depthwise 3x3, pointwise, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, target: Target) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
            target: What calibration makes of the output.
        """
        depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        norm = aim(nn.BatchNorm2d(out_channels), target)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise, norm=norm))


class _Block(nn.Module):
    """Two or three separable convolutions, pooled where strided, added to the input or its projection."""

    def __init__(self, channels: Sequence[int], *, stride: int = 1, first_activation: bool = True) -> None:
        """Makes the layers.

        Args:
            channels: Channels in, then out of each separable convolution.
            stride: 2 pools at the end.
            first_activation: Whether a ReLU comes before the first convolution.
        """
        super().__init__()
        last = len(channels) - 2
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(last + 1):
            if index > 0 or first_activation:
                layers[f"activation{index}"] = nn.ReLU()
            target = _INNER if index < last else _BEFORE_POOL if stride > 1 else _BRANCH
            layers[f"separable{index}"] = _Separable(channels[index], channels[index + 1], target)
        if stride > 1:
            layers["pool"] = nn.MaxPool2d(3, stride, 1)
        self.body = nn.Sequential(layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels[0] != channels[-1]:
            self.shortcut = ConvUnit(channels[0], channels[-1], stride=stride, target=_SHORTCUT)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            The block's channels out, at `h / stride` and `w / stride`.
        """
        branch: Tensor = self.body(x)
        shortcut: Tensor = self.shortcut(x)
        return branch + shortcut


class Xception(nn.Module):
    """The whole network, from an image to 1000 logits."""

    def __init__(self, in_channels: int, width: float) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the image.
            width: Width multiplier.
        """
        super().__init__()
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            divisible(channels * width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.stem = nn.Sequential(
            ConvUnit(in_channels, c32, 3, stride=2, padding=0, activation="relu"),
            ConvUnit(c32, c64, 3, padding=0, activation="relu"),
        )
        self.entry = nn.Sequential(
            _Block((c64, c128, c128), stride=2, first_activation=False),
            _Block((c128, c256, c256), stride=2),
            _Block((c256, c728, c728), stride=2),
        )
        self.middle = nn.Sequential(*[_Block((c728, c728, c728, c728)) for _ in range(8)])
        self.exit = _Block((c728, c728, c1024), stride=2)
        self.head = nn.Sequential(
            _Separable(c1024, c1536, _INNER), nn.ReLU(), _Separable(c1536, c2048, _INNER), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `(n, c, h, w)`.

        Returns:
            Logits, `(n, 1000)`.
        """
        x = self.head(self.exit(self.middle(self.entry(self.stem(x)))))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def xception(in_channels: int, width: float) -> nn.Module:
    """Makes Xception.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier.

    Returns:
        The network.
    """
    return Xception(in_channels, width)

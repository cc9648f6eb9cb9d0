"""Networks on sequences: keyword spotting on a spectrogram, and a temporal convolution network in one dimension.

- Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128. `ds_cnn` is the DS-CNN of
  MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597), which is the paper's small one: 5.4 million operations, so 2.7
  million multiply-adds; 23,756 learned parameters.
- Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling",
  arXiv:1803.01271, for causal dilated convolutions with residuals; their blocks here are separable as in Luo and
  Mesgarani 2019, "Conv-TasNet", arXiv:1809.07454: pointwise, depthwise, pointwise.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

from sepwise.models.layers import BRANCH, ConvUnit, Target, divisible

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DsCnn", "Tcn", "ds_cnn", "tcn_1d"]

_CLASSES = 12
_TRUNK = Target(0.0, 0.8)  # leaves room for eight residuals
_DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)


class DsCnn(nn.Module):
    """Keyword spotting: 49 frames of 10 cepstral coefficients to 12 logits.

    The first convolution pads as the original does, one row more below than above.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels of the spectrogram.
            channels: Channels everywhere inside.
        """
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 1, 4, 5))
        self.stem = ConvUnit(in_channels, channels, (10, 4), stride=2, padding=0, bias=True, activation="relu")
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(
                    OrderedDict(
                        depthwise=ConvUnit(channels, channels, 3, groups=channels, bias=True, activation="relu"),
                        pointwise=ConvUnit(channels, channels, bias=True, activation="relu"),
                    )
                )
                for _ in range(4)
            ]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies spectrograms.

        Args:
            x: `(n, c, frames, coefficients)`.

        Returns:
            Logits, `(n, 12)`.
        """
        x = self.blocks(self.stem(self.pad(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


class _TemporalBlock(nn.Module):
    """Pointwise, causal dilated depthwise, pointwise, added to the input."""

    def __init__(self, channels: int, inner: int, dilation: int) -> None:
        """Makes the layers.

        Args:
            channels: Channels in and out.
            inner: Channels of the depthwise convolution.
            dilation: Its dilation.
        """
        super().__init__()
        self.expand = ConvUnit(channels, inner, dims=1, activation="relu")
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.depthwise = ConvUnit(
            inner, inner, 3, dims=1, dilation=dilation, padding=0, groups=inner, activation="relu"
        )
        self.project = ConvUnit(inner, channels, dims=1, target=BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: `(n, c, frames)`.

        Returns:
            The same shape.
        """
        branch: Tensor = self.project(self.depthwise(self.pad(self.expand(x))))
        return x + branch


class Tcn(nn.Module):
    """A causal temporal convolution network: logits at every frame from the frames up to it."""

    def __init__(self, in_channels: int, channels: int) -> None:
        """Makes the layers.

        Args:
            in_channels: Features a frame.
            channels: Channels between the blocks; inside they are twice as many.
        """
        super().__init__()
        self.stem = ConvUnit(in_channels, channels, dims=1, target=_TRUNK)
        self.blocks = nn.Sequential(*[_TemporalBlock(channels, 2 * channels, dilation) for dilation in _DILATIONS])
        self.classifier = nn.Conv1d(channels, _CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies every frame.

        Args:
            x: `(n, features, frames)`.

        Returns:
            Logits, `(n, 12, frames)`.
        """
        logits: Tensor = self.classifier(self.blocks(self.stem(x)))
        return logits


def ds_cnn(in_channels: int, width: float) -> nn.Module:
    """Makes DS-CNN.

    Args:
        in_channels: Channels of the spectrogram.
        width: Width multiplier.

    Returns:
        The network.
    """
    return DsCnn(in_channels, divisible(64 * width))


def tcn_1d(in_channels: int, width: float) -> nn.Module:
    """Makes the temporal convolution network.

    Args:
        in_channels: Features a frame.
        width: Width multiplier.

    Returns:
        The network.
    """
    return Tcn(in_channels, divisible(64 * width))

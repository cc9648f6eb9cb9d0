"""Networks that a search found and that are inverted residuals of varied kernels: MnasNet and EfficientNet-Lite.

- Tan et al. 2019, "MnasNet: Platform-Aware Neural Architecture Search for Mobile", arXiv:1807.11626. `mnasnet` is
  MnasNet-B1, which has no squeeze-and-excite.
- Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946, in
  its authors' Lite form, which has neither squeeze-and-excite nor swish. Their table's multiply-adds count three more
  for each normalised element: with them Lite1 to Lite4 have the table's 631, 899, 1440 and 2640 million to the last
  digit, and Lite0 405.4 million of its 407.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sepwise.models.mobilenet_v2 import InvertedResidualNetwork, Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["efficientnet_lite0", "mnasnet"]

_MNASNET = (
    Stage(1, 3, 16, 1, 1),
    Stage(3, 3, 24, 3, 2),
    Stage(3, 5, 40, 3, 2),
    Stage(6, 5, 80, 3, 2),
    Stage(6, 3, 96, 2, 1),
    Stage(6, 5, 192, 4, 2),
    Stage(6, 3, 320, 1, 1),
)
_EFFICIENTNET_LITE0 = (
    Stage(1, 3, 16, 1, 1),
    Stage(6, 3, 24, 2, 2),
    Stage(6, 5, 40, 2, 2),
    Stage(6, 3, 80, 3, 2),
    Stage(6, 5, 112, 3, 1),
    Stage(6, 5, 192, 4, 2),
    Stage(6, 3, 320, 1, 1),
)
_HEAD = 1280


def mnasnet(in_channels: int, width: float) -> nn.Module:
    """Makes MnasNet-B1.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier; the last convolution keeps its channels.

    Returns:
        The network.
    """
    return InvertedResidualNetwork(
        in_channels, width, _MNASNET, head=_HEAD, activation="relu", epsilon=1e-5
    )


def efficientnet_lite0(in_channels: int, width: float) -> nn.Module:
    """Makes EfficientNet-Lite0.

    Args:
        in_channels: Channels of the image.
        width: Width multiplier; the last convolution keeps its channels.

    Returns:
        The network.
    """
    return InvertedResidualNetwork(
        in_channels, width, _EFFICIENTNET_LITE0, head=_HEAD, activation="relu6", epsilon=1e-3
    )

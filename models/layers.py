"""The pieces that the zoo's networks are made of.

Every convolution with batch norm is a `ConvUnit` of children `conv`, `norm` and (unless linear)
`activation`, so node names in the exported graph read alike in all networks. `aim` tells the calibration
which mean and standard deviation a layer's output shall have.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = [
    "BRANCH",
    "LINEAR",
    "ConvUnit",
    "SqueezeExcite",
    "Target",
    "aim",
    "before",
    "divisible",
    "target_of",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_TARGET_ATTRIBUTE = "calibration_target"


@dataclass(frozen=True)
class Target:
    """What calibration makes of a layer's output over the whole tensor.

    Attributes:
        mean: The mean.
        std: The standard deviation.
    """

    mean: float
    std: float


LINEAR = Target(0.0, 1.0)
BRANCH = Target(0.0, 0.58)  # added to a residual: eight such on a trunk of 0.8 stay under 2
GATE = Target(0.5, 1.7)

# Before the activation. ReLU6 then clips about 6 % of its elements at 0 and 2 % at 6.
_BEFORE: dict[str, Target] = {
    "relu6": Target(2.6, 1.7),
    "relu": Target(0.9, 1.4),
    "hard_swish": Target(0.8, 1.6),
    "silu": Target(0.8, 1.4),
    "linear": LINEAR,
}

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}

# By the number of spatial axes. torch's stubs want tuples of each one's own length, which `dims` guarantees.
_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def before(activation: str) -> Target:
    """Says what calibration makes of the input of an activation.

    Args:
        activation: One of linear, relu, relu6, hard_swish, silu.

    Returns:
        The target of the layer before it.
    """
    return _BEFORE[activation]


def aim(module: ModuleT, target: Target) -> ModuleT:
    """Sets what calibration shall make of a layer's output.

    Args:
        module: A batch norm, a convolution or a linear layer.
        target: Mean and standard deviation; the mean needs a bias.

    Returns:
        The module itself.
    """
    setattr(module, _TARGET_ATTRIBUTE, target)
    return module


def target_of(module: nn.Module) -> Target:
    """Reads what `aim` set.

    Args:
        module: Any layer.

    Returns:
        Its target, `LINEAR` where none was set.
    """
    target = getattr(module, _TARGET_ATTRIBUTE, LINEAR)
    assert isinstance(target, Target)
    return target


def divisible(channels: float, divisor: int = 8) -> int:
    """Rounds a scaled channel count as MobileNets do: to the nearest multiple, never down by over 10 %.

    Args:
        channels: The scaled count.
        divisor: What the result is a multiple of, and at least.

    Returns:
        The rounded count.

    Example:
        >>> divisible(24 * 0.75), divisible(16 * 0.25)
        (24, 8)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * channels:
        rounded += divisor
    return rounded


class ConvUnit(nn.Sequential):
    """A convolution, its batch norm and its activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int] = 1,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: str = "linear",
        target: Target | None = None,
        dims: int = 2,
        epsilon: float = 1e-5,
    ) -> None:
        """Makes the layers.

        Args:
            in_channels: Channels in.
            out_channels: Channels out.
            kernel: Kernel size, one number or one an axis.
            stride: Stride, one number or one an axis.
            padding: Padding on both sides; None keeps the size at stride 1 (odd kernels).
            dilation: Dilation on every axis.
            groups: Groups; `in_channels` makes it depthwise.
            bias: Whether the convolution has a bias before its batch norm.
            activation: One of linear, relu, relu6, hard_swish, silu.
            target: What calibration makes of the batch norm's output; None follows from the activation.
            dims: Spatial axes, 1 to 3.
            epsilon: Batch norm's epsilon.
        """
        sizes = (kernel,) * dims if isinstance(kernel, int) else tuple(kernel)
        strides = (stride,) * dims if isinstance(stride, int) else tuple(stride)
        if padding is None:
            paddings = tuple(dilation * (size - 1) // 2 for size in sizes)
        else:
            paddings = (padding,) * dims if isinstance(padding, int) else tuple(padding)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = _CONVOLUTIONS[dims](
            in_channels,
            out_channels,
            sizes,
            stride=strides,
            padding=paddings,
            dilation=(dilation,) * dims,
            groups=groups,
            bias=bias,
        )
        norm = _NORMS[dims](out_channels, eps=epsilon)
        layers["norm"] = aim(norm, target or _BEFORE[activation])
        if activation != "linear":
            layers["activation"] = _ACTIVATIONS[activation]()
        super().__init__(layers)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: channels gated by a small network on their means (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int, *, gate: nn.Module, dims: int = 2) -> None:
        """Makes the layers.

        Args:
            channels: Channels in and out.
            squeezed: Channels between the two layers.
            gate: The last activation, into 0 to 1.
            dims: Spatial axes, 1 to 3.
        """
        super().__init__()
        convolution = _CONVOLUTIONS[dims]
        self.axes = tuple(range(2, 2 + dims))
        self.reduce = aim(convolution(channels, squeezed, 1), _BEFORE["relu"])
        self.activation = nn.ReLU()
        self.expand = aim(convolution(squeezed, channels, 1), GATE)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Gates the channels.

        Args:
            x: `(n, c, *spatial)`.

        Returns:
            The same shape.
        """
        pooled = x.mean(self.axes, keepdim=True)
        gate: Tensor = self.gate(self.expand(self.activation(self.reduce(pooled))))
        return x * gate

"""Parameters and multiply-accumulates of a network, counted by the shapes that flow through it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["count_macs", "count_parameters"]


def count_parameters(module: nn.Module) -> int:
    """Counts the learned parameters; batch norm's running statistics are not learned.

    Args:
        module: The network.

    Returns:
        How many numbers its parameters hold.
    """
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Counts the multiply-accumulates of convolutions and linear layers, padding included, as papers do.

    Args:
        module: The network on the meta device, where shapes are computed and numbers are not.
        input_shape: The input's shape, batch included.

    Returns:
        The count for one run.
    """
    total = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += output.numel() * math.prod(weight.shape[1:])

    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    handles = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, layers)]
    try:
        with torch.no_grad():
            module(torch.empty(input_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return total

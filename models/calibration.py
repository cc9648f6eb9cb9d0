"""Weights and batch norm statistics that make a wrong rewrite visible.

Freshly initialised networks hide mistakes: batch norm is the identity, activations shrink layer by layer, and
no ReLU6 reaches 6. Calibration is one forward pass over a seeded input that fills every layer just before
it runs and corrects its scale just after, so that each tensor on the way has a standard deviation near 1.

- A convolution's weights are normal, each output channel scaled by its own factor, and the whole divided so that
  the output has standard deviation 1. Its bias, if any, has half of that spread.
- Batch norm's running mean and variance are those of its input, channel by channel (the variance has a floor).
  Its gamma has magnitudes in a ratio of up to 3 and is negative on a fifth of the channels, its beta spreads the
  channels; both are then scaled so that the whole output meets the layer's `Target`.

The same torch on the same kind of processor gives the same bits; another may sum in another order.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from sepwise.models.layers import target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["calibrate"]

SAMPLE_ELEMENTS = 600_000  # of the calibration input: 4 images of 3 x 224 x 224
SAMPLES_MINIMUM = 4
SAMPLES_MAXIMUM = 128
SPATIAL_MAXIMUM = 320  # larger inputs are cropped: what padding does to the borders hardly matters then
BETA_SHARE = 0.3  # of the output's variance; the rest is gamma's
BIAS_SPREAD = 0.5  # of the output's standard deviation
NEGATIVE_SHARE = 0.2  # of the channels
VARIANCE_FLOOR = 0.05  # of the whole tensor's variance, give or take a half, so that a nearly constant channel is not amplified

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def calibrate(module: nn.Module, input_shape: tuple[int, ...], seed: str) -> None:
    """Fills a network's parameters and buffers in place and puts it into evaluation mode.

    Args:
        module: The network, on the CPU; what its parameters hold does not matter.
        input_shape: The shape of its input, batch included; the batch has no influence.
        seed: What the weights depend on, besides the layers' own paths.
    """
    module.eval()
    handles = []
    for path, layer in module.named_modules():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{path}".encode()))
        if isinstance(layer, _CONVOLUTIONS):
            handles.append(layer.register_forward_pre_hook(_convolution_filler(generator)))
            handles.append(layer.register_forward_hook(_convolution_scaler(generator)))
        elif isinstance(layer, _NORMS):
            handles.append(layer.register_forward_hook(_norm_calibrator(generator)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the machine's cores
    try:
        with torch.no_grad():
            module(_calibration_input(input_shape, seed))
    finally:
        torch.set_num_threads(threads)
        for handle in handles:
            handle.remove()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _calibration_input(input_shape: tuple[int, ...], seed: str) -> Tensor:
    """Draws the calibration input: normal, enough samples for deep layers' statistics."""
    spatial = [min(size, SPATIAL_MAXIMUM) for size in input_shape[2:]]
    elements = math.prod(spatial) * input_shape[1]
    samples = max(SAMPLES_MINIMUM, min(SAMPLES_MAXIMUM, round(SAMPLE_ELEMENTS / elements)))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/input".encode()))
    return torch.randn(samples, input_shape[1], *spatial, generator=generator)


def _convolution_filler(generator: torch.Generator) -> Callable[..., None]:
    """Makes the hook that draws a convolution's weights before it runs, its bias still 0."""

    def fill(layer: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        weight = layer.get_parameter("weight")
        weight.normal_(generator=generator)
        factors = torch.rand(weight.shape[0], generator=generator).sub_(0.5).exp_()
        weight.mul_(factors.reshape(-1, *[1] * (weight.dim() - 1)))
        if _has_bias(layer):
            layer.get_parameter("bias").zero_()

    return fill


def _convolution_scaler(generator: torch.Generator) -> Callable[..., Tensor]:
    """Makes the hook that scales a convolution's weights to its target and draws its bias, after it ran."""

    def scale(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        target = target_of(layer)
        weight = layer.get_parameter("weight")
        factor = target.std / _spread(output)
        if not _has_bias(layer):
            weight.mul_(factor)
            return output.mul_(factor)
        bias = layer.get_parameter("bias")
        bias.copy_(_standardised(bias.numel(), generator)).mul_(BIAS_SPREAD * target.std)
        output = output.mul_(factor).add_(_along_channels(bias, output))
        correction = target.std / _spread(output)
        weight.mul_(factor * correction)
        bias.mul_(correction)
        output.mul_(correction)
        shift = target.mean - output.mean()
        bias.add_(shift)
        return output.add_(shift)

    return scale


def _norm_calibrator(generator: torch.Generator) -> Callable[..., Tensor]:
    """Makes the hook that sets a batch norm's statistics, gamma and beta, and computes it anew."""

    def calibrate_norm(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        (x,) = inputs
        target = target_of(layer)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        channels = mean.numel()
        floor = torch.rand(channels, generator=generator).add_(0.5).mul_(VARIANCE_FLOOR * _spread(x) ** 2)
        variance = variance.maximum(floor)
        gamma = torch.rand(channels, generator=generator).add_(0.5)
        negative = torch.randperm(channels, generator=generator)[: math.ceil(NEGATIVE_SHARE * (channels - 1))]
        gamma[negative] *= -1.0
        gamma *= math.sqrt(1.0 - BETA_SHARE) * target.std / float(gamma.square().mean().sqrt())
        beta = _standardised(channels, generator) * (math.sqrt(BETA_SHARE) * target.std)
        epsilon = float(getattr(layer, "eps"))  # noqa: B009
        normalised = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)
        correction = target.std / _spread(normalised)
        normalised.mul_(correction)
        shift = target.mean - normalised.mean()
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)
        layer.get_buffer("num_batches_tracked").fill_(1)
        layer.get_parameter("weight").copy_(gamma * correction)
        layer.get_parameter("bias").copy_(beta * correction + shift)
        return normalised.add_(shift)

    return calibrate_norm


def _has_bias(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer has a bias."""
    return any(name == "bias" for name, _ in layer.named_parameters(recurse=False))


def _spread(x: Tensor) -> float:
    """The standard deviation over the whole tensor, 1 where it is constant."""
    return float(x.std(correction=0)) or 1.0


def _along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """Shapes a vector of channels to add to `(n, c, ...)`."""
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))


def _standardised(count: int, generator: torch.Generator) -> Tensor:
    """Draws uniform numbers of mean 0 and mean square 1 (a single one is 0)."""
    drawn = torch.rand(count, generator=generator)
    drawn -= drawn.mean()
    return drawn / (float(drawn.square().mean().sqrt()) or 1.0)

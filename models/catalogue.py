"""What the zoo holds: one entry a model, readable without torch.

The parameter and MAC counts here are those of width 1 and the default shape. They are written down rather
than computed, so that listing the zoo needs no torch; tests compare every one with the module itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from sepwise.passes.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ENTRIES", "Entry", "ZooModel", "find"]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo, described.

    Attributes:
        name: What the model is called, which is also its factory's name in the file `family`.
        family: The module of `sepwise.models` that holds the factory.
        summary: What it is there for, in one line.
        paper: Where the architecture was published.
        input_shape: The default shape, batch included: `(n, c, h, w)`, `(n, c, t)` or `(n, c, d, h, w)`.
        parameters: Learned parameters at width 1 (batch norm's statistics are not learned).
        macs: Multiply-accumulates of convolutions and linear layers at width 1 and the default shape.
        minimum_size: The smallest spatial size that the network accepts on any axis.
        size_multiple: What every spatial size must be a multiple of.
        output_names: Names of the outputs, in order.
    """

    name: str
    family: str
    summary: str
    paper: str
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    minimum_size: int = 1
    size_multiple: int = 1
    output_names: tuple[str, ...] = ("y",)


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo, built: calibrated weights and one input shape.

    Attributes:
        name: The zoo's name for it.
        module: The network in evaluation mode.
        input_shape: Shape of the input, batch included.
        input_name: Name of the input in the exported graph.
        output_names: Names of the outputs in the exported graph, in order.
        paper: Where the architecture was published.
        width: The width multiplier that it was built with.
        parameters: Learned parameters.
        macs: Multiply-accumulates of one run at `input_shape`.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    input_name: str
    output_names: tuple[str, ...]
    paper: str
    width: float
    parameters: int
    macs: int


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="mobilenet_v1",
        family="mobilenet_v1",
        summary="13 separable convolutions in a row",
        paper="Howard et al. 2017, MobileNets, arXiv:1704.04861",
        input_shape=(1, 3, 224, 224),
        parameters=4_231_976,
        macs=568_740_352,
    ),
    Entry(
        name="mobilenet_v2",
        family="mobilenet_v2",
        summary="17 inverted residuals with linear bottlenecks",
        paper="Sandler et al. 2018, MobileNetV2, arXiv:1801.04381",
        input_shape=(1, 3, 224, 224),
        parameters=3_504_872,
        macs=300_774_272,
    ),
    Entry(
        name="separable_block",
        family="blocks",
        summary="depthwise with bias, then a pointwise convolution that pads: a fusion trap",
        paper="Sifre and Mallat 2014, Rigid-Motion Scattering for Texture Classification, arXiv:1403.1687",
        input_shape=(1, 32, 28, 28),
        parameters=2_560,
        macs=2_068_992,
    ),
)


def find(name: str) -> Entry:
    """Finds a model of the zoo by name.

    Args:
        name: One of the zoo's names.

    Returns:
        Its entry.

    Raises:
        InputError: No model has that name; the message lists close ones.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    known = [entry.name for entry in ENTRIES]
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    raise InputError(f"Model {name!r} is not in the zoo: {hint}")

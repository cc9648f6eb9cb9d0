"""What the zoo holds: one entry a model, readable without torch.

The parameter and MAC counts here are those of width 1 and the default shape. They are written down rather
than computed, so that listing the zoo needs no torch; tests compare every one with the module itself, and with
the figures published at the place that the entry names, to the last digit printed there.
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
        counts: Where its parameters and MACs are published, or that they are counted by hand.
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
    counts: str
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
        counts="the paper's tables 6 and 7; parameters to the last one in Keras Applications",
        input_shape=(1, 3, 224, 224),
        parameters=4_231_976,
        macs=568_740_352,
    ),
    Entry(
        name="mobilenet_v2",
        family="mobilenet_v2",
        summary="17 inverted residuals with linear bottlenecks",
        paper="Sandler et al. 2018, MobileNetV2, arXiv:1801.04381",
        counts="torchvision, and for all widths and sizes the table of its authors' code (tensorflow/models)",
        input_shape=(1, 3, 224, 224),
        parameters=3_504_872,
        macs=300_774_272,
    ),
    Entry(
        name="mobilenet_v3_small",
        family="mobilenet_v3",
        summary="11 inverted residuals, squeeze-and-excite, hard-swish, kernels 3 and 5",
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
        counts="torchvision, and timm for narrower ones",
        input_shape=(1, 3, 224, 224),
        parameters=2_542_856,
        macs=56_510_400,
    ),
    Entry(
        name="mobilenet_v3_large",
        family="mobilenet_v3",
        summary="15 inverted residuals, squeeze-and-excite, hard-swish, kernels 3 and 5",
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
        counts="torchvision and the table of its authors' code (tensorflow/models); timm for narrower ones",
        input_shape=(1, 3, 224, 224),
        parameters=5_483_032,
        macs=216_589_760,
    ),
    Entry(
        name="xception",
        family="xception",
        summary="separable convolutions with residuals, pointwise before depthwise across blocks",
        paper="Chollet 2017, Xception, arXiv:1610.02357",
        counts="parameters in the paper's table 3; MACs in timm, which adds two for each normalised element",
        input_shape=(1, 3, 299, 299),
        parameters=22_855_952,
        macs=8_357_403_496,
        minimum_size=7,
    ),
    Entry(
        name="shufflenet_v2",
        family="shufflenet_v2",
        summary="channel split and shuffle, 1.0x",
        paper="Ma et al. 2018, ShuffleNet V2, arXiv:1807.11164",
        counts="torchvision; the paper's 146 million count the pooling too",
        input_shape=(1, 3, 224, 224),
        parameters=2_278_604,
        macs=144_907_992,
    ),
    Entry(
        name="efficientnet_lite0",
        family="searched",
        summary="16 inverted residuals, kernels 3 and 5, ReLU6",
        paper="Tan and Le 2019, EfficientNet, arXiv:1905.11946",
        counts="timm, whose MACs have two more for each normalised element",
        input_shape=(1, 3, 224, 224),
        parameters=4_652_008,
        macs=385_187_552,
    ),
    Entry(
        name="mnasnet",
        family="searched",
        summary="17 inverted residuals, kernels 3 and 5, ReLU; B1, as torchvision's mnasnet1_0",
        paper="Tan et al. 2019, MnasNet, arXiv:1807.11626",
        counts="torchvision",
        input_shape=(1, 3, 224, 224),
        parameters=4_383_312,
        macs=314_415_872,
    ),
    Entry(
        name="yolov5n_dw",
        family="yolov5",
        summary="YOLOv5-nano backbone and neck, convolutions of gcd(c1, c2) groups, three outputs",
        paper="Jocher et al. 2022, YOLOv5 v6, doi:10.5281/zenodo.3908559",
        counts="Ultralytics' table for yolov5n, with plain convolutions and its detection head",
        input_shape=(1, 3, 320, 320),
        parameters=643_632,
        macs=204_172_800,
        minimum_size=32,
        size_multiple=32,
        output_names=("p3", "p4", "p5"),
    ),
    Entry(
        name="deeplab_aspp",
        family="deeplab",
        summary="atrous separable convolutions, rates 6, 12 and 18",
        paper="Chen et al. 2018, DeepLabV3+, arXiv:1802.02611",
        counts="counted by hand",
        input_shape=(1, 960, 33, 33),
        parameters=1_058_752,
        macs=1_057_718_720,
    ),
    Entry(
        name="ds_cnn",
        family="sequences",
        summary="keyword spotting on 49 frames of 10 coefficients",
        paper="Zhang et al. 2017, Hello Edge, arXiv:1711.07128",
        counts="the paper's operations (two a MAC, and one for each bias added); parameters in MLPerf Tiny",
        input_shape=(1, 1, 49, 10),
        parameters=23_756,
        macs=2_656_768,
        minimum_size=2,
    ),
    Entry(
        name="tcn_1d",
        family="sequences",
        summary="causal dilated separable convolutions in one dimension",
        paper="Bai et al. 2018, Temporal Convolutional Networks, arXiv:1803.01271",
        counts="counted by hand",
        input_shape=(1, 40, 128),
        parameters=142_732,
        macs=17_596_416,
    ),
    Entry(
        name="x3d_block",
        family="x3d",
        summary="three-dimensional depthwise convolutions, squeeze-and-excite, SiLU",
        paper="Feichtenhofer 2020, X3D, arXiv:2004.04730",
        counts="counted by hand",
        input_shape=(1, 24, 4, 80, 80),
        parameters=10_178,
        macs=80_410_464,
    ),
    Entry(
        name="depth_multiplier",
        family="blocks",
        summary="depthwise convolutions of multiplier 2 and 4",
        paper="Chollet 2017, Xception, arXiv:1610.02357",
        counts="counted by hand",
        input_shape=(1, 16, 56, 56),
        parameters=11_168,
        macs=11_440_128,
    ),
    Entry(
        name="grouped",
        family="blocks",
        summary="convolutions of 2 and of 8 groups, neither dense nor depthwise",
        paper="Xie et al. 2017, ResNeXt, arXiv:1611.05431",
        counts="counted by hand",
        input_shape=(1, 32, 56, 56),
        parameters=33_920,
        macs=30_908_416,
    ),
    Entry(
        name="separable_block",
        family="blocks",
        summary="depthwise with bias, then a pointwise convolution that pads: a fusion trap",
        paper="Sifre and Mallat 2014, Rigid-Motion Scattering for Texture Classification, arXiv:1403.1687",
        counts="counted by hand",
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

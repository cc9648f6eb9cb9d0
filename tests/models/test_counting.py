"""Parameters and multiply-accumulates against papers and reference implementations, to the last digit that they print."""

import math

import pytest
import torch
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out
from sepwise.models.catalogue import ENTRIES, Entry
from sepwise.models.counting import count_macs, count_parameters
from sepwise.models.yolov5 import YoloV5

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

REFERENCE_PARAMETERS = {
    "mobilenet_v1": 4_231_976,  # Keras Applications, trainable
    "mobilenet_v2": 3_504_872,  # torchvision, as are the four after it
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "shufflenet_v2": 2_278_604,
    "mnasnet": 4_383_312,
    "xception": 22_855_952,  # the paper's table 3
    "efficientnet_lite0": 4_652_008,  # timm
    "ds_cnn": 24_908 - 2 * 9 * 64,  # MLPerf Tiny counts the statistics of nine batch norms of 64 channels
}

TORCHVISION_GMACS = {
    "mobilenet_v2": 0.301,
    "mobilenet_v3_small": 0.057,
    "mobilenet_v3_large": 0.217,
    "shufflenet_v2": 0.145,
    "mnasnet": 0.314,
}

TIMM_GMACS = {"xception": 8.40, "efficientnet_lite0": 0.40}

NARROWER_OR_WIDER = [
    ("mobilenet_v1", 0.75, 2_585_560),  # Keras Applications, trainable
    ("mobilenet_v1", 0.5, 1_331_592),
    ("mobilenet_v1", 0.25, 470_072),
    ("mnasnet", 0.5, 2_218_512),  # torchvision
    ("mnasnet", 0.75, 3_170_208),
    ("mnasnet", 1.3, 6_282_256),
]


def network(name: str, width: float = 1.0) -> nn.Module:
    return lay_out(find(name), find(name).input_shape[1], width)


def mmacs(name: str, width: float, size: int) -> float:
    return count_macs(network(name, width), (1, 3, size, size)) / 1e6


def normalised_elements(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Counts the elements that batch norms put out, which some count two operations each for."""
    total = 0

    def count(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.empty(shape, device="meta"))
    return total


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_catalogue_counts_are_the_networks(entry: Entry) -> None:
    module = lay_out(entry, entry.input_shape[1], 1.0)
    assert (count_parameters(module), count_macs(module, entry.input_shape)) == (entry.parameters, entry.macs)


@pytest.mark.parametrize("name", REFERENCE_PARAMETERS)
def test_parameters_of_the_reference(name: str) -> None:
    assert find(name).parameters == REFERENCE_PARAMETERS[name]


@pytest.mark.parametrize(("name", "width", "parameters"), NARROWER_OR_WIDER)
def test_parameters_of_the_reference_at_other_widths(name: str, width: float, parameters: int) -> None:
    assert count_parameters(network(name, width)) == parameters


@pytest.mark.parametrize("name", TORCHVISION_GMACS)
def test_macs_of_torchvision(name: str) -> None:
    assert round(find(name).macs / 1e9, 3) == TORCHVISION_GMACS[name]


@pytest.mark.parametrize("name", TIMM_GMACS)
def test_macs_of_timm(name: str) -> None:
    """It counts two operations for each normalised element beside the MACs."""
    entry = find(name)
    counted = entry.macs + 2 * normalised_elements(network(name), entry.input_shape)
    assert round(counted / 1e9, 2) == TIMM_GMACS[name]


@pytest.mark.parametrize(
    ("width", "size", "printed"),
    [(1.0, 224, 569), (0.75, 224, 325), (0.5, 224, 149), (0.25, 224, 41), (1.0, 192, 418), (1.0, 128, 186)],
)
def test_macs_of_the_mobilenet_v1_paper(width: float, size: int, printed: int) -> None:
    assert round(mmacs("mobilenet_v1", width, size)) == printed


@pytest.mark.parametrize(
    ("width", "size", "printed", "parameters"),
    [
        (1.4, 224, 582, 6.06),
        (1.3, 224, 509, 5.34),
        (1.0, 224, 300, 3.47),
        (1.0, 160, 154, 3.47),
        (1.0, 96, 56, 3.47),
        (0.75, 224, 209, 2.61),
        (0.5, 224, 97, 1.95),
        (0.35, 224, 59, 1.66),
        (0.35, 96, 11, 1.66),
    ],
)
def test_mobilenet_v2_of_its_authors(width: float, size: int, printed: int, parameters: float) -> None:
    """Their table cuts MACs off, and leaves the parameters of batch norm out."""
    module = network("mobilenet_v2", width)
    norms = sum(count_parameters(layer) for layer in module.modules() if isinstance(layer, NORMS))
    assert math.floor(mmacs("mobilenet_v2", width, size)) == printed
    assert round((count_parameters(module) - norms) / 1e6, 2) == parameters


@pytest.mark.parametrize(("width", "printed"), [(1.0, 217), (0.75, 155)])
def test_macs_of_mobilenet_v3_of_its_authors(width: float, printed: int) -> None:
    assert round(mmacs("mobilenet_v3_large", width, 224)) == printed


@pytest.mark.parametrize(("name", "printed"), [("mobilenet_v3_large", 3.99), ("mobilenet_v3_small", 2.04)])
def test_parameters_of_mobilenet_v3_of_timm_at_three_quarters(name: str, printed: float) -> None:
    assert round(count_parameters(network(name, 0.75)) / 1e6, 2) == printed


def test_macs_of_the_shufflenet_v2_paper() -> None:
    """Its 146 million are reached with the additions of its two pools, one for each element of a window."""
    max_pool, average_pool = 24 * 56 * 56 * 9, 1024 * 7 * 7
    assert round((find("shufflenet_v2").macs + max_pool + average_pool) / 1e6) == 146


def test_operations_of_the_ds_cnn_paper() -> None:
    """Two for each MAC and one for each bias added: nine layers of 64 channels on 25 x 5 positions, and 12 logits."""
    assert round((2 * find("ds_cnn").macs + 9 * 64 * 25 * 5 + 12) / 1e6, 1) == 5.4


def test_yolov5n_with_its_head_has_the_published_counts() -> None:
    with torch.device("meta"):
        plain = YoloV5(3, 1.0, depthwise=False)
    maps = {64: 80 * 80, 128: 40 * 40, 256: 20 * 20}
    head_parameters = sum((channels + 1) * 255 for channels in maps)
    head_macs = sum(channels * 255 * positions for channels, positions in maps.items())
    assert count_parameters(plain) + head_parameters == 1_872_157
    assert round(2 * (count_macs(plain, (1, 3, 640, 640)) + head_macs) / 1e9, 1) == 4.5


def test_depthwise_yolov5n_has_the_plain_ones_counts_over_its_groups() -> None:
    entry = find("yolov5n_dw")
    with torch.device("meta"):
        plain, depthwise = YoloV5(3, 1.0, depthwise=False), YoloV5(3, 1.0)
    parameters, macs = count_parameters(plain), count_macs(plain, entry.input_shape)
    places: dict[str, int] = {}
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _l, _i, y, name=name: places.update({name: y.shape[2] * y.shape[3]}))
    plain(torch.empty(entry.input_shape, device="meta"))
    for name, layer in depthwise.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            dense = layer.in_channels * layer.out_channels * math.prod(layer.kernel_size)
            spared = dense - dense // layer.groups
            parameters -= spared
            macs -= spared * places[name]
    assert (entry.parameters, entry.macs) == (parameters, macs)


# Convolutions of the blocks that no paper counts: channels in a group, channels out, taps, positions, whether it has a
# bias and a batch norm.
BLOCKS = {
    "deeplab_aspp": [
        (960, 320, 1, 33 * 33, False, True),
        (320, 256, 1, 33 * 33, False, True),
        *[(1, 320, 9, 33 * 33, False, True), (320, 256, 1, 33 * 33, False, True)] * 3,
        (320, 256, 1, 1, False, True),
        (5 * 256, 256, 1, 33 * 33, False, True),
    ],
    "depth_multiplier": [
        (1, 32, 9, 56 * 56, False, True),
        (32, 32, 1, 56 * 56, False, True),
        (1, 128, 9, 28 * 28, False, True),
        (128, 64, 1, 28 * 28, False, True),
    ],
    "grouped": [
        (32, 64, 1, 56 * 56, False, True),
        (32, 64, 9, 28 * 28, False, True),
        (64, 64, 1, 28 * 28, False, True),
        (8, 64, 9, 28 * 28, False, True),
        (64, 64, 1, 28 * 28, False, True),
    ],
    "separable_block": [(1, 32, 9, 28 * 28, True, False), (32, 64, 1, 30 * 30, True, True)],
    "tcn_1d": [
        (40, 64, 1, 128, False, True),
        *[(64, 128, 1, 128, False, True), (1, 128, 3, 128, False, True), (128, 64, 1, 128, False, True)] * 8,
        (64, 12, 1, 128, True, False),
    ],
    "x3d_block": [
        (24, 54, 1, 4 * 80 * 80, False, True),
        (1, 54, 27, 4 * 40 * 40, False, True),
        (54, 8, 1, 1, True, False),
        (8, 54, 1, 1, True, False),
        (54, 24, 1, 4 * 40 * 40, False, True),
        (24, 24, 1, 4 * 40 * 40, False, True),
        (24, 54, 1, 4 * 40 * 40, False, True),
        (1, 54, 27, 4 * 40 * 40, False, True),
        (54, 24, 1, 4 * 40 * 40, False, True),
    ],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_counted_by_hand(name: str) -> None:
    parameters = macs = 0
    for per_group, outputs, taps, positions, bias, norm in BLOCKS[name]:
        weights = per_group * outputs * taps
        parameters += weights + bias * outputs + norm * 2 * outputs
        macs += weights * positions
    assert (find(name).parameters, find(name).macs) == (parameters, macs)


def test_counts_of_a_layer_by_hand() -> None:
    """A 3x3 layer from 3 to 4 channels on 5x5 pixels: 27 + 12 parameters separable, 108 standard."""
    with torch.device("meta"):
        depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        separable = nn.Sequential(depthwise, nn.Conv2d(3, 4, 1, bias=False))
        standard = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert count_parameters(separable) == 39
    assert count_macs(separable, (2, 3, 5, 5)) == 2 * 25 * 39
    assert count_parameters(standard) == 108
    assert count_macs(standard, (1, 3, 5, 5)) == 25 * 108


def test_biases_are_parameters_and_no_macs() -> None:
    with torch.device("meta"):
        linear = nn.Linear(6, 4)
    assert count_parameters(linear) == 28
    assert count_macs(linear, (3, 6)) == 3 * 24

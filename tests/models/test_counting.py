"""Parameters and multiply-accumulates against the papers and their reference implementations."""

import pytest
import torch
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out
from sepwise.models.catalogue import ENTRIES, Entry
from sepwise.models.counting import count_macs, count_parameters

REFERENCE_PARAMETERS = {
    "mobilenet_v1": 4_231_976,  # Keras, trainable
    "mobilenet_v2": 3_504_872,  # torchvision
    "mobilenet_v3_small": 2_542_856,  # torchvision
    "mobilenet_v3_large": 5_483_032,  # torchvision
    "xception": 22_855_952,  # Keras, trainable
    "shufflenet_v2": 2_278_604,  # torchvision
    "efficientnet_lite0": 4_652_008,  # timm
    "mnasnet": 4_383_312,  # torchvision
    "ds_cnn": 24_908 - 2 * 9 * 64,  # MLPerf Tiny counts the statistics of nine batch norms of 64 channels
}

# In millions, as printed.
PAPER_MACS = {
    "mobilenet_v1": 569,
    "mobilenet_v2": 300,
    "mobilenet_v3_small": 56,
    "mobilenet_v3_large": 219,
    "shufflenet_v2": 146,
    "mnasnet": 315,
    "xception": 8_400,
    "efficientnet_lite0": 390,  # EfficientNet-B0, whose convolutions it has; see the docstring of `searched`
    "ds_cnn": 2.7,  # half of 5.4 million operations
}
# Papers round, and some count a few per cent of element-wise work in; a layer too many or too few of these networks
# changes parameters, which are exact.
PAPER_SLACK = 0.02


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_catalogue_counts_are_the_networks(entry: Entry) -> None:
    module = lay_out(entry, entry.input_shape[1], 1.0)
    assert (count_parameters(module), count_macs(module, entry.input_shape)) == (entry.parameters, entry.macs)


@pytest.mark.parametrize("name", REFERENCE_PARAMETERS)
def test_parameters_of_the_reference(name: str) -> None:
    assert find(name).parameters == REFERENCE_PARAMETERS[name]


@pytest.mark.parametrize("name", PAPER_MACS)
def test_macs_of_the_paper(name: str) -> None:
    assert find(name).macs / 1e6 == pytest.approx(PAPER_MACS[name], rel=PAPER_SLACK)


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("mobilenet_v1", 0.75, 2_585_560),  # Keras's mobilenet_0.75, trainable
        ("mobilenet_v1", 0.5, 1_331_592),
        ("mobilenet_v1", 0.25, 470_072),
    ],
)
def test_parameters_of_narrow_references(name: str, width: float, parameters: int) -> None:
    assert count_parameters(lay_out(find(name), 3, width)) == parameters


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

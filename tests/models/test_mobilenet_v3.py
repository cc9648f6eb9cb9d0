import pytest
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out
from sepwise.models.layers import SqueezeExcite
from sepwise.models.mobilenet_v2 import InvertedResidual

# The paper's tables 1 and 2: kernel, channels inside, squeeze-and-excite, hard-swish, stride.
LARGE = """3 16 - RE 1, 3 64 - RE 2, 3 72 - RE 1, 5 72 SE RE 2, 5 120 SE RE 1, 5 120 SE RE 1, 3 240 - HS 2, 3 200 - HS 1,
    3 184 - HS 1, 3 184 - HS 1, 3 480 SE HS 1, 3 672 SE HS 1, 5 672 SE HS 2, 5 960 SE HS 1, 5 960 SE HS 1"""
SMALL = """3 16 SE RE 2, 3 72 - RE 2, 3 88 - RE 1, 5 96 SE HS 2, 5 240 SE HS 1, 5 240 SE HS 1, 5 120 SE HS 1, 5 144 SE HS 1,
    5 288 SE HS 2, 5 576 SE HS 1, 5 576 SE HS 1"""


def blocks(name: str, width: float = 1.0) -> list[InvertedResidual]:
    return [layer for layer in lay_out(find(name), 3, width).modules() if isinstance(layer, InvertedResidual)]


@pytest.mark.parametrize(("name", "table"), [("mobilenet_v3_large", LARGE), ("mobilenet_v3_small", SMALL)])
def test_rows_of_the_paper(name: str, table: str) -> None:
    found = []
    for block in blocks(name):
        conv = block.depthwise.get_submodule("conv")
        assert isinstance(conv, nn.Conv2d)
        squeeze = "SE" if isinstance(block.squeeze_excite, SqueezeExcite) else "-"
        activation = "HS" if isinstance(block.depthwise.get_submodule("activation"), nn.Hardswish) else "RE"
        found.append(f"{conv.kernel_size[0]} {conv.out_channels} {squeeze} {activation} {conv.stride[0]}")
    assert found == [" ".join(row.split()) for row in table.split(",")]


def test_expansions_stay_where_the_network_is_narrow() -> None:
    """At width 1/4 the first 16 channels are 8, which the second block expands by 64 / 16 as at width 1."""
    conv = blocks("mobilenet_v3_large", 0.25)[1].expand.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (8, 32)


@pytest.mark.parametrize(("width", "hidden"), [(0.25, 1280), (1.0, 1280), (1.25, 1600)])
def test_the_hidden_layer_is_only_ever_widened(width: float, hidden: int) -> None:
    assert lay_out(find("mobilenet_v3_large"), 3, width).get_submodule("classifier").in_features == hidden

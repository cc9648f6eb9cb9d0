import pytest
import torch
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out
from sepwise.models.layers import ConvUnit
from sepwise.models.mobilenet_v2 import InvertedResidual


def block(in_channels: int, inner: int, out_channels: int, stride: int, *, squeeze: bool = False) -> InvertedResidual:
    made = InvertedResidual(
        in_channels, inner, out_channels, kernel=3, stride=stride, activation="relu6", epsilon=1e-5, squeeze=squeeze
    )
    return made.eval()


@pytest.mark.parametrize(("out_channels", "stride", "residual"), [(8, 1, True), (16, 1, False), (8, 2, False)])
def test_the_input_is_added_where_shapes_agree(out_channels: int, stride: int, residual: bool) -> None:
    made = block(8, 48, out_channels, stride)
    nn.init.zeros_(made.project.get_parameter("norm.weight"))  # the branch is then 0
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    y = made(x)
    assert y.shape == (1, out_channels, 6 // stride, 6 // stride)
    assert torch.equal(y, x) if residual else not y.any()


def test_the_projection_is_linear() -> None:
    names = [name for name, _ in block(8, 48, 8, 1).project.named_children()]
    assert names == ["conv", "norm"]


def test_as_many_channels_as_come_in_need_no_expansion() -> None:
    assert isinstance(block(8, 8, 16, 1).expand, nn.Identity)
    assert isinstance(block(8, 16, 16, 1).expand, ConvUnit)


def test_squeeze_and_excite_stands_before_the_projection() -> None:
    made = block(8, 32, 8, 1, squeeze=True)
    assert made.squeeze_excite.get_submodule("reduce").out_channels == 8
    made.squeeze_excite = nn.Identity()
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    gated = block(8, 32, 8, 1, squeeze=True)
    gated.load_state_dict(made.state_dict(), strict=False)
    assert not torch.equal(gated(x), made(x))


def test_seventeen_blocks() -> None:
    network = lay_out(find("mobilenet_v2"), 3, 1.0)
    blocks = [layer for layer in network.modules() if isinstance(layer, InvertedResidual)]
    assert len(blocks) == 17
    assert sum(each.residual for each in blocks) == 10
    assert {layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(("width", "head"), [(0.25, 1280), (1.0, 1280), (1.4, 1792)])
def test_the_head_is_only_ever_widened(width: float, head: int) -> None:
    assert lay_out(find("mobilenet_v2"), 3, width).get_submodule("classifier").in_features == head

import pytest
import torch
from torch import nn

from sepwise.models.layers import LINEAR, ConvUnit, SqueezeExcite, Target, aim, before, divisible, target_of


@pytest.mark.parametrize(
    ("channels", "divisor", "rounded"),
    [(32, 8, 32), (18, 8, 24), (16 * 0.25, 8, 8), (96 * 0.35, 8, 32), (12, 8, 16), (116, 4, 116), (54, 2, 54)],
)
def test_divisible(channels: float, divisor: int, rounded: int) -> None:
    assert divisible(channels, divisor) == rounded
    assert rounded >= 0.9 * channels


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 3])
def test_unit_keeps_the_size(dims: int, kernel: int, dilation: int) -> None:
    unit = ConvUnit(4, 6, kernel, dilation=dilation, dims=dims, activation="relu").eval()
    assert unit(torch.zeros(2, 4, *[7] * dims)).shape == (2, 6, *[7] * dims)
    assert [name for name, _ in unit.named_children()] == ["conv", "norm", "activation"]


def test_linear_unit_has_no_activation() -> None:
    assert [name for name, _ in ConvUnit(4, 6).named_children()] == ["conv", "norm"]


def test_targets() -> None:
    assert target_of(nn.ReLU()) == LINEAR
    assert target_of(aim(nn.Linear(2, 2), Target(3.0, 4.0))) == Target(3.0, 4.0)
    assert target_of(ConvUnit(2, 2, activation="silu").get_submodule("norm")) == before("silu")


def test_squeeze_excite_gates_channels() -> None:
    block = SqueezeExcite(4, 2, gate=nn.Sigmoid())
    x = torch.ones(1, 4, 3, 3)
    y = block(x)
    assert y.shape == x.shape
    assert bool(((y > 0) & (y < 1)).all())
    assert torch.equal(y.amax((2, 3)), y.amin((2, 3)))

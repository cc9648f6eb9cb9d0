import torch
from torch import nn

from sepwise import models


def test_separable_block_border_is_the_bias() -> None:
    model = models.build("separable_block", shape=(1, 6, 8, 8), width=0.25)
    block = model.module
    inner = block.get_submodule("pointwise")
    x = torch.randn(model.input_shape, generator=torch.Generator().manual_seed(0))
    padded = inner.get_submodule("conv")(block.get_submodule("depthwise")(x))
    bias = inner.get_parameter("conv.bias").reshape(1, -1, 1)
    border = torch.cat([padded[:, :, 0], padded[:, :, -1], padded[:, :, :, 0], padded[:, :, :, -1]], dim=2)
    assert torch.equal(border, bias.expand_as(border))
    assert block.get_parameter("depthwise.bias").abs().min() > 0
    assert block(x).shape == (1, 16, 10, 10)


def test_padding_before_the_depthwise_convolution_is_wrong_on_the_border_only() -> None:
    model = models.build("separable_block", shape=(1, 6, 8, 8), width=0.25)
    block = model.module
    depthwise, pointwise = block.get_submodule("depthwise"), block.get_submodule("pointwise.conv")
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(pointwise, nn.Conv2d)
    for parameter in (*depthwise.parameters(), *pointwise.parameters()):
        parameter.mul_(16).round_()  # sums of small whole numbers are exact in any order
    x = torch.randint(-8, 9, model.input_shape, generator=torch.Generator().manual_seed(0)).float()
    right = pointwise(depthwise(x))
    depthwise.padding, pointwise.padding = (2, 2), (0, 0)
    wrong = pointwise(depthwise(x))
    assert torch.equal(wrong[:, :, 1:-1, 1:-1], right[:, :, 1:-1, 1:-1])
    assert (wrong - right).abs().max() > right.std()


def test_depth_multipliers() -> None:
    module = models.build("depth_multiplier", shape=(1, 16, 8, 8)).module
    multipliers = [
        layer.out_channels // layer.in_channels
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels
    ]
    assert multipliers == [2, 4]


def test_groups() -> None:
    module = models.build("grouped", shape=(1, 32, 8, 8)).module
    groups = [(layer.groups, layer.in_channels) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [pair for pair in groups if pair[0] > 1] == [(2, 64), (8, 64)]

import torch
from torch import nn

from sepwise import models


def test_depthwise_convolutions_are_three_dimensional() -> None:
    model = models.build("x3d_block", shape=(1, 24, 3, 8, 8))
    depthwise = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv3d) and layer.groups > 1]
    assert [(layer.kernel_size, layer.stride, layer.groups) for layer in depthwise] == [
        ((3, 3, 3), (1, 2, 2), 54),
        ((3, 3, 3), (1, 1, 1), 54),
    ]
    assert model.module(torch.zeros(model.input_shape)).shape == (1, 24, 3, 4, 4)

import math

import torch
from torch import nn

from sepwise import models
from sepwise.models.yolov5 import YoloV5


def test_table_and_3x3_convolutions_are_depthwise() -> None:
    with torch.device("meta"):
        network = YoloV5(3, 1.0)
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            of_the_table = path.count(".") == 1
            if of_the_table or layer.kernel_size != (1, 1):
                assert layer.groups == math.gcd(layer.in_channels, layer.out_channels), path
            else:
                assert layer.groups == 1, path


def test_outputs_are_three_scales() -> None:
    model = models.build("yolov5n_dw", shape=(1, 3, 64, 96))
    assert model.output_names == ("p3", "p4", "p5")
    shapes = [tuple(output.shape) for output in model.module(torch.zeros(model.input_shape))]
    assert shapes == [(1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]

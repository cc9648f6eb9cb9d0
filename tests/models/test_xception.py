import torch
from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out


def test_separable_convolutions_have_nothing_between() -> None:
    """No batch norm and no activation after the depthwise part (the paper's figure 10)."""
    network = lay_out(find("xception"), 3, 1.0)
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))]
    depthwise = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert len(depthwise) == 3 * 2 + 8 * 3 + 2 + 2
    for place in depthwise:
        pointwise = layers[place + 1]
        assert isinstance(pointwise, nn.Conv2d)
        assert (pointwise.kernel_size, pointwise.groups) == ((1, 1), 1)


def test_the_middle_flow_keeps_its_shape() -> None:
    network = lay_out(find("xception"), 3, 0.25)
    middle = network.get_submodule("middle")
    assert len(list(middle.children())) == 8
    x = torch.empty(1, 184, 19, 19, device="meta")
    assert middle(x).shape == x.shape


def test_the_exit_halves_and_widens() -> None:
    network = lay_out(find("xception"), 3, 1.0)
    y = network.get_submodule("exit")(torch.empty(1, 728, 19, 19, device="meta"))
    assert y.shape == (1, 1024, 10, 10)
    assert network.get_submodule("head")(y).shape == (1, 2048, 10, 10)

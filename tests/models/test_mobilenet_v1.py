from torch import nn

from sepwise.models import find
from sepwise.models.building import lay_out


def test_thirteen_separable_convolutions() -> None:
    network = lay_out(find("mobilenet_v1"), 3, 1.0)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    kinds = ["depthwise" if layer.groups > 1 else layer.kernel_size[0] for layer in layers]
    assert kinds == [3, *["depthwise", 1] * 13]
    assert [layer.stride[0] for layer in layers if layer.groups > 1] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert all(layer.bias is None for layer in layers)

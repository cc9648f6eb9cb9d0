from torch import nn

from sepwise import models


def test_rates() -> None:
    module = models.build("deeplab_aspp", shape=(1, 16, 9, 9), width=0.1).module
    dilations = [layer.dilation for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert dilations == [(6, 6), (12, 12), (18, 18)]

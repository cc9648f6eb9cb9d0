import torch

from sepwise import models
from sepwise.models.shufflenet_v2 import _shuffle


def test_shuffle_interleaves_the_halves() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert _shuffle(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_unit_of_stride_one_passes_a_half() -> None:
    module = models.build("shufflenet_v2", shape=(1, 3, 32, 32), width=0.25).module
    unit = module.get_submodule("stages.0.1")
    x = torch.randn(1, 28, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit(x)[:, 0::2], x[:, :14])
